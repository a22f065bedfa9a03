import CLinux
import Model

/// Numbers of the segment's format; `Documentation/SegmentFormat.md` is its description.
package enum SegmentFormat {
    /// "FTVM-SEG" as a little-endian word.
    package static let magic: UInt64 = 0x4745_532D_4D56_5446
    package static let majorVersion: UInt32 = 1
    package static let minorVersion: UInt32 = 2

    static let headerBytes = 512
    static let liveOffset: UInt64 = 4096
    static let recordsOffset: UInt64 = 8192
    static let recordStride = 512
    static let recordBytes = 128
    static let statesOffset: UInt64 = 12288
    static let stateSlots: UInt64 = 2
    static let undoEntryBytes = 32
    /// Offsets of the live words from the beginning of the live area.
    static let livePosition = 0
    static let liveUndoHead = 64
    static let liveFlags = 128
    static let liveOverflowEpoch = 192
    static let liveReleaseAddress = 256
    static let liveOutputHead = 320
    static let liveReleased = 384
    static let liveInputHead = 448
    static let liveInputClosed = 512
    static let numaWords = 16

    /// Larger than any segment that can exist; keeps the arithmetic far from overflow.
    static let largestBytes: UInt64 = 1 << 48
}

/// A stretch of the control file; all zero for an area that the segment does not have.
package struct SegmentArea: Hashable, Sendable, Codable {
    /// From the beginning of the control file, in bytes.
    package let offset: UInt64
    package let bytes: UInt64
    static let none = SegmentArea(offset: 0, bytes: 0)
    var end: UInt64 { offset + bytes }
}

/// The header: everything about a segment that never changes after its creation.
package struct SegmentHeader: Hashable, Sendable {
    package let majorVersion: UInt32
    package let minorVersion: UInt32
    /// UUID of the domain, lower case with dashes.
    package let uuid: String
    let uuidBytes: [UInt8]
    /// Guest RAM in bytes.
    package let memoryBytes: UInt64
    /// Guest RAM rounded up to whole pages of the pool: the sizes of the files `object` and `ram`.
    package let ramFileBytes: UInt64
    /// Of it, what is in the file `object`; 0: there is none. Since version 1.2.
    package let objectBytes: UInt64
    package let controlFileBytes: UInt64
    /// The unit of tracking and of the undo log: the pool's page size.
    package let pageSizeBytes: UInt64
    package let pageCount: UInt64
    /// Entries that the undo log holds.
    package let undoCapacity: UInt64
    /// The generation that the segment was created with.
    package let creationGeneration: Generation
    package let stateSlotBytes: UInt64
    package let live: SegmentArea
    package let records: SegmentArea
    package let states: SegmentArea
    package let undoIndex: SegmentArea
    package let undoImages: SegmentArea
    /// Reserved for the disk log of a later minor version.
    package let diskLog: SegmentArea
    /// Rings of frames, since version 1.1; none in a segment of version 1.0.
    package let inputLog: SegmentArea
    package let outputLog: SegmentArea
    /// NUMA nodes that the memory was asked from, rising; empty: no wish.
    package let numaNodes: [Int]
}

