import CLinux
import Model

/// A frame in a log, in place: valid until its space is used again.
package struct LoggedFrame {
    /// Positions of the record: its first byte, and where the next one begins.
    package let start: UInt64
    package let end: UInt64
    /// The NIC's number, in the order of the domain's XML.
    package let nic: Int
    /// How many of the first bytes are a virtio-net header.
    package let headerBytes: Int
    package let bytes: UnsafeRawBufferPointer
}

/// What stands at a position of a frame log.
package enum FrameLogItem {
    case frame(LoggedFrame)
    /// Nothing more before the limit.
    case end
    /// The record does not pass its checks; where the next one begins is not known.
    case damaged
}

/// A ring of frames in the segment (`Documentation/SegmentFormat.md`). One writer. Nothing here allocates.
///
/// Order of stores: payload, record header, head. A writer that is killed before the head grew has logged nothing.
/// Positions are bytes since the segment was made; the ring holds them at `position % capacityBytes`.
package final class FrameLog: @unchecked Sendable {
    package let capacityBytes: UInt64
    private let base: UnsafeMutableRawPointer
    private let headWord: UnsafeMutablePointer<UInt64>
    private let writable: Bool

    static let recordHeaderBytes = 24
    /// QEMU's own limit of a frame with its header (include/net/net.h, NET_BUFSIZE).
    package static let largestFrameBytes = 4096 + 65536

    private enum Offset {
        static let length = 0, nic = 4, kind = 6, headerBytes = 7, position = 8, payloadCRC = 16
        static let headerCRC = 20
    }
    private static let frameKind: UInt8 = 1
    private static let skipKind: UInt8 = 2

    init(
        base: UnsafeMutableRawPointer, capacityBytes: UInt64,
        headWord: UnsafeMutablePointer<UInt64>, writable: Bool
    ) {
        self.base = base
        self.capacityBytes = capacityBytes
        self.headWord = headWord
        self.writable = writable
    }

    /// Where the next record will begin.
    package var head: UInt64 { ftvm_atomic_load_u64(headWord) }

    /// Appends a frame, a copy of it: 0.1 us and the copy.
    /// - Parameter tail: what stands before this position may be overwritten.
    /// - Returns: false when there is no room; nothing was changed.
    package func append(
        _ frame: UnsafeRawPointer, count: Int, nic: Int, headerBytes: Int, keepingFrom tail: UInt64
    ) -> Bool {
        precondition(writable, "the segment was opened for reading only")
        precondition(count > 0 && count <= Self.largestFrameBytes, "a frame has a length")
        let head = self.head
        // Only a second writer, whom a lie of a fence has left, could put these apart.
        guard tail <= head, head - tail <= capacityBytes else { return false }
        let needed = UInt64((Self.recordHeaderBytes + count + 7) & ~7)
        let room = capacityBytes - head % capacityBytes
        // No record goes over the end of the ring.
        let start = room < needed ? head + room : head
        guard start + needed - tail <= capacityBytes else { return false }
        if start != head, room >= UInt64(Self.recordHeaderBytes) {
            writeHeader(
                at: head, length: UInt32(room) - UInt32(Self.recordHeaderBytes), nic: 0,
                kind: Self.skipKind, headerBytes: 0, payloadCRC: 0)
        }
        let place = base + Int(start % capacityBytes)
        let crc = ftvm_crc32c_copy(place + Self.recordHeaderBytes, frame, count)
        FaultPoint.reached("segment.frame.copied")
        writeHeader(
            at: start, length: UInt32(count), nic: UInt16(nic), kind: Self.frameKind,
            headerBytes: UInt8(headerBytes), payloadCRC: crc)
        FaultPoint.reached("segment.frame.written")
        ftvm_atomic_store_u64(headWord, start + needed)
        FaultPoint.reached("segment.frame.published")
        return true
    }

    private func writeHeader(
        at position: UInt64, length: UInt32, nic: UInt16, kind: UInt8, headerBytes: UInt8,
        payloadCRC: UInt32
    ) {
        let place = base + Int(position % capacityBytes)
        place.storeBytes(of: length.littleEndian, toByteOffset: Offset.length, as: UInt32.self)
        place.storeBytes(of: nic.littleEndian, toByteOffset: Offset.nic, as: UInt16.self)
        place.storeBytes(of: kind, toByteOffset: Offset.kind, as: UInt8.self)
        place.storeBytes(of: headerBytes, toByteOffset: Offset.headerBytes, as: UInt8.self)
        place.storeBytes(of: position.littleEndian, toByteOffset: Offset.position, as: UInt64.self)
        place.storeBytes(
            of: payloadCRC.littleEndian, toByteOffset: Offset.payloadCRC, as: UInt32.self)
        place.storeBytes(
            of: ftvm_crc32c(0, place, Offset.headerCRC).littleEndian,
            toByteOffset: Offset.headerCRC, as: UInt32.self)
    }

    /// The first frame at or after a position, which is that of a record, checked with its CRC.
    package func frame(at position: UInt64, before limit: UInt64) -> FrameLogItem {
        guard limit >= position, limit - position <= capacityBytes else { return .damaged }
        var start = position
        while start < limit {
            let room = capacityBytes - start % capacityBytes
            if room < UInt64(Self.recordHeaderBytes) {
                start += room
                continue
            }
            let place = UnsafeRawPointer(base + Int(start % capacityBytes))
            func field<Number: FixedWidthInteger>(_ offset: Int, _: Number.Type) -> Number {
                Number(littleEndian: place.load(fromByteOffset: offset, as: Number.self))
            }
            let length = Int(field(Offset.length, UInt32.self))
            guard field(Offset.headerCRC, UInt32.self) == ftvm_crc32c(0, place, Offset.headerCRC),
                field(Offset.position, UInt64.self) == start,
                length + Self.recordHeaderBytes <= room
            else { return .damaged }
            let end = start + UInt64((Self.recordHeaderBytes + length + 7) & ~7)
            if field(Offset.kind, UInt8.self) == Self.skipKind {
                start = end
                continue
            }
            let bytes = UnsafeRawBufferPointer(
                start: place + Self.recordHeaderBytes, count: length)
            let headerBytes = Int(field(Offset.headerBytes, UInt8.self))
            guard end <= limit, length > 0, length <= Self.largestFrameBytes, headerBytes <= length,
                field(Offset.kind, UInt8.self) == Self.frameKind,
                field(Offset.payloadCRC, UInt32.self)
                    == ftvm_crc32c(0, bytes.baseAddress, length)
            else { return .damaged }
            return .frame(
                LoggedFrame(
                    start: start, end: end, nic: Int(field(Offset.nic, UInt16.self)),
                    headerBytes: headerBytes, bytes: bytes))
        }
        return .end
    }

    /// Puts the head where the last commit has it.
    fileprivate func setHead(_ position: UInt64) {
        precondition(writable, "the segment was opened for reading only")
        ftvm_atomic_store_u64(headWord, position)
        FaultPoint.reached("segment.frame.cut")
    }
}

