import Glibc

extension ConfigurationReader {
    static func isHostName(_ text: String) -> Bool {
        !text.isEmpty && text.utf8.count <= 63
            && text.allSatisfy {
                $0.isASCII && ($0.isLetter || $0.isNumber || $0 == "-" || $0 == ".")
            }
    }

    static func isAddress(_ text: String) -> Bool {
        var hints = addrinfo()
        hints.ai_flags = AI_NUMERICHOST
        var list: UnsafeMutablePointer<addrinfo>?
        let result = getaddrinfo(text, nil, &hints, &list)
        if let list { freeaddrinfo(list) }
        return result == 0
    }

    /// `10.0.0.1:7751` or `[fd00::1]:7751`.
    static func split(_ text: String) -> (address: String, port: UInt16)? {
        guard let colon = text.lastIndex(of: ":"),
            let port = UInt16(text[text.index(after: colon)...]), port > 0
        else { return nil }
        var address = String(text[..<colon])
        if address.hasPrefix("["), address.hasSuffix("]") {
            address = String(address.dropFirst().dropLast())
        } else if address.contains(":") {
            return nil
        }
        return isAddress(address) ? (address, port) : nil
    }

    static func isLoopback(_ url: String) -> Bool {
        ["http://127.", "http://[::1]", "http://localhost"].contains { url.hasPrefix($0) }
    }
}