extension SegmentHeader {
    /// Lays out a new segment.
    init(_ specification: SegmentSpecification, pageSizeBytes: UInt64) throws {
        let largest = SegmentFormat.largestBytes
        guard specification.memoryBytes > 0, specification.memoryBytes % 4096 == 0,
            specification.memoryBytes <= largest
        else {
            throw FtvmError(
                .invalidArgument,
                "a segment cannot have \(specification.memoryBytes) bytes of guest RAM",
                advice: "give a positive multiple of 4096")
        }
        let undoBytes =
            specification.undoLogBytes
            ?? max(
                specification.memoryBytes / 4, SegmentSpecification.minimumUndoLogBytes,
                // A quarter of a small guest is a few huge pages, and an epoch touches more; with one entry for each page no
                // epoch fills it.
                min(
                    specification.memoryBytes, SegmentSpecification.usualUndoEntries * pageSizeBytes
                ))
        guard undoBytes >= pageSizeBytes, undoBytes <= largest else {
            throw FtvmError(
                .invalidArgument, "an undo log of \(undoBytes) bytes is not possible",
                advice: "it must hold at least one page, here \(pageSizeBytes) bytes")
        }
        guard specification.stateSlotBytes > 0, specification.stateSlotBytes <= 1 << 32 else {
            throw FtvmError(
                .invalidArgument,
                "room of \(specification.stateSlotBytes) bytes for the device state is not possible"
            )
        }
        for bytes in [specification.outputLogBytes, specification.inputLogBytes] {
            guard bytes >= SegmentSpecification.minimumFrameLogBytes, bytes <= 1 << 32 else {
                throw FtvmError(
                    .invalidArgument, "a log of \(bytes) bytes for frames is not possible",
                    advice: "give \(SegmentSpecification.minimumFrameLogBytes) bytes to 4 GiB")
            }
        }
        majorVersion = SegmentFormat.majorVersion
        minorVersion = SegmentFormat.minorVersion
        uuidBytes = try SegmentSpecification.uuidBytes(specification.uuid)
        uuid = SegmentHeader.uuidText(uuidBytes)
        memoryBytes = specification.memoryBytes
        objectBytes = specification.objectBytes
        guard objectBytes % pageSizeBytes == 0, objectBytes <= memoryBytes else {
            throw FtvmError(
                .invalidArgument, "a memory object of \(objectBytes) bytes cannot be adopted",
                cause: "pages have \(pageSizeBytes) bytes, the guest's RAM \(memoryBytes)")
        }
        // The file `ram` is never empty.
        ramFileBytes = max(
            roundUp(memoryBytes, to: pageSizeBytes), objectBytes + pageSizeBytes)
        self.pageSizeBytes = pageSizeBytes
        pageCount = ramFileBytes / pageSizeBytes
        undoCapacity = undoBytes / pageSizeBytes
        creationGeneration = specification.generation
        stateSlotBytes = roundUp(specification.stateSlotBytes, to: 4096)
        live = SegmentArea(offset: SegmentFormat.liveOffset, bytes: 4096)
        records = SegmentArea(offset: SegmentFormat.recordsOffset, bytes: 4096)
        states = SegmentArea(
            offset: SegmentFormat.statesOffset, bytes: stateSlotBytes * SegmentFormat.stateSlots)
        undoIndex = SegmentArea(
            offset: states.end,
            bytes: roundUp(undoCapacity * UInt64(SegmentFormat.undoEntryBytes), to: 4096))
        outputLog = SegmentArea(
            offset: undoIndex.end, bytes: roundUp(specification.outputLogBytes, to: 4096))
        inputLog = SegmentArea(
            offset: outputLog.end, bytes: roundUp(specification.inputLogBytes, to: 4096))
        undoImages = SegmentArea(
            offset: roundUp(inputLog.end, to: pageSizeBytes), bytes: undoCapacity * pageSizeBytes)
        diskLog = .none
        controlFileBytes = roundUp(undoImages.end, to: pageSizeBytes)
        numaNodes = Set(specification.numaNodes).sorted()
    }

    static func uuidText(_ bytes: [UInt8]) -> String {
        var text = ""
        for (index, byte) in bytes.enumerated() {
            if [4, 6, 8, 10].contains(index) { text += "-" }
            text += String(byte >> 4, radix: 16) + String(byte & 15, radix: 16)
        }
        return text
    }
}

/// Places of the header's fields, in bytes from its beginning.
private enum HeaderOffset {
    static let magic = 0, majorVersion = 8, minorVersion = 12, uuid = 16
    static let memoryBytes = 32, ramFileBytes = 40, controlFileBytes = 48, pageSizeBytes = 56
    static let pageCount = 64, undoCapacity = 72, creationGeneration = 80, stateSlotBytes = 88
    static let areas = 96, numaNodes = 208, outputLog = 336, objectBytes = 352, crc = 508
}

extension SegmentHeader {
    private var areas: [SegmentArea] {
        [live, records, states, undoIndex, undoImages, diskLog, inputLog]
    }

