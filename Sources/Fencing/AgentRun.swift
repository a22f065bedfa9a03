import CLinux
import Foundation
import Glibc
import Model

/// One run of an agent's executable, from start to end, within a time limit.
///
/// It runs in a session of its own under coreutils' `timeout`, which ends it when nobody else does:
/// an
/// `ftvmd` that is killed leaves no agent behind for longer than the limit, and its children are
/// reaped by whoever adopts them. At its end, however it ended, its whole process group is killed.
struct AgentRun: Sendable {
    enum End: Sendable, Hashable {
        case exited(Int)
        case signalled(Int)
        case timedOut(milliseconds: Int)
        case notStarted(String)
    }

    var end: End
    /// The first `outputLimit` bytes of what it wrote.
    var output = ""
    var errors = ""

    /// More is read and thrown away.
    static let outputLimit = 64 << 10
    /// Between SIGTERM, with which an agent may log out of its device, and SIGKILL.
    private static let graceMilliseconds = 500
    private static let guardian = "/usr/bin/timeout"

    /// Runs on a thread of its own: agents are few, and may hang.
    static func run(_ path: String, input: String, milliseconds: Int) async -> AgentRun {
        await withCheckedContinuation { continuation in
            let thread = Thread {
                continuation.resume(
                    returning: runBlocking(path, input: input, milliseconds: milliseconds))
            }
            thread.name = "ftvm-fence"
            thread.start()
        }
    }

    private static func runBlocking(_ path: String, input: String, milliseconds: Int) -> AgentRun {
        var pipes = Pipes()
        defer { pipes.close() }
        if let failure = pipes.open() { return AgentRun(end: .notStarted(failure)) }
        let pid = spawn(path, milliseconds, pipes)
        guard pid > 0 else {
            return AgentRun(end: .notStarted(String(cString: strerror(-pid))))
        }
        pipes.closeChildEnds()
        var session = Session(pid: pid, pipes: pipes, input: Array(input.utf8))
        session.run(until: now() + UInt64(milliseconds) * 1_000_000)
        var timedOut = false
        if session.status == nil {
            timedOut = true
            kill(-pid, SIGTERM)
            session.run(until: now() + UInt64(graceMilliseconds) * 1_000_000)
        }
        // Also when it has ended: what it left behind is in its group. Not reaped yet, so the
        // number is still its own.
        kill(-pid, SIGKILL)
        if session.status == nil { session.run(until: now() + 1_000_000_000) }
        session.reap()
        pipes = session.pipes
        let end: End =
            if timedOut || session.status == nil {
                .timedOut(milliseconds: milliseconds)
            } else if let status = session.status, status >= 256 {
                .signalled(status - 256)
            } else if let status = session.status, status > 128 {
                // `timeout` says of a child that was killed what a shell would.
                .signalled(status - 128)
            } else {
                .exited(session.status ?? 0)
            }
        return AgentRun(
            end: end, output: String(decoding: session.output, as: UTF8.self),
            errors: String(decoding: session.errors, as: UTF8.self))
    }

    /// The pid, or -errno.
    private static func spawn(_ path: String, _ milliseconds: Int, _ pipes: Pipes) -> CInt {
        let seconds = (milliseconds + graceMilliseconds) / 1_000 + 2
        // Nothing of the agent's parameters is here: everybody can read command lines.
        let words = [guardian, "--signal=KILL", "\(seconds)", path]
        let environment = [
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/root",
        ]
        var arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) }
        var variables: [UnsafeMutablePointer<CChar>?] = environment.map { strdup($0) }
        defer { for word in arguments + variables { free(word) } }
        arguments.append(nil)
        variables.append(nil)
        return ftvm_fence_spawn(
            guardian, arguments, variables, pipes.input.read, pipes.output.write,
            pipes.errors.write)
    }

    fileprivate static func now() -> UInt64 { DispatchTime.now().uptimeNanoseconds }
}

/// The three pipes to an agent; -1: closed.
private struct Pipes {
    var input: (read: CInt, write: CInt) = (-1, -1)
    var output: (read: CInt, write: CInt) = (-1, -1)
    var errors: (read: CInt, write: CInt) = (-1, -1)

    /// Our ends do not block. The error's text, or nil.
    mutating func open() -> String? {
        for path in [\Pipes.input, \.output, \.errors] {
            var ends: [CInt] = [-1, -1]
            let result = ftvm_pipe(&ends)
            guard result == 0 else { return String(cString: strerror(-result)) }
            self[keyPath: path] = (ends[0], ends[1])
        }
        for descriptor in [input.write, output.read, errors.read] {
            guard fcntl(descriptor, F_SETFL, O_NONBLOCK) == 0 else {
                return String(cString: strerror(errno))
            }
        }
        return nil
    }

