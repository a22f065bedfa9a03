import Glibc
import Model
import Synchronization

/// A client that asks a guest for a sign of life every few milliseconds, on a thread of its own, and notes
/// when it had one: echo requests (`ping`), or TCP connections where a port is given.
final class ProbeClient: @unchecked Sendable {
    static let periodNanoseconds: UInt64 = 5_000_000
    /// Connections that wait for an answer at a time.
    private static let connectionsMaximum = 64
    /// Times kept: ten minutes' worth.
    private static let answersMaximum = 120_000

    private struct State {
        var sent = 0
        /// On the monotonic clock, rising.
        var answers: [UInt64] = []
        var isStopped = false
        var failure: String?
    }

    let target: String
    private let address: sockaddr_in
    private let usesTCP: Bool
    private let state = Mutex(State())
    private var thread: OwnThread?

    /// - Parameter target: `10.77.0.10` or `10.77.0.10:7777`.
    /// - Throws: `invalidArgument` for anything else.
    init(target: String) throws {
        self.target = target
        let parts = target.split(separator: ":", omittingEmptySubsequences: false)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        let port = parts.count == 2 ? UInt16(parts[1]) : nil
        guard parts.count <= 2, let host = parts.first,
            inet_pton(AF_INET, String(host), &address.sin_addr) == 1,
            parts.count == 1 || (port ?? 0) > 0
        else {
            throw FtvmError(
                .invalidArgument, "'\(target)' is nothing to probe",
                advice: "give an IPv4 address, or ADDRESS:PORT for TCP connections")
        }
        address.sin_port = (port ?? 0).bigEndian
        self.address = address
        usesTCP = port != nil
    }

