import CLinux
import Model

/// What a commit leaves in the segment: everything that a failover goes back to, besides RAM.
package struct CommitRecord: Hashable, Sendable, Codable {
    /// Equal to the epoch; says which of the two records of a slot is the newer one.
    package let sequence: UInt64
    /// The primary's generation at the commit.
    package let generation: Generation
    /// The epoch that was committed.
    package let epoch: Epoch
    /// Which of the two device-state slots belongs to it.
    package let stateSlot: UInt32
    package let stateCRC32C: UInt32
    /// Length of the device state in bytes.
    package let stateLengthBytes: UInt64
    /// Sequence number of the first undo entry of the following epoch: what a rollback begins with.
    package let undoStart: UInt64
    /// How far the output, input and disk logs belong to the commit.
    package let logs: LogPositions
}

private enum RecordOffset {
    static let sequence = 0, generation = 8, epoch = 16, stateSlot = 24, stateCRC = 28
    static let stateLength = 32, undoStart = 40, diskLog = 48, inputLog = 56, outputLog = 64
    static let crc = 124
}

extension CommitRecord {
    /// The slot, of records and of device states, that the commit of an epoch uses.
    static func slot(of epoch: Epoch) -> Int { Int(epoch.number & 1) }

    func encoded() -> [UInt8] {
        var block = FormatBlock(bytes: SegmentFormat.recordBytes)
        block.put(sequence, at: RecordOffset.sequence)
        block.put(generation.number, at: RecordOffset.generation)
        block.put(epoch.number, at: RecordOffset.epoch)
        block.put(stateSlot, at: RecordOffset.stateSlot)
        block.put(stateCRC32C, at: RecordOffset.stateCRC)
        block.put(stateLengthBytes, at: RecordOffset.stateLength)
        block.put(undoStart, at: RecordOffset.undoStart)
        block.put(logs.disk, at: RecordOffset.diskLog)
        block.put(logs.input, at: RecordOffset.inputLog)
        block.put(logs.output, at: RecordOffset.outputLog)
        block.seal(at: RecordOffset.crc)
        return block.bytes
    }

    /// The log positions of an epoch's record in place; nil when it is not that epoch's or damaged. No allocation.
    static func logs(at record: UnsafeRawPointer, of epoch: Epoch) -> LogPositions? {
        func word(_ offset: Int) -> UInt64 {
            UInt64(littleEndian: record.load(fromByteOffset: offset, as: UInt64.self))
        }
        let crc = UInt32(
            littleEndian: record.load(fromByteOffset: RecordOffset.crc, as: UInt32.self))
        guard crc == ftvm_crc32c(0, record, RecordOffset.crc),
            word(RecordOffset.epoch) == epoch.number
        else { return nil }
        return LogPositions(
            output: word(RecordOffset.outputLog), input: word(RecordOffset.inputLog),
            disk: word(RecordOffset.diskLog))
    }

    /// Reads the record of a slot; the cause of the error says what is wrong with it.
    init(records: UnsafeRawBufferPointer, slot: Int, stateSlotBytes: UInt64) throws {
        let block = FormatBlock(
            copying: records, at: slot * SegmentFormat.recordStride,
            bytes: SegmentFormat.recordBytes)
        func damaged(_ cause: String) -> FtvmError {
            FtvmError(.dataCorrupted, "commit record \(slot) is damaged", cause: cause)
        }
        guard block.isSealed(at: RecordOffset.crc) else { throw damaged("wrong CRC") }
        let generationNumber: UInt64 = block.get(at: RecordOffset.generation)
        let epochNumber: UInt64 = block.get(at: RecordOffset.epoch)
        guard generationNumber <= Generation.maximum, epochNumber <= Epoch.maximum,
            epochNumber > 0
        else { throw damaged("generation \(generationNumber), epoch \(epochNumber)") }
        sequence = block.get(at: RecordOffset.sequence)
        generation = Generation(generationNumber)
        epoch = Epoch(epochNumber)
        stateSlot = block.get(at: RecordOffset.stateSlot)
        stateCRC32C = block.get(at: RecordOffset.stateCRC)
        stateLengthBytes = block.get(at: RecordOffset.stateLength)
        undoStart = block.get(at: RecordOffset.undoStart)
        logs = LogPositions(
            output: block.get(at: RecordOffset.outputLog),
            input: block.get(at: RecordOffset.inputLog), disk: block.get(at: RecordOffset.diskLog))
        guard sequence == epochNumber, Int(stateSlot) == slot, CommitRecord.slot(of: epoch) == slot
        else { throw damaged("sequence \(sequence), epoch \(epoch), state slot \(stateSlot)") }
        guard stateLengthBytes <= stateSlotBytes else {
            throw damaged("device state of \(stateLengthBytes) bytes")
        }
    }
}

/// An entry of the undo index; 32 bytes in the segment.
package struct UndoEntry: Hashable, Sendable, Codable {
    /// Number of the entry since the segment was made; it stands at `sequence % capacity`.
    package let sequence: UInt64
    package let page: UInt64
    /// The epoch that the page was first written in.
    package let epoch: Epoch
    /// The generation of the primary that logged it.
    package let generation: Generation
    package let imageCRC32C: UInt32

    private enum Offset { static let sequence = 0, page = 8, position = 16, image = 24, crc = 28 }

    /// Writes an entry. Time-critical: no allocation.
    @inline(__always)
    static func write(
        to slot: UnsafeMutableRawPointer, sequence: UInt64, page: UInt64, positionWord: UInt64,
        imageCRC32C: UInt32
    ) {
        slot.storeBytes(of: sequence.littleEndian, toByteOffset: Offset.sequence, as: UInt64.self)
        slot.storeBytes(of: page.littleEndian, toByteOffset: Offset.page, as: UInt64.self)
        slot.storeBytes(
            of: positionWord.littleEndian, toByteOffset: Offset.position, as: UInt64.self)
        slot.storeBytes(of: imageCRC32C.littleEndian, toByteOffset: Offset.image, as: UInt32.self)
        slot.storeBytes(
            of: ftvm_crc32c(0, slot, Offset.crc).littleEndian, toByteOffset: Offset.crc,
            as: UInt32.self)
    }

    /// Reads an entry; nil if its CRC is wrong.
    @inline(__always)
    init?(from slot: UnsafeRawPointer) {
        let crc = UInt32(littleEndian: slot.load(fromByteOffset: Offset.crc, as: UInt32.self))
        guard crc == ftvm_crc32c(0, slot, Offset.crc) else { return nil }
        sequence = UInt64(littleEndian: slot.load(fromByteOffset: Offset.sequence, as: UInt64.self))
        page = UInt64(littleEndian: slot.load(fromByteOffset: Offset.page, as: UInt64.self))
        let position = SegmentPosition(
            word: UInt64(
                littleEndian: slot.load(fromByteOffset: Offset.position, as: UInt64.self)))
        epoch = position.epoch
        generation = position.generation
        imageCRC32C = UInt32(
            littleEndian: slot.load(fromByteOffset: Offset.image, as: UInt32.self))
    }
}
