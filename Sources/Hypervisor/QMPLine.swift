/// One line of QMP, looked at without being parsed: what it is, and where its values stand. Cheap
/// enough for the three commands of an epoch, and strict enough that what is not a JSON object is
/// not taken for an answer.
///
/// Protocol: https://www.qemu.org/docs/master/interop/qmp-spec.html
struct QMPLine {
    enum Kind: Equatable {
        /// `{"QMP": …}`, once after connecting.
        case greeting
        /// `{"return": …}`.
        case success
        /// `{"error": …}`.
        case failure
        /// `{"event": …}`.
        case event
        /// Not QMP.
        case garbage
    }

    let kind: Kind
    /// Where the value of `QMP`, `return`, `error` or `event` stands in the line.
    let value: Range<Int>

    init(_ line: UnsafeRawBufferPointer) {
        var scanner = JSONScanner(line)
        var kind = Kind.garbage
        var value = 0..<0
        guard scanner.enterObject() else {
            self.kind = .garbage
            self.value = value
            return
        }
        while let key = scanner.nextKey() {
            guard let found = scanner.skipValue() else { break }
            let thisKind: Kind? =
                if scanner.matches(key, "return") {
                    .success
                } else if scanner.matches(key, "event") {
                    .event
                } else if scanner.matches(key, "error") {
                    .failure
                } else if scanner.matches(key, "QMP") {
                    .greeting
                } else {
                    nil
                }
            guard let thisKind else { continue }
            kind = thisKind
            value = found
        }
        self.kind = scanner.isComplete ? kind : .garbage
        self.value = value
    }
}

/// Walks over the top level of one JSON object without building anything.
struct JSONScanner {
    private let bytes: UnsafeRawBufferPointer
    private var position = 0
    private var isFirst = true
    /// The object was closed and nothing but white space follows.
    private(set) var isComplete = false

    init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

    mutating func enterObject() -> Bool { take(UInt8(ascii: "{")) }

    /// The range of the next key's text, without its quotes; nil at the end or when malformed.
    mutating func nextKey() -> Range<Int>? {
        if take(UInt8(ascii: "}")) {
            skipSpace()
            isComplete = position == bytes.count
            return nil
        }
        if !isFirst { guard take(UInt8(ascii: ",")) else { return nil } }
        isFirst = false
        skipSpace()
        guard let quoted = skipString() else { return nil }
        guard take(UInt8(ascii: ":")) else { return nil }
        return quoted.lowerBound + 1..<quoted.upperBound - 1
    }

    /// The range of the value that begins here; nil when it does not end.
    mutating func skipValue() -> Range<Int>? {
        skipSpace()
        let start = position
        var depth = 0
        while position < bytes.count {
            switch bytes[position] {
            case UInt8(ascii: "\""):
                guard skipString() != nil else { return nil }
                if depth == 0 { return start..<position }
                continue
            case UInt8(ascii: "{"), UInt8(ascii: "["):
                depth += 1
            case UInt8(ascii: "}"), UInt8(ascii: "]"):
                if depth == 0 { return position > start ? start..<position : nil }
                depth -= 1
                if depth == 0 {
                    position += 1
                    return start..<position
                }
            case UInt8(ascii: ",") where depth == 0:
                return position > start ? start..<position : nil
            default: break
            }
            position += 1
        }
        return nil
    }

    func matches(_ range: Range<Int>, _ text: StaticString) -> Bool {
        guard range.count == text.utf8CodeUnitCount else { return false }
        for offset in 0..<range.count
        where bytes[range.lowerBound + offset] != text.utf8Start[offset] {
            return false
        }
        return true
    }

    private mutating func skipString() -> Range<Int>? {
        let start = position
        guard position < bytes.count, bytes[position] == UInt8(ascii: "\"") else { return nil }
        position += 1
        while position < bytes.count {
            switch bytes[position] {
            case UInt8(ascii: "\\"): position += 2
            case UInt8(ascii: "\""):
                position += 1
                return start..<position
            default: position += 1
            }
        }
        return nil
    }

    private mutating func take(_ byte: UInt8) -> Bool {
        skipSpace()
        guard position < bytes.count, bytes[position] == byte else { return false }
        position += 1
        return true
    }

    private mutating func skipSpace() {
        while position < bytes.count, bytes[position] <= 0x20 { position += 1 }
    }
}