    /// The monotonic clock, in nanoseconds.
    static func now() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }

    func start() throws {
        thread = try OwnThread("ftvm-probe") {
            if self.usesTCP { self.connectOnAndOn() } else { self.pingOnAndOn() }
        }
    }

    /// Ends the probe and waits for its thread.
    func stop() {
        state.withLock { $0.isStopped = true }
        thread?.join()
        thread = nil
    }

    var answered: Int { state.withLock { $0.answers.count } }
    /// Why it could not go on, if so.
    var failure: String? { state.withLock { $0.failure } }

    /// What it saw of a fault at that time on the monotonic clock.
    func result(faultAt fault: UInt64) -> DrillReport.Probe {
        let (sent, answers) = state.withLock { ($0.sent, $0.answers) }
        let gaps = ProbeGaps(answers: answers, fault: fault, end: Self.now())
        return DrillReport.Probe(
            target: target, sent: sent, answered: answers.count,
            longestGapBeforeMilliseconds: gaps.beforeMilliseconds,
            longestGapMilliseconds: gaps.afterMilliseconds)
    }

    private var isStopped: Bool { state.withLock { $0.isStopped } }

    private func note(sent: Int = 0, answer: UInt64? = nil) {
        state.withLock { state in
            state.sent += sent
            if let answer, state.answers.count < Self.answersMaximum {
                state.answers.append(answer)
            }
        }
    }

    private func fail(_ what: String) {
        let cause = String(cString: strerror(errno))
        state.withLock { $0.failure = "\(what): \(cause)" }
    }

    // MARK: - Echo requests

    private func pingOnAndOn() {
        let raw = socket(
            AF_INET, Int32(SOCK_RAW.rawValue | SOCK_CLOEXEC.rawValue), Int32(IPPROTO_ICMP))
        guard raw >= 0 else { return fail("cannot make a socket for echo requests") }
        defer { close(raw) }
        let identifier = UInt16(truncatingIfNeeded: getpid())
        var sequence: UInt16 = 0
        var due = Self.now()
        while !isStopped {
            sequence &+= 1
            send(echo(identifier, sequence), on: raw)
            note(sent: 1)
            due += Self.periodNanoseconds
            receive(until: due, identifier, on: raw)
        }
    }

    private func echo(_ identifier: UInt16, _ sequence: UInt16) -> [UInt8] {
        var packet: [UInt8] = [8, 0, 0, 0]
        for word in [identifier, sequence] { packet += [UInt8(word >> 8), UInt8(word & 255)] }
        packet += [UInt8](repeating: 0x66, count: 8)
        var sum: UInt32 = 0
        for index in stride(from: 0, to: packet.count, by: 2) {
            sum += UInt32(packet[index]) << 8 | UInt32(packet[index + 1])
        }
        while sum >> 16 != 0 { sum = (sum & 0xffff) + (sum >> 16) }
        let check = ~UInt16(truncatingIfNeeded: sum)
        packet[2] = UInt8(check >> 8)
        packet[3] = UInt8(check & 255)
        return packet
    }

    private func send(_ packet: [UInt8], on descriptor: Int32) {
        var to = address
        _ = withUnsafePointer(to: &to) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                // A packet that cannot be sent is one without an answer.
                sendto(
                    descriptor, packet, packet.count, Int32(MSG_DONTWAIT), $0,
                    socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
    }

    private func receive(until due: UInt64, _ identifier: UInt16, on descriptor: Int32) {
        var buffer = [UInt8](repeating: 0, count: 256)
        while true {
            let now = Self.now()
            guard now < due, Self.wait(descriptor, Int16(POLLIN), until: due) else { return }
            let count = recv(descriptor, &buffer, buffer.count, Int32(MSG_DONTWAIT))
            guard count > 0 else { continue }
            let header = Int(buffer[0] & 15) * 4
            guard count >= header + 8, buffer[header] == 0,
                UInt16(buffer[header + 4]) << 8 | UInt16(buffer[header + 5]) == identifier
            else { continue }
            note(answer: Self.now())
        }
    }

    private static func wait(_ descriptor: Int32, _ events: Int16, until due: UInt64) -> Bool {
        let now = now()
        guard now < due else { return false }
        var polled = pollfd(fd: descriptor, events: events, revents: 0)
        return poll(&polled, 1, roundedUp(due - now)) > 0
    }

    /// Milliseconds; a wait must not end before its time and spin.
    private static func roundedUp(_ nanoseconds: UInt64) -> Int32 {
        Int32(clamping: (nanoseconds + 999_999) / 1_000_000)
    }

    // MARK: - Connections

    private func connectOnAndOn() {
        var open: [Int32] = []
        var due = Self.now()
        defer { for descriptor in open { close(descriptor) } }
        while !isStopped {
            // The oldest gives way: one whose first packet was lost would repeat it only after a second.
            if open.count == Self.connectionsMaximum { close(open.removeFirst()) }
            if let made = connectOnce() { open.append(made) }
            note(sent: 1)
            due += Self.periodNanoseconds
            while Self.now() < due { open = connected(open, until: due) }
        }
    }

    private func connectOnce() -> Int32? {
        let kind = SOCK_STREAM.rawValue | SOCK_NONBLOCK.rawValue | SOCK_CLOEXEC.rawValue
        let made = socket(AF_INET, Int32(kind), 0)
        guard made >= 0 else { return nil }
        // Closed with a reset: nothing of it stays, here or there.
        var abort = linger(l_onoff: 1, l_linger: 0)
        setsockopt(made, SOL_SOCKET, SO_LINGER, &abort, socklen_t(MemoryLayout<linger>.size))
        var to = address
        let result = withUnsafePointer(to: &to) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(made, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        if result == 0 || errno == EINPROGRESS { return made }
        close(made)
        return nil
    }

    /// - Returns: those that still wait.
    private func connected(_ open: [Int32], until due: UInt64) -> [Int32] {
        var polled = open.map { pollfd(fd: $0, events: Int16(POLLOUT), revents: 0) }
        let now = Self.now()
        let left = due > now ? Self.roundedUp(due - now) : 0
        guard poll(&polled, nfds_t(polled.count), left) > 0 else { return open }
        var waiting: [Int32] = []
        for entry in polled {
            guard entry.revents != 0 else {
                waiting.append(entry.fd)
                continue
            }
            var failure: Int32 = 0
            var size = socklen_t(MemoryLayout<Int32>.size)
            getsockopt(entry.fd, SOL_SOCKET, SO_ERROR, &failure, &size)
            if failure == 0 { note(answer: Self.now()) }
            close(entry.fd)
        }
        return waiting
    }
}

/// The longest times without an answer, before and from a fault on.
package struct ProbeGaps: Hashable, Sendable {
    package var beforeMilliseconds = 0.0
    package var afterMilliseconds = 0.0

    /// - Parameters:
    ///   - answers: when answers came, rising; all times in nanoseconds on one clock.
    ///   - end: when the probe ended; it counts as an answer that never came.
    package init(answers: [UInt64], fault: UInt64, end: UInt64) {
        var last: UInt64?
        for answer in answers + [max(end, answers.last ?? 0)] {
            defer { last = answer }
            guard let last, answer >= last else { continue }
            let gap = Double(answer - last) / 1_000_000
            if answer < fault {
                beforeMilliseconds = max(beforeMilliseconds, gap)
            } else {
                afterMilliseconds = max(afterMilliseconds, gap)
            }
        }
    }
}