    /// The header's 512 bytes with their CRC.
    func encoded() -> [UInt8] {
        var block = FormatBlock(bytes: SegmentFormat.headerBytes)
        block.put(SegmentFormat.magic, at: HeaderOffset.magic)
        block.put(majorVersion, at: HeaderOffset.majorVersion)
        block.put(minorVersion, at: HeaderOffset.minorVersion)
        for (index, byte) in uuidBytes.enumerated() {
            block.put(byte, at: HeaderOffset.uuid + index)
        }
        block.put(memoryBytes, at: HeaderOffset.memoryBytes)
        block.put(ramFileBytes, at: HeaderOffset.ramFileBytes)
        block.put(controlFileBytes, at: HeaderOffset.controlFileBytes)
        block.put(pageSizeBytes, at: HeaderOffset.pageSizeBytes)
        block.put(pageCount, at: HeaderOffset.pageCount)
        block.put(undoCapacity, at: HeaderOffset.undoCapacity)
        block.put(creationGeneration.number, at: HeaderOffset.creationGeneration)
        block.put(stateSlotBytes, at: HeaderOffset.stateSlotBytes)
        for (index, area) in areas.enumerated() {
            block.put(area.offset, at: HeaderOffset.areas + 16 * index)
            block.put(area.bytes, at: HeaderOffset.areas + 16 * index + 8)
        }
        block.put(outputLog.offset, at: HeaderOffset.outputLog)
        block.put(outputLog.bytes, at: HeaderOffset.outputLog + 8)
        block.put(objectBytes, at: HeaderOffset.objectBytes)
        for word in 0..<SegmentFormat.numaWords {
            let bits = numaNodes.filter { $0 / 64 == word }.reduce(UInt64(0)) {
                $0 | 1 << ($1 % 64)
            }
            block.put(bits, at: HeaderOffset.numaNodes + 8 * word)
        }
        block.seal(at: HeaderOffset.crc)
        return block.bytes
    }

    /// Reads and checks the header at the beginning of a control file.
    ///
    /// Throws `.dataCorrupted` or, for a version that this program does not know, `.unsupported`.
    init(controlFile: UnsafeRawBufferPointer) throws {
        guard controlFile.count >= SegmentFormat.headerBytes else {
            throw FtvmError(
                .dataCorrupted, "the segment's control file has no header",
                cause: "it is \(controlFile.count) bytes long")
        }
        let block = FormatBlock(copying: controlFile, at: 0, bytes: SegmentFormat.headerBytes)
        let magic: UInt64 = block.get(at: HeaderOffset.magic)
        guard magic == SegmentFormat.magic else {
            throw FtvmError(
                .dataCorrupted, "this is not a segment",
                cause: "magic number \(String(magic, radix: 16))")
        }
        majorVersion = block.get(at: HeaderOffset.majorVersion)
        minorVersion = block.get(at: HeaderOffset.minorVersion)
        guard majorVersion == SegmentFormat.majorVersion else {
            throw FtvmError(
                .unsupported,
                "the segment has format \(majorVersion).\(minorVersion), "
                    + "this program knows \(SegmentFormat.majorVersion)",
                advice: "use the version of ftvm that made the segment")
        }
        guard block.isSealed(at: HeaderOffset.crc) else {
            throw FtvmError(.dataCorrupted, "the segment's header is damaged", cause: "wrong CRC")
        }
        uuidBytes = (0..<16).map { block.get(at: HeaderOffset.uuid + $0) }
        uuid = SegmentHeader.uuidText(uuidBytes)
        memoryBytes = block.get(at: HeaderOffset.memoryBytes)
        ramFileBytes = block.get(at: HeaderOffset.ramFileBytes)
        objectBytes = block.get(at: HeaderOffset.objectBytes)
        controlFileBytes = block.get(at: HeaderOffset.controlFileBytes)
        pageSizeBytes = block.get(at: HeaderOffset.pageSizeBytes)
        pageCount = block.get(at: HeaderOffset.pageCount)
        undoCapacity = block.get(at: HeaderOffset.undoCapacity)
        stateSlotBytes = block.get(at: HeaderOffset.stateSlotBytes)
        let areas = (0..<7).map { index in
            SegmentArea(
                offset: block.get(at: HeaderOffset.areas + 16 * index),
                bytes: block.get(at: HeaderOffset.areas + 16 * index + 8))
        }
        (live, records, states) = (areas[0], areas[1], areas[2])
        (undoIndex, undoImages, diskLog, inputLog) = (areas[3], areas[4], areas[5], areas[6])
        outputLog = SegmentArea(
            offset: block.get(at: HeaderOffset.outputLog),
            bytes: block.get(at: HeaderOffset.outputLog + 8))
        numaNodes = (0..<SegmentFormat.numaWords * 64).filter { node in
            let word: UInt64 = block.get(at: HeaderOffset.numaNodes + 8 * (node / 64))
            return word >> (node % 64) & 1 == 1
        }
        let generation: UInt64 = block.get(at: HeaderOffset.creationGeneration)
        creationGeneration = Generation(min(generation, Generation.maximum))
        if let contradiction = contradiction(generation: generation) {
            throw FtvmError(
                .dataCorrupted, "the segment's header contradicts itself", cause: contradiction)
        }
    }

