import CLinux
import DiskLog
import Foundation
import Glibc
import Model
import Synchronization

/// The nbdkit processes with our plugin that serve a pair's disks on this host (`Documentation/Disks.md`). In their own
/// session: they outlive the `ftvmd` that has started them, and the next one finds them by their control socket.
package struct DiskPlugin: Sendable {
    /// nbdkit itself, and the plugin that it loads.
    package let program: String
    package let library: String
    /// Where sockets and the log are made; QEMU's user must get through.
    package let directory: String
    /// The pair's name, as it can stand in a file name.
    package let name: String

    package init(program: String, library: String, directory: String, name: String) {
        self.program = program
        self.library = library
        self.directory = directory
        self.name = name
    }

    /// What QEMU connects to.
    package var socket: String { "\(directory)/\(name).nbd" }
    var control: String { "\(directory)/\(name).control" }
    private var messages: String { "\(directory)/\(name).log" }

    /// The plugin beside our own executable, or where it is installed; and nbdkit.
    package static func installed() -> (program: String, library: String) {
        let own = InjectorProcess.besideThisExecutable().path
        let directory = own.lastIndex(of: "/").map { String(own[..<$0]) } ?? ""
        let file = "libftvm-nbdkit-plugin.so"
        let libraries = ["\(directory)/\(file)", "\(directory)/../lib/ftvm/\(file)"]
        let programs = ["/usr/bin/nbdkit", "/usr/sbin/nbdkit", "/usr/local/bin/nbdkit"]
        return (
            programs.first { access($0, X_OK) == 0 } ?? programs[0],
            libraries.first { access($0, R_OK) == 0 } ?? libraries[0]
        )
    }

    /// - Throws: `.failedPrecondition` that says what is missing on this host.
    package func requireInstalled() throws {
        guard let missing = Self.missing(program, library).first else { return }
        throw FtvmError(
            .failedPrecondition, "this host cannot protect disks",
            cause: "\(missing.path) is missing", advice: "install \(missing.what)")
    }

    /// What this host would need to serve disks and does not have.
    package static func missing() -> [(what: String, path: String)] {
        let files = installed()
        return missing(files.program, files.library)
    }

    private static func missing(
        _ program: String, _ library: String
    ) -> [(what: String, path: String)] {
        [(what: "nbdkit", path: program), (what: "ftvm's nbdkit plugin", path: library)]
            .filter { access($0.path, R_OK) != 0 }
    }

    /// What a plugin works with.
    struct Work {
        let log: DiskLogFile
        let images: [(name: String, path: String)]
        let journal: String?
    }

    /// How long a new process may take until it answers.
    private static let startMilliseconds: UInt64 = 10_000

    /// Starts one that waits, in the pair's turn; any other of this pair must have ended.
    ///
    /// nbdkit goes into the background by itself: in the foreground it asks the kernel to end it together with the thread that has
    /// started it (PR_SET_PDEATHSIG), and it has to outlive even our process.
    func start(_ work: Work) throws -> DiskServerClient {
        try requireInstalled()
        unlink(socket)
        unlink(control)
        var arguments = [
            program, "--unix", socket, library, "log-fd=3", "control=\(control)",
        ]
        arguments += work.images.map { "disk=\($0.name):\($0.path)" }
        if let journal = work.journal { arguments.append("journal=\(journal)") }
        let output = open(messages, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard output >= 0 else {
            throw FtvmError(
                .unavailable, "cannot make \(messages)", cause: String(cString: strerror(errno)))
        }
        defer { close(output) }
        var pointers: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
        defer { for pointer in pointers { free(pointer) } }
        let child = ftvm_spawn(program, &pointers, [work.log.descriptor], 1, output)
        guard child > 0 else {
            throw FtvmError(
                .unavailable, "cannot start \(program)", cause: String(cString: strerror(-child)))
        }
        let ended = Reaper(child)
        FaultPoint.reached("disks.plugin-started")
        let deadline = MonotonicClock.nowNanoseconds() + Self.startMilliseconds * 1_000_000
        while true {
            if let client = try? DiskServerClient(path: control) {
                // QEMU runs as another user; the directory keeps everybody else out.
                chmod(socket, 0o777)
                return client
            }
            // The first process ends well when the one in the background has begun.
            if let status = ended.status, status != 0 || processes().isEmpty { break }
            guard MonotonicClock.nowNanoseconds() < deadline else { break }
            usleep(2_000)
        }
        if ended.status == nil { Glibc.kill(child, SIGKILL) }
        let said = (try? String(contentsOfFile: messages, encoding: .utf8)) ?? ""
        throw FtvmError(
            .unavailable, "the disk server of \(name) does not start",
            cause: said.split(separator: "\n").suffix(3).joined(separator: "; "),
            advice: "see that this host reaches the disk images")
    }

    /// The one that runs already; nil when none answers.
    package func running() -> DiskServerClient? { try? DiskServerClient(path: control) }

    // MARK: - Turns

    /// Longer than a start and an end may take together.
    private static let turnSeconds = 30
    /// By socket. One for each pair that this process ever had here.
    private static let turns = Mutex<[String: DispatchSemaphore]>([:])

    /// Whoever starts or ends the pair's processes on this host has them to himself meanwhile: a start that was decided on
    /// a while ago takes the sockets away from no newer server, and ends none.
    ///
    /// Not to be nested.
    /// - Throws: `.timedOut`, and what `body` throws.
    func inTurn(_ body: () throws -> Void) throws {
        let turn = Self.turns.withLock { turns in
            let turn = turns[socket] ?? DispatchSemaphore(value: 1)
            turns[socket] = turn
            return turn
        }
        guard turn.wait(timeout: .now() + .seconds(Self.turnSeconds)) == .success else {
            throw FtvmError(
                .timedOut, "the disk server of \(name) is being started or ended",
                cause: "that takes longer than \(Self.turnSeconds) s",
                advice: "see whether the storage of its images answers")
        }
        defer { turn.signal() }
        try body()
    }

    // MARK: - Ending

    /// This pair's processes on this host.
    package func processes() -> [pid_t] {
        Self.processes(of: program, marked: "--unix\0\(socket)\0")
    }

    /// Those of all pairs whose sockets are in this directory.
    package static func processes(in directory: String) -> [pid_t] {
        processes(of: installed().program, marked: "--unix\0\(directory)/")
    }

    private static func processes(of program: String, marked mark: String) -> [pid_t] {
        let wanted = Data(mark.utf8)
        let entries = (try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []
        return entries.compactMap { pid_t($0) }.filter { pid in
            guard let data = FileManager.default.contents(atPath: "/proc/\(pid)/cmdline")
            else { return false }
            if data.isEmpty { return isEnding(pid, program) }
            guard let range = data.range(of: wanted) else { return false }
            // Its own arguments, not those of somebody who looks for it.
            return data[..<range.lowerBound].starts(with: Data(program.utf8))
        }
    }

    /// Whether this is one of nbdkit's processes that is ending and has not ended: the arguments are gone with its memory, a
    /// thread may still be in the middle of a write. Of whose disks cannot be told then.
    private static func isEnding(_ pid: pid_t, _ program: String) -> Bool {
        guard let stat = try? String(contentsOfFile: "/proc/\(pid)/stat", encoding: .utf8),
            let open = stat.firstIndex(of: "("), let end = stat.lastIndex(of: ")"),
            program.hasSuffix("/" + stat[stat.index(after: open)..<end])
        else { return false }
        guard stat[stat.index(after: end)...].hasPrefix(" Z") else { return true }
        // A zombie that is the last of its threads waits for its parent and nothing else.
        let threads = try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/task")
        return (threads?.count ?? 0) > 1
    }

    /// Ends them all. What is in the log stays there; a group under way is begun again by the next one.
    /// - Throws: `.timedOut` when one does not go: it waits for its storage.
    package func end() throws { try inTurn { try endNow() } }

    /// The same, in the pair's turn.
    func endNow() throws {
        let ending = processes().map { (pid: $0, handle: ftvm_pidfd_open($0)) }
        defer { for process in ending where process.handle >= 0 { close(process.handle) } }
        for process in ending { Glibc.kill(process.pid, SIGKILL) }
        let deadline = MonotonicClock.nowNanoseconds() + 5_000_000_000
        for process in ending where process.handle != -ESRCH {
            guard process.handle >= 0, Self.hasEnded(process.handle, before: deadline) else {
                throw FtvmError(
                    .timedOut,
                    "the disk server of \(name) (process \(process.pid)) does not end",
                    cause: "it waits for the storage of its images")
            }
        }
        unlink(socket)
        unlink(control)
        unlink(messages)
    }

    /// Waits until the last thread of a process has ended, and with it everything that it had open: locks on the log and on
    /// the images. Its first thread may be a zombie long before that, which is all that /proc/PID/stat tells.
    private static func hasEnded(_ handle: Int32, before deadline: UInt64) -> Bool {
        var polled = pollfd(fd: handle, events: Int16(POLLIN), revents: 0)
        while true {
            let now = MonotonicClock.nowNanoseconds()
            let left = deadline > now ? Int32((deadline - now) / 1_000_000 + 1) : 0
            if poll(&polled, 1, left) > 0 { return true }
            if MonotonicClock.nowNanoseconds() >= deadline { return false }
        }
    }
}

/// Takes the end of a child of ours, whenever that comes.
private final class Reaper: @unchecked Sendable {
    private let lock = NSLock()
    private var ended: Int32?

    init(_ child: pid_t) {
        let thread = Thread { [self] in
            var status: Int32 = 0
            while waitpid(child, &status, 0) < 0 && errno == EINTR {}
            lock.withLock { ended = status }
        }
        thread.stackSize = 256 << 10
        thread.start()
    }

    /// As of waitpid(2); nil while it runs.
    var status: Int32? { lock.withLock { ended } }
}