    mutating func closeChildEnds() {
        Self.close(&input.read)
        Self.close(&output.write)
        Self.close(&errors.write)
    }

    mutating func close() {
        closeChildEnds()
        Self.close(&input.write)
        Self.close(&output.read)
        Self.close(&errors.read)
    }

    static func close(_ descriptor: inout CInt) {
        if descriptor >= 0 { Glibc.close(descriptor) }
        descriptor = -1
    }
}

/// Talks to a running agent.
private struct Session {
    let pid: CInt
    var pipes: Pipes
    var input: [UInt8]
    var output: [UInt8] = []
    var errors: [UInt8] = []
    /// How it ended, as `ftvm_fence_reap` says; nil: it runs.
    var status: Int?
    private let pidfd: CInt
    private var isReaped = false

    init(pid: CInt, pipes: Pipes, input: [UInt8]) {
        self.pid = pid
        self.pipes = pipes
        self.input = input
        pidfd = ftvm_pidfd_open(pid)
    }

    /// Feeds it and reads it until it ends or the time (CLOCK_MONOTONIC, nanoseconds) is over. Not
    /// until its pipes are closed: something that it left behind may keep them open.
    mutating func run(until end: UInt64) {
        while true {
            feed()
            drain(pipes.output.read, into: \.output)
            drain(pipes.errors.read, into: \.errors)
            let now = AgentRun.now()
            // Zero-length polls reach this too, so that the end is seen before the time is.
            if hasEnded() {
                drain(pipes.output.read, into: \.output)
                drain(pipes.errors.read, into: \.errors)
                return
            }
            guard now < end else { return }
            var descriptors = [
                pollfd(fd: pidfd, events: Int16(POLLIN), revents: 0),
                pollfd(fd: pipes.output.read, events: Int16(POLLIN), revents: 0),
                pollfd(fd: pipes.errors.read, events: Int16(POLLIN), revents: 0),
                pollfd(fd: pipes.input.write, events: Int16(POLLOUT), revents: 0),
            ]
            // Without a pidfd (too many descriptors) it is looked at twenty times a second.
            let limit = pidfd >= 0 ? 1_000 : 50
            let left = Int((end - now) / 1_000_000) + 1
            _ = poll(&descriptors, nfds_t(descriptors.count), CInt(min(limit, left)))
        }
    }

    private mutating func feed() {
        while pipes.input.write >= 0 {
            if input.isEmpty {
                Pipes.close(&pipes.input.write)
                return
            }
            let count = write(pipes.input.write, input, input.count)
            if count > 0 {
                input.removeFirst(count)
            } else if count < 0 && errno == EINTR {
                continue
            } else if count < 0 && errno == EAGAIN {
                return
            } else {
                // It does not want to read.
                Pipes.close(&pipes.input.write)
            }
        }
    }

    /// At most so many reads at a time: an agent that writes without end must not keep us.
    private mutating func drain(_ descriptor: CInt, into text: WritableKeyPath<Session, [UInt8]>) {
        guard descriptor >= 0 else { return }
        var buffer = [UInt8](repeating: 0, count: 16 << 10)
        for _ in 0..<16 {
            let count = read(descriptor, &buffer, buffer.count)
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else {
                if count == 0 {
                    if descriptor == pipes.output.read { Pipes.close(&pipes.output.read) }
                    if descriptor == pipes.errors.read { Pipes.close(&pipes.errors.read) }
                }
                return
            }
            let room = AgentRun.outputLimit - self[keyPath: text].count
            self[keyPath: text] += buffer[..<min(count, room)]
        }
    }

    /// Looks without reaping, so that the process group's number stays its own.
    private mutating func hasEnded() -> Bool {
        if status != nil { return true }
        var information = siginfo_t()
        guard waitid(P_PID, id_t(pid), &information, WEXITED | WNOHANG | WNOWAIT) == 0,
            information.si_signo != 0
        else { return false }
        status = 0
        return true
    }

    /// Takes it out of the process table. One that even SIGKILL does not end (it waits in the
    /// kernel) is left to a thread.
    mutating func reap() {
        guard !isReaped else { return }
        isReaped = true
        if pidfd >= 0 { close(pidfd) }
        var raw: CInt = 0
        if status != nil, ftvm_fence_reap(pid, &raw) == pid {
            status = Int(raw)
            return
        }
        status = nil
        let pid = pid
        Thread {
            var raw: CInt = 0
            while waitpid(pid, &raw, 0) < 0 && errno == EINTR {}
        }.start()
    }
}
