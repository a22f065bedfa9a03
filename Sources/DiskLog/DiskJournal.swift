import CLinux
import Glibc
import Model

/// A file on the images' storage that makes several groups reach the images as one: a *batch* is
/// written here, merged, and synced once; then it is durable, and its groups go to the images with one
/// sync at the end. Should everything be lost in between, the batch is replayed from here
/// (`Documentation/Disks.md`, *Journal*).
///
/// For the applier's thread alone.
package final class DiskJournal {
    /// How much a batch may be.
    package struct Limits: Sendable {
        package var dataBytes: UInt64 = 32 << 20
        package var entries = 16384
        package init() {}

        var dataOffset: UInt64 { headerBytes + UInt64(entries * entryBytes) }
        /// The last record of a batch may go beyond the limit.
        var fileBytes: UInt64 { dataOffset + dataBytes + LogFormat.largestChunkBytes }
    }

    private static let headerBytes: UInt64 = 4096
    private static let entryBytes = LogFormat.recordBytes
    private static let mostEntries: UInt64 = 1 << 20
    /// "FTVMJRNL" as a little-endian word.
    private static let magic: UInt64 = 0x4C4E_524A_4D56_5446

    let limits: Limits
    private let storage: any DiskImage
    /// Whether a batch is in it that a replay would apply.
    private(set) var isValid = false

    /// - Parameter storage: a file with room for the limits; see `open`.
    package init(storage: any DiskImage, limits: Limits = Limits()) {
        self.storage = storage
        self.limits = limits
    }

    /// Opens the journal at a path, and makes it if there is none, with its room reserved.
    package static func open(_ path: String) throws -> DiskJournal {
        let opened = Glibc.open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard opened >= 0 else {
            throw diskError(
                -errno, "cannot open the disk journal '\(path)'",
                advice: "it must be on storage that every host of the pair reaches")
        }
        defer { close(opened) }
        let result = ftvm_memory_reserve(opened, Limits().fileBytes)
        guard result == 0 else {
            throw diskError(result, "there is no room for the disk journal '\(path)'")
        }
        return DiskJournal(storage: try FileImage(path: path))
    }

    private enum Place {
        static let magic = 0, version = 8, identity = 16, generation = 24, start = 32, end = 40
        static let entries = 48, tableCRC = 56, diskCount = 60, disks = 64, crc = 4092
        static let diskBytes = 40, diskSize = 32
    }

    /// One extent of a batch.
    struct Entry {
        var disk: Int
        var extent: Extent
    }

    /// Writes a batch and syncs: when this returns 0 the batch is durable.
    ///
    /// - Parameter batch: the records that it covers, from ..< to.
    func write(_ entries: [Entry], of log: DiskLogFile, batch: Range<UInt64>) -> Int32 {
        precondition(entries.count <= limits.entries, "the batch is too large")
        let tableBytes = entries.count * DiskJournal.entryBytes
        let table = UnsafeMutableRawBufferPointer.allocate(
            byteCount: Int(DiskJournal.headerBytes) + tableBytes, alignment: 4096)
        defer { table.deallocate() }
        guard let header = table.baseAddress else { return -ENOMEM }
        memset(header, 0, table.count)
        var position = limits.dataOffset
        var pieces: [iovec] = []
        for (index, entry) in entries.enumerated() {
            let extent = entry.extent
            let kind: LogRecord.Kind =
                switch extent.source {
                case Extent.hole: .trim
                case Extent.zeros: .zero
                default: .write
                }
            var record = LogRecord(
                sequence: UInt64(index), generation: 0, offset: extent.start,
                length: extent.end - extent.start, dataPosition: position, dataCRC: 0, kind: kind,
                disk: entry.disk)
            if kind == .write {
                let data = log.data + Int(extent.source)
                record.dataCRC = ftvm_crc32c(0, data, Int(record.length))
                pieces.append(iovec(iov_base: data, iov_len: Int(record.length)))
                position += record.length
            }
            record.write(
                to: header + Int(DiskJournal.headerBytes) + index * DiskJournal.entryBytes)
        }
        fill(header, tableBytes, entries.count, log, batch)
        var result = pieces.withUnsafeMutableBufferPointer {
            storage.write($0, at: limits.dataOffset)
        }
        if result != 0 { return result }
        FaultPoint.reached("disklog.journal.data-written")
        var whole = iovec(iov_base: header, iov_len: table.count)
        result = withUnsafeMutablePointer(to: &whole) {
            storage.write(UnsafeMutableBufferPointer(start: $0, count: 1), at: 0)
        }
        if result != 0 { return result }
        // From here on a replay may find it, whatever becomes of the sync.
        isValid = true
        FaultPoint.reached("disklog.journal.written")
        return PlantedBug.active == .journalNotSynced ? 0 : storage.synchronize()
    }

    private func fill(
        _ header: UnsafeMutableRawPointer, _ tableBytes: Int, _ count: Int, _ log: DiskLogFile,
        _ batch: Range<UInt64>
    ) {
        func put<Number: FixedWidthInteger>(_ value: Number, _ offset: Int) {
            header.storeBytes(of: value.littleEndian, toByteOffset: offset, as: Number.self)
        }
        put(DiskJournal.magic, Place.magic)
        put(UInt64(1), Place.version)
        put(log.header.identity, Place.identity)
        put(log.generation, Place.generation)
        put(batch.lowerBound, Place.start)
        put(batch.upperBound, Place.end)
        put(UInt64(count), Place.entries)
        put(
            ftvm_crc32c(0, header + Int(DiskJournal.headerBytes), tableBytes), Place.tableCRC)
        put(UInt32(log.disks.count), Place.diskCount)
        for (index, disk) in log.disks.enumerated() {
            let base = Place.disks + index * Place.diskBytes
            for (position, byte) in disk.name.utf8.enumerated() { put(byte, base + position) }
            put(disk.sizeBytes, base + Place.diskSize)
        }
        put(ftvm_crc32c(0, header, Place.crc), Place.crc)
    }

    /// Makes sure that nothing would be replayed, and that this is stable.
    func clear() -> Int32 {
        guard isValid else { return 0 }
        let zeros = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
        defer { zeros.deallocate() }
        zeros.initializeMemory(as: UInt8.self, repeating: 0)
        var piece = iovec(iov_base: zeros.baseAddress, iov_len: zeros.count)
        let result = withUnsafeMutablePointer(to: &piece) {
            storage.write(UnsafeMutableBufferPointer(start: $0, count: 1), at: 0)
        }
        if result != 0 { return result }
        FaultPoint.reached("disklog.journal.cleared")
        let synced = storage.synchronize()
        if synced == 0 { isValid = false }
        return synced
    }
}

