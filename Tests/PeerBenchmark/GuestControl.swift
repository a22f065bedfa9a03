import Foundation
import Glibc
import Model
import Protection

/// A connection to the guest's `ftbench`, through the port that its QEMU has opened on the
/// loopback.
final class GuestControl {
    private let descriptor: Int32

    struct Status {
        /// Pages written since the guest's start.
        let writes: UInt64
        /// When the answer was there, on the host's monotonic clock.
        let at: UInt64
    }

    /// - Parameter seconds: how long an answer may take.
    init(port: UInt16, seconds: Double) throws {
        descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        guard descriptor >= 0 else {
            throw FtvmError(
                .resourceExhausted, "no socket", cause: String(cString: strerror(errno)))
        }
        var one: Int32 = 1
        setsockopt(
            descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, &one, socklen_t(MemoryLayout<Int32>.size))
        var time = timeval(
            tv_sec: Int(seconds), tv_usec: Int((seconds - seconds.rounded(.down)) * 1e6))
        for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
            setsockopt(descriptor, SOL_SOCKET, option, &time, socklen_t(MemoryLayout<timeval>.size))
        }
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        let connected = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard connected == 0 else {
            throw FtvmError(
                .unavailable, "the guest's port is closed", cause: String(cString: strerror(errno)))
        }
    }

    deinit { close(descriptor) }

    /// Connects as soon as the guest answers.
    static func first(port: UInt16, within seconds: Double) throws -> GuestControl {
        let deadline = Date().addingTimeInterval(seconds)
        while true {
            do {
                // QEMU takes the connection before the guest is there to do so.
                let probe = try GuestControl(port: port, seconds: 0.1)
                _ = try probe.status()
                return try GuestControl(port: port, seconds: 20)
            } catch let error as FtvmError where Date() < deadline {
                _ = error
                usleep(5_000)
            }
        }
    }

    func ask(_ line: String) throws -> String {
        var text = Array((line + "\n").utf8)
        guard send(descriptor, text, text.count, Int32(MSG_NOSIGNAL)) == text.count else {
            throw FtvmError(.unavailable, "the guest does not take '\(line)'")
        }
        text.removeAll()
        while true {
            var byte: UInt8 = 0
            guard recv(descriptor, &byte, 1, 0) == 1 else {
                throw FtvmError(
                    .unavailable, "the guest does not answer '\(line)'",
                    cause: String(cString: strerror(errno)))
            }
            if byte == UInt8(ascii: "\n") { break }
            text.append(byte)
        }
        let answer = String(decoding: text, as: UTF8.self)
        guard !answer.hasPrefix("error") else {
            throw FtvmError(.failedPrecondition, "the guest refuses '\(line)'", cause: answer)
        }
        return answer
    }

    func status() throws -> Status {
        let answer = try ask("status")
        guard let writes = answer.split(separator: " ").first.flatMap({ UInt64($0) }) else {
            throw FtvmError(.unavailable, "the guest answers something else", cause: answer)
        }
        return Status(writes: writes, at: MonotonicClock.nowNanoseconds())
    }

    /// How often the guest did something within so many of its seconds.
    func count(_ line: String) throws -> Double {
        guard let count = Double(try ask(line)) else {
            throw FtvmError(.unavailable, "'\(line)' has no count")
        }
        return count
    }
}
