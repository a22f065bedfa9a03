import Model

/// What a new segment must be like.
package struct SegmentSpecification: Sendable {
    /// 1...128 characters of `A-Z a-z 0-9 . _ -`, not beginning with a dot.
    package var name: String
    /// UUID of the domain, 32 hexadecimal digits with or without dashes.
    package var uuid: String
    /// Guest RAM in bytes, a multiple of 4096.
    package var memoryBytes: UInt64
    /// Images that the undo log holds, in bytes; nil: a quarter of the RAM, at least 64 MiB.
    package var undoLogBytes: UInt64?
    /// Room for one saved device state in bytes; there are two. Rounded up to 4 KiB.
    package var stateSlotBytes: UInt64
    /// Room for frames that wait for their commit, in bytes, and for frames that a promoted guest would be given
    /// again. Rounded up to 4 KiB.
    package var outputLogBytes: UInt64
    package var inputLogBytes: UInt64
    /// Size of the memory object that a running QEMU has its main memory in, and that becomes the first part of the
    /// segment's RAM; 0: there is none. A whole number of the pool's pages.
    package var objectBytes: UInt64 = 0
    /// Size of the file for the disks' redo log; 0: the guest has no disks to protect.
    package var diskLogFileBytes: UInt64 = 0
    /// NUMA nodes that the segment's memory must come from; empty: wherever the kernel puts it.
    package var numaNodes: [Int]
    /// The generation that may write first.
    package var generation: Generation

    package static let defaultStateSlotBytes: UInt64 = 4 << 20
    package static let minimumUndoLogBytes: UInt64 = 64 << 20
    /// Entries that a log has without a wish for its size, if the guest has so many pages.
    package static let usualUndoEntries: UInt64 = 512
    package static let defaultOutputLogBytes: UInt64 = 16 << 20
    package static let defaultInputLogBytes: UInt64 = 8 << 20
    /// A few of the largest frames.
    package static let minimumFrameLogBytes: UInt64 = 256 << 10

    package init(
        name: String, uuid: String, memoryBytes: UInt64, undoLogBytes: UInt64? = nil,
        stateSlotBytes: UInt64 = SegmentSpecification.defaultStateSlotBytes,
        outputLogBytes: UInt64 = SegmentSpecification.defaultOutputLogBytes,
        inputLogBytes: UInt64 = SegmentSpecification.defaultInputLogBytes,
        numaNodes: [Int] = [], generation: Generation = Generation(1)
    ) {
        self.name = name
        self.uuid = uuid
        self.memoryBytes = memoryBytes
        self.undoLogBytes = undoLogBytes
        self.stateSlotBytes = stateSlotBytes
        self.outputLogBytes = outputLogBytes
        self.inputLogBytes = inputLogBytes
        self.numaNodes = numaNodes
        self.generation = generation
    }

    /// Refuses a name that could leave the pool's directory or be taken for one of its own files.
    package static func validateName(_ name: String) throws {
        let allowed = name.utf8.allSatisfy { byte in
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "."), UInt8(ascii: "_"),
                UInt8(ascii: "-"):
                true
            default: false
            }
        }
        guard allowed, (1...128).contains(name.utf8.count), !name.hasPrefix(".") else {
            throw FtvmError(
                .invalidArgument, "'\(name)' cannot be the name of a segment",
                advice: "use 1 to 128 characters of A-Z a-z 0-9 . _ - that do not begin with a dot")
        }
    }

    /// The UUID's 16 bytes in the order they are written.
    static func uuidBytes(_ text: String) throws -> [UInt8] {
        let digits = text.utf8.filter { $0 != UInt8(ascii: "-") }.map { byte in
            Character(UnicodeScalar(byte)).hexDigitValue
        }
        var bytes: [UInt8] = []
        for index in stride(from: 0, to: digits.count - 1, by: 2) {
            guard let high = digits[index], let low = digits[index + 1] else { break }
            bytes.append(UInt8(high << 4 | low))
        }
        guard digits.count == 32, bytes.count == 16 else {
            throw FtvmError(.invalidArgument, "'\(text)' is not a UUID")
        }
        return bytes
    }
}