// MARK: - Replay

extension DiskJournal {
    /// What a replay found.
    package struct Batch: Sendable {
        /// Of the log that it came from.
        package let identity: UInt64
        package let generation: UInt64
        /// One more than the last record that it covers.
        package let end: UInt64
        package let disks: [LoggedDisk]
        let entries: [LogRecord]
    }

    /// The batch that is in the journal; nil if there is none or it was not finished, in which case
    /// the images have nothing of it. Throws when the journal cannot be read.
    package func batch() throws -> Batch? {
        storage.forgetCache()
        let header = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
        defer { header.deallocate() }
        try check(storage.read(into: header, at: 0), "read")
        func get<Number: FixedWidthInteger>(_ offset: Int, as type: Number.Type = Number.self)
            -> Number
        { Number(littleEndian: header.loadUnaligned(fromByteOffset: offset, as: type)) }
        let count: UInt64 = get(Place.entries)
        let diskCount: UInt32 = get(Place.diskCount)
        guard get(Place.magic) == DiskJournal.magic, get(Place.version) == UInt64(1),
            get(Place.crc) == ftvm_crc32c(0, header.baseAddress, Place.crc),
            count <= DiskJournal.mostEntries, diskCount <= UInt32(LogHeader.mostDisks)
        else { return nil }
        let disks = (0..<Int(diskCount)).map { index in
            let base = Place.disks + index * Place.diskBytes
            let name = (0..<LogFormat.nameBytes).map { get(base + $0, as: UInt8.self) }
                .prefix { $0 != 0 }
            return LoggedDisk(
                name: String(decoding: name, as: UTF8.self),
                sizeBytes: get(base + Place.diskSize))
        }
        guard
            let entries = try entries(
                Int(count), tableCRC: get(Place.tableCRC), disks: disks)
        else { return nil }
        isValid = true
        return Batch(
            identity: get(Place.identity), generation: get(Place.generation),
            end: get(Place.end), disks: disks, entries: entries)
    }

