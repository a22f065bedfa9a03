import CLinux
import Foundation
import Model

/// What the demo guest's program says of itself (`Examples/guest/ftguest.c`).
package struct GuestStatus: Hashable, Sendable, Codable {
    package struct Checker: Hashable, Sendable, Codable {
        /// Size of the checked region, in MiB.
        package let mib: UInt64
        /// Times that the whole region was verified.
        package let rounds: UInt64
        package let pagesChecked: UInt64
        /// Pages (and sums) that were not what they must be: anything but 0 is lost memory.
        package let bad: UInt64
        /// Pages rewritten so far.
        package let writes: UInt64
        enum CodingKeys: String, CodingKey {
            case mib, rounds, bad, writes
            case pagesChecked = "pages_checked"
        }
    }

    /// Seconds since the guest's kernel started, on its monotonic clock.
    package let uptimeSeconds: Double
    /// Changes with every boot of the guest.
    package let bootID: String
    /// Raised every 10 ms.
    package let counter: UInt64
    package let checker: Checker
    package let dirtyPagesPerSecond: UInt64
    enum CodingKeys: String, CodingKey {
        case counter, checker
        case uptimeSeconds = "uptime_seconds"
        case bootID = "boot_id"
        case dirtyPagesPerSecond = "dirty_pages_per_second"
    }
}

/// A TCP connection to the demo guest from the lab's switch, where clients are. Not for two threads
/// at a time. Calls block, each up to the time-out.
package final class GuestClient {
    private let descriptor: Int32
    private var received: [UInt8] = []
    /// A guest's answer is one line; more than this is no answer.
    private static let lineBytesMaximum = 4096

    /// - Throws: `FtvmError` `unavailable` when nothing answers within `timeout`.
    package init(
        _ layout: LabLayout, address: String = LabLayout.guestAddress,
        port: UInt16 = LabLayout.guestPort, timeout: Duration = .seconds(2)
    ) throws {
        let network = open(layout.switchNetwork, O_RDONLY | O_CLOEXEC)
        guard network >= 0 else { throw systemFailure("cannot open the lab's switch", errno) }
        defer { close(network) }
        let result = ftvm_namespace_socket(network, AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        guard result >= 0 else { throw systemFailure("cannot make a socket", -result) }
        descriptor = result
        do {
            try Self.setTimeout(timeout, of: result)
            try Self.connect(result, address: address, port: port)
        } catch {
            close(result)
            throw error
        }
    }

    deinit { close(descriptor) }

    /// Sends one command and gives the line that answers it.
    /// - Throws: `FtvmError` `unavailable` when the connection is lost or silent; it is of no use
    ///   then.
    package func ask(_ command: String) throws -> String {
        var bytes = Array((command + "\n").utf8)[...]
        while !bytes.isEmpty {
            let sent = bytes.withUnsafeBytes {
                send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            // Whoever was stopped meanwhile, or frozen, is told so here.
            if sent < 0, errno == EINTR { continue }
            guard sent > 0 else { throw Self.lost("sending '\(command)'", errno) }
            bytes = bytes.dropFirst(sent)
        }
        return try readLine(after: command)
    }

    /// The guest's own account of itself.
    package func status() throws -> GuestStatus {
        let line = try ask("status")
        do {
            return try JSONDecoder().decode(GuestStatus.self, from: Data(line.utf8))
        } catch {
            throw FtvmError(.unavailable, "the guest's status makes no sense", cause: line)
        }
    }

    private func readLine(after command: String) throws -> String {
        while true {
            if let end = received.firstIndex(of: UInt8(ascii: "\n")) {
                let line = String(decoding: received[..<end], as: UTF8.self)
                received.removeSubrange(...end)
                return line
            }
            guard received.count < Self.lineBytesMaximum else {
                throw FtvmError(.unavailable, "the guest's answer to '\(command)' has no end")
            }
            var buffer = [UInt8](repeating: 0, count: 1024)
            let got = recv(descriptor, &buffer, buffer.count, 0)
            if got < 0, errno == EINTR { continue }
            guard got > 0 else {
                throw Self.lost("waiting for the answer to '\(command)'", got == 0 ? 0 : errno)
            }
            received += buffer[..<got]
        }
    }

    private static func setTimeout(_ timeout: Duration, of descriptor: Int32) throws {
        let parts = timeout.components
        var time = timeval(
            tv_sec: Int(parts.seconds), tv_usec: Int(parts.attoseconds / 1_000_000_000_000))
        for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
            let size = socklen_t(MemoryLayout<timeval>.size)
            guard setsockopt(descriptor, SOL_SOCKET, option, &time, size) == 0 else {
                throw systemFailure("cannot set the connection's time-out", errno)
            }
        }
    }

    private static func connect(_ descriptor: Int32, address: String, port: UInt16) throws {
        var target = sockaddr_in()
        target.sin_family = sa_family_t(AF_INET)
        target.sin_port = port.bigEndian
        guard inet_pton(AF_INET, address, &target.sin_addr) == 1 else {
            throw FtvmError(.invalidArgument, "'\(address)' is no IPv4 address")
        }
        let result = withUnsafePointer(to: &target) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard result != 0 else { return }
        let number = errno == EINTR ? outcome(of: descriptor) : errno
        guard number == 0 else { throw lost("connecting to \(address):\(port)", number) }
    }

    /// A connect(2) that a signal has interrupted goes on by itself.
    /// - Returns: how it ended, as an errno; 0: well.
    private static func outcome(of descriptor: Int32) -> Int32 {
        var polled = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
        var time = timeval()
        var size = socklen_t(MemoryLayout<timeval>.size)
        getsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &time, &size)
        let milliseconds = Int32(clamping: time.tv_sec * 1_000 + time.tv_usec / 1_000)
        var ready: Int32
        repeat { ready = poll(&polled, 1, milliseconds) } while ready < 0 && errno == EINTR
        guard ready > 0 else { return ready == 0 ? EINPROGRESS : errno }
        var number: Int32 = 0
        size = socklen_t(MemoryLayout<Int32>.size)
        guard getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &number, &size) == 0 else {
            return errno
        }
        return number
    }

    private static func lost(_ doing: String, _ number: Int32) -> FtvmError {
        let cause =
            switch number {
            case 0: "the guest closed the connection"
            case EAGAIN, EINPROGRESS: "no answer in time"
            default: String(cString: strerror(number))
            }
        return FtvmError(
            .unavailable, "the guest does not answer while \(doing)", cause: cause,
            advice: "see whether it runs: ftvm lab status, virsh list")
    }
}
