import Model

extension XMLTree {
    /// The most that a document may have, in bytes and in nesting: far above any domain's, and low
    /// enough that a damaged one cannot exhaust memory or stack.
    package static let maximumBytes = 16 << 20
    package static let maximumDepth = 128

    /// Parses a document.
    /// - Throws: `FtvmError(.invalidArgument)` that says what is wrong and in which line.
    package init(parsing text: String) throws {
        guard text.utf8.count <= XMLTree.maximumBytes else {
            throw FtvmError(
                .invalidArgument, "XML document is too large",
                cause: "\(text.utf8.count) bytes, at most \(XMLTree.maximumBytes)")
        }
        var reader = XMLReader(bytes: Array(text.utf8))
        self = try reader.document()
    }
}

/// A cursor over the document's bytes. Markup is ASCII, so bytes are enough to find it; what lies
/// between is kept as it is.
struct XMLReader {
    private let bytes: [UInt8]
    private var position = 0

    init(bytes: [UInt8]) { self.bytes = bytes }

    mutating func document() throws -> XMLTree {
        for (index, byte) in bytes.enumerated() where byte < 0x20 && !XMLText.isSpace(byte) {
            position = index
            throw error("control character \(byte)")
        }
        let start = position
        try skipMiscellaneous()
        let prolog = slice(start)
        guard peek("<") else { throw error("no root element") }
        let root = try element(depth: 0)
        let tail = position
        try skipMiscellaneous()
        guard position == bytes.count else { throw error("something follows the root element") }
        return XMLTree(prolog: prolog, root: root, epilog: slice(tail))
    }

    // MARK: Pieces

    private mutating func element(depth: Int) throws -> XMLTree.Element {
        guard depth < XMLTree.maximumDepth else { throw error("nested too deeply") }
        position += 1
        var element = XMLTree.Element(try name())
        while true {
            let lead = space()
            if take("/>") {
                element.startTail = lead
                return element
            }
            if take(">") {
                element.startTail = lead
                element.isEmptyTag = false
                break
            }
            guard !lead.isEmpty else { throw error("no white space before an attribute") }
            let attribute = try attribute(lead: lead)
            guard !element.attributes.contains(where: { $0.name == attribute.name }) else {
                throw error("attribute \(attribute.name) is there twice")
            }
            element.attributes.append(attribute)
        }
        while let node = try content(depth: depth) { element.children.append(node) }
        guard take("</") else { throw error("<\(element.name)> is not closed") }
        let closing = try name()
        guard closing == element.name else {
            throw error("</\(closing)> closes <\(element.name)>")
        }
        element.endTail = space()
        guard take(">") else { throw error("</\(closing) is not finished") }
        return element
    }

    /// The next piece of an element's content; nil at its end tag or at the end of the document.
    private mutating func content(depth: Int) throws -> XMLTree.Node? {
        guard position < bytes.count, !peek("</") else { return nil }
        let start = position
        if peek("<!--") {
            try skip(past: "-->", from: 4, what: "comment")
            return .comment(slice(start))
        }
        if peek("<![CDATA[") {
            try skip(past: "]]>", from: 9, what: "CDATA section")
            return .cdata(slice(start))
        }
        if peek("<?") {
            try skip(past: "?>", from: 2, what: "processing instruction")
            return .instruction(slice(start))
        }
        if peek("<!") { throw error("declaration inside an element") }
        if peek("<") { return .element(try element(depth: depth + 1)) }
        while position < bytes.count, bytes[position] != UInt8(ascii: "<") { position += 1 }
        try checkReferences(start..<position)
        return .text(slice(start))
    }

    private mutating func attribute(lead: String) throws -> XMLTree.Attribute {
        let attributeName = try name()
        let start = position
        _ = space()
        guard take("=") else { throw error("attribute \(attributeName) has no value") }
        _ = space()
        let equals = slice(start)
        guard position < bytes.count else { throw error("attribute \(attributeName) has no value") }
        let quote = bytes[position]
        guard quote == UInt8(ascii: "'") || quote == UInt8(ascii: "\"") else {
            throw error("the value of \(attributeName) is not in quotes")
        }
        position += 1
        let valueStart = position
        while position < bytes.count, bytes[position] != quote {
            guard bytes[position] != UInt8(ascii: "<") else {
                throw error("< in the value of \(attributeName)")
            }
            position += 1
        }
        guard position < bytes.count else {
            throw error("the value of \(attributeName) is not closed")
        }
        try checkReferences(valueStart..<position)
        let raw = slice(valueStart)
        position += 1
        return XMLTree.Attribute(
            lead: lead, name: attributeName, equals: equals,
            quote: Character(Unicode.Scalar(quote)), raw: raw)
    }