    private func check(_ result: Int32, _ verb: String) throws {
        guard result == 0 else {
            throw diskError(
                result, "the disk journal cannot be \(verb)",
                advice: "do not start the VM from its images before it has been replayed")
        }
    }

    /// The batch's table, if it and all data are whole.
    private func entries(
        _ count: Int, tableCRC: UInt32, disks: [LoggedDisk]
    ) throws -> [LogRecord]? {
        let table = UnsafeMutableRawBufferPointer.allocate(
            byteCount: max(1, count) * DiskJournal.entryBytes, alignment: 64)
        defer { table.deallocate() }
        try check(storage.read(into: table, at: DiskJournal.headerBytes), "read")
        guard let start = table.baseAddress,
            ftvm_crc32c(0, start, count * DiskJournal.entryBytes) == tableCRC
        else { return nil }
        var entries: [LogRecord] = []
        for index in 0..<count {
            guard let record = LogRecord(from: start + index * DiskJournal.entryBytes),
                record.disk < disks.count, record.length > 0,
                record.offset <= disks[record.disk].sizeBytes,
                record.length <= disks[record.disk].sizeBytes - record.offset,
                try record.kind != .write || withData(of: record, { _ in true }) == true
            else { return nil }
            entries.append(record)
        }
        return entries
    }

    /// The data of an entry; nil if they are not what was written.
    private func withData<Result>(
        of record: LogRecord, _ body: (UnsafeMutableRawBufferPointer) throws -> Result
    ) throws -> Result? {
        guard record.length <= 1 << 30 else { return nil }
        let data = UnsafeMutableRawBufferPointer.allocate(
            byteCount: Int(record.length), alignment: 4096)
        defer { data.deallocate() }
        try check(storage.read(into: data, at: record.dataPosition), "read")
        guard ftvm_crc32c(0, data.baseAddress, data.count) == record.dataCRC else { return nil }
        return try body(data)
    }

    /// Brings the batch that is in the journal, if there is one, into the images, and clears the journal:
    /// to be done before anybody uses the images after a loss of the pool, and by every plugin
    /// that begins. May be repeated.
    ///
    /// - Parameter image: of a disk, by its name.
    /// - Returns: whether there was one.
    /// - Throws: `.dataCorrupted` never: what is not whole has not begun to reach the images. Errors of
    ///   the storage; then it has to be repeated.
    @discardableResult
    package func replay(_ image: (String) throws -> any DiskImage) throws -> Bool {
        try settle()
        guard let batch = try batch() else { return false }
        try apply(batch, image)
        try check(clear(), "cleared")
        return true
    }

    /// Makes what reads show of the journal the truth: whoever wrote or cleared it last may have died
    /// before its sync. Before the images are touched for the first time.
    func settle() throws {
        if PlantedBug.active == .journalNotSettled { return }
        try check(storage.synchronize(), "synced")
    }

    /// Brings a batch into the images, and syncs them.
    func apply(_ batch: Batch, _ image: (String) throws -> any DiskImage) throws {
        let images = try batch.disks.map { try image($0.name) }
        for record in batch.entries {
            let target = images[record.disk]
            switch record.kind {
            case .write:
                let result = try withData(of: record) { data in
                    var piece = iovec(iov_base: data.baseAddress, iov_len: data.count)
                    return withUnsafeMutablePointer(to: &piece) {
                        target.write(
                            UnsafeMutableBufferPointer(start: $0, count: 1), at: record.offset)
                    }
                }
                try check(result ?? -EIO, "replayed")
            case .zero, .trim:
                try check(
                    target.zero(
                        at: record.offset, bytes: record.length, punch: record.kind == .trim),
                    "replayed")
            case .flush: break
            }
        }
        for image in images { try check(image.synchronize(), "replayed") }
    }
}