extension Segment {
    /// How far the logs belong to the last commit; nil when nothing was ever committed or its record is damaged.
    /// Without allocation: for the epoch thread, which is the only one that commits.
    package var committedLogs: LogPositions? {
        let present = position
        guard present.epoch.number > 0 else { return nil }
        return CommitRecord.logs(
            at: UnsafeRawPointer(control) + Int(header.records.offset)
                + CommitRecord.slot(of: present.epoch) * SegmentFormat.recordStride,
            of: present.epoch)
    }

    /// Output beyond the last commit is forgotten: nobody has seen it, and nobody will. Belongs to a rollback, after
    /// which it may be repeated. Logs that do not fit the commit are emptied: frames can be lost, a guest cannot.
    /// Needs the caller's lock.
    /// - Returns: whether the logs did fit.
    @discardableResult
    package func cutOutput(to logs: LogPositions) -> Bool {
        requireWriteAccess()
        guard let outputLog, let inputLog else { return true }
        let released = releasedOutput
        let outputFits =
            logs.output <= outputLog.head && released <= logs.output
            && outputLog.head - released <= outputLog.capacityBytes
        if !outputFits { releasedOutput = logs.output }
        outputLog.setHead(logs.output)
        let inputFits =
            logs.input <= inputLog.head && inputLog.head - logs.input <= inputLog.capacityBytes
        if !inputFits { inputLog.setHead(logs.input) }
        return outputFits && inputFits
    }
}