    /// Comments, instructions, white space and a document type: what may stand outside the root.
    private mutating func skipMiscellaneous() throws {
        while true {
            _ = space()
            if peek("<!--") {
                try skip(past: "-->", from: 4, what: "comment")
            } else if peek("<?") {
                try skip(past: "?>", from: 2, what: "processing instruction")
            } else if peek("<!DOCTYPE") {
                try skipDocumentType()
            } else {
                return
            }
        }
    }

    private mutating func skipDocumentType() throws {
        var isInSubset = false
        while position < bytes.count {
            let byte = bytes[position]
            if peek("<!--") {
                try skip(past: "-->", from: 4, what: "comment")
                continue
            } else if peek("<?") {
                try skip(past: "?>", from: 2, what: "processing instruction")
                continue
            } else if byte == UInt8(ascii: "\"") || byte == UInt8(ascii: "'") {
                position += 1
                while position < bytes.count, bytes[position] != byte { position += 1 }
            } else if byte == UInt8(ascii: "[") {
                isInSubset = true
            } else if byte == UInt8(ascii: "]") {
                isInSubset = false
            } else if byte == UInt8(ascii: ">") && !isInSubset {
                position += 1
                return
            }
            position += 1
        }
        throw error("the document type is not closed")
    }

    // MARK: Bytes

    private mutating func name() throws -> String {
        let start = position
        while position < bytes.count, XMLReader.isNameByte(bytes[position]) { position += 1 }
        guard position > start else { throw error("a name is missing") }
        let first = bytes[start]
        guard !(UInt8(ascii: "0")...UInt8(ascii: "9")).contains(first),
            first != UInt8(ascii: "-"), first != UInt8(ascii: ".")
        else { throw error("a name begins with \(Character(Unicode.Scalar(first)))") }
        return slice(start)
    }

    private static func isNameByte(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
            UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "_"), UInt8(ascii: ":"),
            UInt8(ascii: "-"), UInt8(ascii: "."), 0x80...:
            true
        default: false
        }
    }

    /// Every `&` must begin a reference that ends.
    private mutating func checkReferences(_ range: Range<Int>) throws {
        var index = range.lowerBound
        while index < range.upperBound {
            guard bytes[index] == UInt8(ascii: "&") else {
                index += 1
                continue
            }
            var end = index + 1
            while end < range.upperBound,
                bytes[end] == UInt8(ascii: "#") && end == index + 1
                    || XMLReader.isNameByte(bytes[end])
            { end += 1 }
            guard end > index + 1, end < range.upperBound, bytes[end] == UInt8(ascii: ";") else {
                position = index
                throw error("& that begins no entity reference")
            }
            index = end + 1
        }
    }

    private mutating func space() -> String {
        let start = position
        while position < bytes.count, XMLText.isSpace(bytes[position]) { position += 1 }
        return slice(start)
    }

    private func peek(_ text: StaticString) -> Bool {
        let count = text.utf8CodeUnitCount
        guard position + count <= bytes.count else { return false }
        for offset in 0..<count where bytes[position + offset] != text.utf8Start[offset] {
            return false
        }
        return true
    }

    private mutating func take(_ text: StaticString) -> Bool {
        guard peek(text) else { return false }
        position += text.utf8CodeUnitCount
        return true
    }

    private mutating func skip(past end: StaticString, from offset: Int, what: String) throws {
        let start = position
        position += offset
        while position < bytes.count {
            if take(end) { return }
            position += 1
        }
        position = start
        throw error("\(what) is not closed")
    }

    private func slice(_ start: Int) -> String {
        String(decoding: bytes[start..<position], as: UTF8.self)
    }

    private func error(_ what: String) -> FtvmError {
        let line = 1 + bytes[..<min(position, bytes.count)].count { $0 == 0x0A }
        return FtvmError(
            .invalidArgument, "XML document is not well-formed", cause: "line \(line): \(what)")
    }
}