    /// What cannot be true in a header whose CRC is right; nil if all is well. Everything that the
    /// code computes addresses from is checked here, once.
    private func contradiction(generation: UInt64) -> String? {
        let largest = SegmentFormat.largestBytes
        if generation > Generation.maximum { return "generation \(generation)" }
        if pageSizeBytes < 4096 || pageSizeBytes > 1 << 34 || pageSizeBytes.nonzeroBitCount != 1 {
            return "pages of \(pageSizeBytes) bytes"
        }
        if memoryBytes == 0 || memoryBytes > ramFileBytes || ramFileBytes > largest
            || controlFileBytes > 2 * largest
        {
            return "\(memoryBytes) bytes of RAM in a file of \(ramFileBytes)"
        }
        if ramFileBytes % pageSizeBytes != 0 || pageCount != ramFileBytes / pageSizeBytes {
            return "\(pageCount) pages in \(ramFileBytes) bytes"
        }
        if objectBytes % pageSizeBytes != 0 || objectBytes >= ramFileBytes {
            return "\(objectBytes) bytes of RAM in another file"
        }
        if stateSlotBytes == 0 || stateSlotBytes > 1 << 32 {
            return "state of \(stateSlotBytes) bytes"
        }
        if undoCapacity == 0 || undoCapacity > largest / pageSizeBytes {
            return "an undo log of \(undoCapacity) entries"
        }
        let needed: [(String, SegmentArea, UInt64, UInt64)] = [
            ("live words", live, 512, 64),
            ("commit records", records, UInt64(2 * SegmentFormat.recordStride), 64),
            ("device states", states, stateSlotBytes * SegmentFormat.stateSlots, 4096),
            ("undo index", undoIndex, undoCapacity * UInt64(SegmentFormat.undoEntryBytes), 64),
            ("undo images", undoImages, undoCapacity * pageSizeBytes, pageSizeBytes),
            ("disk log", diskLog, 0, 1),
            ("input log", inputLog, 0, 8), ("output log", outputLog, 0, 8),
        ]
        for log in [inputLog, outputLog] where log.bytes > 0 {
            if log.bytes < SegmentSpecification.minimumFrameLogBytes || log.bytes % 8 != 0 {
                return "a frame log of \(log.bytes) bytes"
            }
        }
        var end = UInt64(SegmentFormat.headerBytes)
        let present = needed.filter { $0.1.bytes > 0 || $0.2 > 0 }
        for (name, area, bytes, alignment) in present.sorted(by: { $0.1.offset < $1.1.offset }) {
            guard area.offset >= end, area.offset % alignment == 0, area.bytes >= bytes,
                area.offset <= controlFileBytes, area.bytes <= controlFileBytes - area.offset
            else { return "\(name) at \(area.offset), \(area.bytes) bytes" }
            end = area.end
        }
        return nil
    }
}

/// A block of the format while it is put together or taken apart: little-endian fields and a
/// CRC-32C over everything before the CRC. For blocks that are not time-critical.
struct FormatBlock {
    private(set) var bytes: [UInt8]

    init(bytes count: Int) { bytes = [UInt8](repeating: 0, count: count) }

    init(copying source: UnsafeRawBufferPointer, at offset: Int, bytes count: Int) {
        precondition(offset >= 0 && count >= 0 && offset + count <= source.count)
        bytes = [UInt8](UnsafeRawBufferPointer(rebasing: source[offset..<offset + count]))
    }

    mutating func put<Number: FixedWidthInteger>(_ value: Number, at offset: Int) {
        withUnsafeBytes(of: value.littleEndian) { source in
            for (index, byte) in source.enumerated() { bytes[offset + index] = byte }
        }
    }

    func get<Number: FixedWidthInteger>(at offset: Int) -> Number {
        bytes.withUnsafeBytes {
            Number(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: Number.self))
        }
    }

    mutating func seal(at offset: Int) { put(crc(before: offset), at: offset) }

    func isSealed(at offset: Int) -> Bool { get(at: offset) == crc(before: offset) }

    private func crc(before offset: Int) -> UInt32 {
        bytes.withUnsafeBytes { ftvm_crc32c(0, $0.baseAddress, offset) }
    }
}
