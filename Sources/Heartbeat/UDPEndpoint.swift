import Glibc
import Model

/// An address and a port for datagrams, as numbers: heartbeats must not wait for a name server.
package struct UDPEndpoint: Sendable, Hashable, CustomStringConvertible {
    /// An IPv4 or IPv6 address, `10.0.0.1`, `fd00::1` or `fe80::1%eth0`.
    package let address: String
    package let port: UInt16
    let storage: Storage

    /// A socket address of either family.
    struct Storage: Sendable, Hashable {
        /// The bytes of a `sockaddr_in` or `sockaddr_in6`.
        let bytes: [UInt8]
        let family: CInt
    }

    package var description: String {
        address.contains(":") ? "[\(address)]:\(port)" : "\(address):\(port)"
    }

    /// - Parameter port: 0 to listen on a port that the kernel chooses.
    /// - Throws: `invalidArgument` when it is not a numeric address.
    package init(address: String, port: UInt16) throws(FtvmError) {
        var hints = addrinfo()
        hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV
        hints.ai_socktype = CInt(SOCK_DGRAM.rawValue)
        var list: UnsafeMutablePointer<addrinfo>?
        let result = getaddrinfo(address, String(port), &hints, &list)
        defer { if let list { freeaddrinfo(list) } }
        guard result == 0, let found = list?.pointee, let pointer = found.ai_addr else {
            throw FtvmError(
                .invalidArgument, "\(address) is not an IP address",
                cause: result == 0 ? nil : String(cString: gai_strerror(result)),
                advice: "write numbers, such as 10.0.0.1 or fd00::1: no name server is asked")
        }
        self.address = address
        self.port = port
        storage = Storage(
            bytes: Array(UnsafeRawBufferPointer(start: pointer, count: Int(found.ai_addrlen))),
            family: found.ai_family)
    }

    /// `10.0.0.1:7750` or `[fd00::1]:7750`.
    /// - Throws: `invalidArgument`.
    package init(_ text: String) throws(FtvmError) {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        let address: String
        if text.hasPrefix("["), let end = text.lastIndex(of: "]") {
            address = String(text[text.index(after: text.startIndex)..<end])
        } else {
            address = parts.count == 2 ? String(parts[0]) : ""
        }
        guard !address.isEmpty, let last = parts.last, let port = UInt16(last), port > 0 else {
            throw FtvmError(
                .invalidArgument, "\(text) is not an address with a port",
                advice: "write 10.0.0.1:7750 or [fd00::1]:7750")
        }
        try self.init(address: address, port: port)
    }

    func with<Value>(_ body: (UnsafePointer<sockaddr>, socklen_t) -> Value) -> Value {
        storage.bytes.withUnsafeBytes { bytes in
            // Arrays are aligned for any of the socket addresses.
            guard let base = bytes.bindMemory(to: sockaddr.self).baseAddress else {
                preconditionFailure("a socket address is not empty")
            }
            return body(base, socklen_t(bytes.count))
        }
    }
}
