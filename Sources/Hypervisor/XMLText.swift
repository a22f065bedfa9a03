/// Text of XML: entity references, white space.
enum XMLText {
    static func isSpace(_ byte: UInt8) -> Bool {
        byte == 0x20 || byte == 0x0A || byte == 0x09 || byte == 0x0D
    }

    static func trim(_ text: String) -> String {
        let bytes = Array(text.utf8)
        guard let first = bytes.firstIndex(where: { !isSpace($0) }),
            let last = bytes.lastIndex(where: { !isSpace($0) })
        else { return "" }
        return String(decoding: bytes[first...last], as: UTF8.self)
    }

    /// Resolves character references and the five predefined entities. A reference to anything else
    /// stays as written: nothing is read from a DTD.
    static func decode(_ raw: String) -> String {
        guard raw.utf8.contains(where: { $0 == UInt8(ascii: "&") || $0 == 0x0D }) else {
            return raw
        }
        var output = ""
        var rest = raw.unicodeScalars[...]
        while let scalar = rest.first {
            rest.removeFirst()
            if scalar == "\r" {
                // XML 1.0, 2.11: a line ends with a line feed, however it was written.
                if rest.first != "\n" { output.unicodeScalars.append("\n") }
            } else if scalar == "&", let end = rest.firstIndex(of: ";"),
                let resolved = resolve(String(rest[..<end]))
            {
                output.unicodeScalars.append(resolved)
                rest = rest[rest.index(after: end)...]
            } else {
                output.unicodeScalars.append(scalar)
            }
        }
        return output
    }

    private static func resolve(_ name: String) -> Unicode.Scalar? {
        switch name {
        case "amp": return "&"
        case "lt": return "<"
        case "gt": return ">"
        case "quot": return "\""
        case "apos": return "'"
        default: break
        }
        guard name.hasPrefix("#") else { return nil }
        let digits = name.dropFirst()
        let value =
            digits.hasPrefix("x")
            ? UInt32(digits.dropFirst(), radix: 16) : UInt32(digits, radix: 10)
        return value.flatMap(Unicode.Scalar.init)
    }

    /// A value as it may stand between quotes.
    static func encodeAttribute(_ value: String, quote: Character = "'") -> String {
        var output = ""
        for scalar in value.unicodeScalars {
            switch scalar {
            case "&": output += "&amp;"
            case "<": output += "&lt;"
            case "'" where quote == "'": output += "&apos;"
            case "\"" where quote == "\"": output += "&quot;"
            case "\n": output += "&#10;"
            case "\r": output += "&#13;"
            case "\t": output += "&#9;"
            default: output.unicodeScalars.append(scalar)
            }
        }
        return output
    }
}
