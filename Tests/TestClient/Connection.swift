import Foundation

/// Why a connection is of no use any more.
struct ConnectionLost: Error, CustomStringConvertible {
    let description: String
}

/// A TCP connection with blocking calls, each bounded by the patience. Not for two threads at a time.
final class Connection {
    private let descriptor: Int32
    private var held: [UInt8] = []
    private static let lineBytesMaximum = 4096

    init(_ address: String, _ port: UInt16, patience: Int) throws {
        descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw Self.lost("socket") }
        var time = timeval(tv_sec: patience, tv_usec: 0)
        var one: Int32 = 1
        for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
            setsockopt(
                descriptor, SOL_SOCKET, option, &time, socklen_t(MemoryLayout<timeval>.size))
        }
        setsockopt(
            descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, &one, socklen_t(MemoryLayout<Int32>.size))
        var target = sockaddr_in()
        target.sin_family = sa_family_t(AF_INET)
        target.sin_port = port.bigEndian
        inet_pton(AF_INET, address, &target.sin_addr)
        let result = withUnsafePointer(to: &target) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard result == 0 else { throw Self.lost("connecting to \(address):\(port)") }
    }

    deinit { close(descriptor) }

    func send(_ bytes: [UInt8]) throws {
        try bytes.withUnsafeBytes { try send($0) }
    }

    func send(_ bytes: UnsafeRawBufferPointer) throws {
        var rest = bytes[...]
        while !rest.isEmpty {
            let sent = Glibc.send(
                descriptor, UnsafeRawBufferPointer(rebasing: rest).baseAddress, rest.count,
                Int32(MSG_NOSIGNAL))
            guard sent > 0 else { throw Self.lost("sending") }
            rest = rest.dropFirst(sent)
        }
    }

    /// The next line, without its end.
    func line() throws -> Substring {
        while true {
            if let end = held.firstIndex(of: UInt8(ascii: "\n")) {
                var line = held[..<end]
                if line.last == UInt8(ascii: "\r") { line = line.dropLast() }
                let text = String(decoding: line, as: UTF8.self)
                held.removeFirst(end + 1)
                return text[...]
            }
            guard held.count < Self.lineBytesMaximum else {
                throw ConnectionLost(description: "an answer without an end")
            }
            var buffer = [UInt8](repeating: 0, count: 1024)
            held += buffer[..<(try receive(&buffer))]
        }
    }

    /// So many bytes, after those that `line` has left.
    func bytes(_ count: Int) throws -> [UInt8] {
        while held.count < count {
            var buffer = [UInt8](repeating: 0, count: 4096)
            held += buffer[..<(try receive(&buffer))]
        }
        defer { held.removeFirst(count) }
        return Array(held[..<count])
    }

    /// Fills the buffer; not to be mixed with `line`.
    func fill(_ buffer: UnsafeMutableRawBufferPointer) throws {
        var filled = 0
        while filled < buffer.count {
            filled += try receive(UnsafeMutableRawBufferPointer(rebasing: buffer[filled...]))
        }
    }

    private func receive(_ buffer: inout [UInt8]) throws -> Int {
        try buffer.withUnsafeMutableBytes { try receive($0) }
    }

    private func receive(_ buffer: UnsafeMutableRawBufferPointer) throws -> Int {
        let got = recv(descriptor, buffer.baseAddress, buffer.count, 0)
        guard got > 0 else {
            throw got == 0
                ? ConnectionLost(description: "the guest closed the connection")
                : Self.lost("receiving")
        }
        return got
    }

    /// Nothing more will be sent.
    func endOwnSide() { shutdown(descriptor, Int32(SHUT_WR)) }

    private static func lost(_ doing: String) -> ConnectionLost {
        let number = errno
        let cause =
            number == EAGAIN || number == EINPROGRESS
            ? "no answer in time" : String(cString: strerror(number))
        return ConnectionLost(description: "\(doing): \(cause)")
    }
}
