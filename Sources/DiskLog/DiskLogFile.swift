import CLinux
import Glibc
import Model

/// The log of one VM's disks, mapped into this process: header, live words, records, data
/// (`Documentation/Disks.md`).
///
/// Everything here may be used from any thread. `ftvmd` uses `seal`, `publishSealed` and `recover`;
/// the plugin's engine, `DiskServer`, writes records. The file is used through its mapping
/// only, so it may be on tmpfs, on hugetlbfs, or a memfd.
package final class DiskLogFile: @unchecked Sendable {
    package let header: LogHeader
    package let descriptor: Int32
    let base: UnsafeMutableRawPointer
    let data: UnsafeMutableRawPointer
    private let mappedBytes: Int

    package var disks: [LoggedDisk] { header.disks }

    /// Takes over an open descriptor of a log, also if it throws.
    package init(descriptor: Int32) throws {
        do {
            var device = false
            let bytes = ftvm_disk_bytes(descriptor, &device)
            guard bytes >= Int64(LogFormat.recordsOffset) else {
                throw FtvmError(
                    .dataCorrupted, "this is no usable disk log",
                    cause: bytes < 0 ? errorText(Int32(bytes)) : "it is \(bytes) bytes long",
                    advice: "see Documentation/Disks.md")
            }
            var mapped: UnsafeMutableRawPointer?
            let result = ftvm_memory_map(descriptor, Int(bytes), true, true, &mapped)
            guard result == 0, let mapped else {
                throw diskError(result, "cannot map the disk log")
            }
            do {
                header = try LogHeader(page: mapped, actualBytes: UInt64(bytes))
            } catch {
                _ = ftvm_memory_unmap(mapped, Int(bytes))
                throw error
            }
            self.descriptor = descriptor
            base = mapped
            mappedBytes = Int(bytes)
            data = mapped + Int(header.dataOffset)
        } catch {
            close(descriptor)
            throw error
        }
    }

    deinit {
        _ = ftvm_memory_unmap(base, mappedBytes)
        close(descriptor)
    }

    /// Opens the log at a path. Throws `.notFound`, `.dataCorrupted`, `.unsupported`.
    package convenience init(path: String) throws {
        let opened = ftvm_memory_open(AT_FDCWD, path, O_RDWR, 0)
        guard opened >= 0 else { throw diskError(opened, "cannot open the disk log '\(path)'") }
        try self.init(descriptor: opened)
    }

    /// Makes a log in an empty file. The header comes last: a log that was not finished is none.
    /// The descriptor stays the caller's. Throws `.resourceExhausted` when the pool is full.
    package static func create(in descriptor: Int32, _ specification: LogSpecification) throws {
        let header = try LogHeader(specification)
        var device = false
        let present = ftvm_disk_bytes(descriptor, &device)
        guard present == 0 else {
            throw FtvmError(
                .alreadyExists, "the file for a disk log is not empty",
                cause: "it is \(present) bytes long", advice: "remove the file that is there")
        }
        let reserved = ftvm_memory_reserve(descriptor, header.fileBytes)
        guard reserved == 0 else {
            throw diskError(
                reserved, "the pool has no room for a disk log of \(header.fileBytes) bytes",
                advice: "choose a smaller disk log, or a larger pool")
        }
        FaultPoint.reached("disklog.create.reserved")
        var mapped: UnsafeMutableRawPointer?
        let result = ftvm_memory_map(descriptor, Int(header.fileBytes), true, true, &mapped)
        guard result == 0, let mapped else { throw diskError(result, "cannot map the disk log") }
        defer { _ = ftvm_memory_unmap(mapped, Int(header.fileBytes)) }
        let live = mapped + LogFormat.liveOffset
        ftvm_atomic_store_u64(
            live.assumingMemoryBound(to: UInt64.self), specification.generation.number)
        FaultPoint.reached("disklog.create.words-written")
        header.write(to: mapped)
        FaultPoint.reached("disklog.create.header-written")
    }

    /// Fills this process's page tables, so that no write has to fault; 1-2 us for 4 KiB.
    package func populate() throws {
        let result = ftvm_memory_populate(base, mappedBytes, true)
        guard result == 0 else { throw diskError(result, "cannot populate the disk log") }
    }
}

// MARK: - Live words

extension DiskLogFile {
    enum Word: Int {
        case generation = 0
        case head = 64
        case sealed = 128
        case applied = 192
        case flushed = 256
        case stopping = 320
        case demand = 384
        case failure = 448
        case usedBytes = 512
        case appliedBytes = 576
        case syncs = 640
        case heldNanoseconds = 704
        case heldNow = 768
        case failures = 832
        case waitingSince = 896
        case durable = 960
    }

    private func pointer(_ word: Word) -> UnsafeMutablePointer<UInt64> {
        (base + LogFormat.liveOffset + word.rawValue).assumingMemoryBound(to: UInt64.self)
    }

    @inline(__always)
    subscript(word: Word) -> UInt64 {
        get { ftvm_atomic_load_u64(pointer(word)) }
        set { ftvm_atomic_store_u64(pointer(word), newValue) }
    }

    func add(_ amount: UInt64, to word: Word) {
        _ = ftvm_atomic_fetch_add_u64(pointer(word), amount)
    }

    /// Makes the word at least `value`.
    func raise(_ word: Word, to value: UInt64) {
        while true {
            let before = self[word]
            if before >= value
                || ftvm_atomic_compare_exchange_u64(pointer(word), before, value)
            {
                return
            }
        }
    }

    func exchange(_ word: Word, _ expected: UInt64, _ desired: UInt64) -> Bool {
        ftvm_atomic_compare_exchange_u64(pointer(word), expected, desired)
    }

    /// The generation that may write and apply.
    package var generation: UInt64 { self[.generation] }
    /// Records ever published.
    package var head: UInt64 { self[.head] }
    /// Records below this belong to a published commit.
    package var sealed: UInt64 { self[.sealed] }
    /// Records below this are in the images and on stable storage.
    package var applied: UInt64 { self[.applied] }
    /// Records below this are on stable storage: in the images, or in the journal beside them.
    package var durable: UInt64 { max(self[.durable], applied) }
    /// One more than the last flush marker that packets have to wait for; 0: none.
    package var flushed: UInt64 { self[.flushed] }
    /// More than half is in use, or requests are held: whoever stops the guest must let them go on.
    package var isCrowded: Bool {
        self[.heldNow] > 0 || self[.usedBytes] > header.dataBytes / 2
            || head - min(head, applied) > header.recordCapacity / 2
    }
    /// Data in the log that are not yet in the images, in bytes.
    package var usedBytes: UInt64 { self[.usedBytes] }
    /// Whether the log asks for a commit before its time.
    package var wantsCommit: Bool { self[.demand] != 0 }
}

// MARK: - Records

extension DiskLogFile {
    func slot(_ sequence: UInt64) -> UnsafeMutableRawPointer {
        base + Int(LogFormat.recordsOffset)
            + Int(sequence % header.recordCapacity) * LogFormat.recordBytes
    }

    /// The record of a number, checked; nil if it is damaged or not that record.
    package func record(_ sequence: UInt64) -> LogRecord? {
        guard let record = LogRecord(from: slot(sequence)), record.sequence == sequence,
            record.disk < header.disks.count
        else { return nil }
        if record.kind == .flush { return record }
        let size = header.disks[record.disk].sizeBytes
        guard record.length > 0, record.offset <= size, record.length <= size - record.offset
        else { return nil }
        guard record.kind == .write else { return record }
        let place = record.dataPosition % header.dataBytes
        guard record.length <= header.dataBytes - place else { return nil }
        return record
    }

    /// Whether the data of a write are as they were logged.
    func hasIntactData(_ record: LogRecord) -> Bool {
        let place = Int(record.dataPosition % header.dataBytes)
        return ftvm_crc32c(0, data + place, Int(record.length)) == record.dataCRC
    }
}

// MARK: - The side of ftvmd

/// What a commit notes about the disks.
package struct DiskSeal: Hashable, Sendable, Codable {
    /// Goes into the commit record (`LogPositions.disk`): records before it belong to the commit.
    package var position: UInt64
    /// The commit's packets may leave once `DiskLogFile.durable` has reached this.
    package var durableAt: UInt64
}

extension DiskLogFile {
    /// What the commit of the present moment covers. Call it when the guest is stopped and QEMU has
    /// drained: then every answered write is below the position. No I/O; a few loads.
    package func seal() -> DiskSeal {
        let position = head
        return DiskSeal(position: position, durableAt: min(flushed, position))
    }

    /// Notes that the commit with this position has been published: its writes may be applied. Only
    /// grows, so it may be repeated, also with the position of an older commit. Ring the plugin's
    /// bell afterwards.
    package func publishSealed(_ position: UInt64) {
        raise(.sealed, to: position)
        self[.demand] = 0
        FaultPoint.reached("disklog.sealed.stored")
    }

    /// Whether the packets of a commit may leave as far as the disks are concerned.
    package func isDurable(_ seal: DiskSeal) -> Bool { durable >= seal.durableAt }

    /// Set it before `stop` (and ring the bell): requests are not held any more, since the stop waits
    /// for them. Cleared before `cont`.
    package var isStopping: Bool {
        get { self[.stopping] != 0 }
        set { self[.stopping] = newValue ? 1 : 0 }
    }

    /// Takes the log over for a new generation and cuts off what was not committed: the first step
    /// of a promotion that concerns the disks, before the plugin of this generation is activated.
    /// May be repeated, with a higher generation, after a crash anywhere.
    ///
    /// - Parameters:
    ///   - position: of the last commit record.
    ///   - patience: how long, in milliseconds, an old plugin may take to notice that it is fenced.
    /// - Throws: `.conflict` if the generation is already as high, or if another plugin still holds
    ///   the log (then it is not fenced; the generation is raised all the same);
    ///   `.dataCorrupted` if the position or a record that it covers cannot be right.
    package func recover(
        position: UInt64, generation: Generation, patience milliseconds: Int = 500
    ) throws {
        while true {
            let present = self.generation
            guard present < generation.number else {
                throw FtvmError(
                    .conflict, "the disk log cannot be taken over for generation \(generation)",
                    cause: "it already is at \(present)",
                    advice: "read the pair's record again: somebody else may have promoted it")
            }
            if exchange(.generation, present, generation.number) { break }
        }
        FaultPoint.reached("disklog.recover.generation-raised")
        let lock = try ApplierLock.take(self, patience: milliseconds)
        defer { withExtendedLifetime(lock) {} }
        guard applied <= position, sealed <= position, position <= head else {
            throw FtvmError(
                .dataCorrupted, "the disk log does not fit the last commit",
                cause: "the commit's position is \(position); applied \(applied), "
                    + "sealed \(sealed), head \(head)",
                advice: "keep the segment and report this; do not start the VM from its image")
        }
        for sequence in applied..<position where record(sequence) == nil {
            throw FtvmError(
                .dataCorrupted, "record \(sequence) of the disk log is damaged",
                advice: "keep the segment; the images are those of record \(applied)")
        }
        if PlantedBug.active != .keepsUncommitted { self[.head] = position }
        FaultPoint.reached("disklog.recover.head-cut")
        if flushed > position { self[.flushed] = position }
        raise(.sealed, to: position)
        self[.stopping] = 0
        self[.demand] = 0
        self[.heldNow] = 0
        FaultPoint.reached("disklog.recover.done")
    }
}

/// Proof that nobody else applies: an OFD lock on byte 0 of the log, dropped by the kernel when
/// its process is gone. Has an open file description of its own.
final class ApplierLock: @unchecked Sendable {
    private let descriptor: Int32

    private init(_ descriptor: Int32) { self.descriptor = descriptor }

    deinit {
        _ = ftvm_lock_clear(descriptor, 0, 1)
        close(descriptor)
    }

    /// Throws `.conflict` if somebody still has it after `patience` milliseconds.
    static func take(_ log: DiskLogFile, patience milliseconds: Int) throws -> ApplierLock {
        let opened = open("/proc/self/fd/\(log.descriptor)", O_RDWR | O_CLOEXEC)
        guard opened >= 0 else { throw diskError(-errno, "cannot open the disk log once more") }
        if PlantedBug.active == .ignoresLock { return ApplierLock(opened) }
        let deadline = ftvm_disk_now() + UInt64(max(milliseconds, 0)) * 1_000_000
        while true {
            let result = ftvm_lock_set(opened, 0, 1, true)
            if result == 0 { return ApplierLock(opened) }
            guard result == -EAGAIN, ftvm_disk_now() < deadline else {
                close(opened)
                guard result == -EAGAIN else { throw diskError(result, "cannot lock the disk log") }
                throw FtvmError(
                    .conflict, "another disk server still holds the disk log",
                    advice: "end it, or fence its host, before this one goes on")
            }
            usleep(1000)
        }
    }
}

// MARK: - Status

/// What a user is shown of a disk log.
package struct DiskLogStatus: Hashable, Sendable, Codable {
    package var dataBytes: UInt64
    /// Data in the log that are not yet in the images, in bytes.
    package var waitingBytes: UInt64
    package var waitingRecords: UInt64
    /// Of these, records that belong to no commit yet.
    package var unsealedRecords: UInt64
    /// For how long the oldest committed write has waited, in milliseconds.
    package var ageMilliseconds: UInt64
    /// Ever brought into the images; the difference of two looks is the rate.
    package var appliedBytes: UInt64
    package var syncs: UInt64
    /// Back-pressure: for how long requests were held, in all, and how many are now.
    package var heldMilliseconds: UInt64
    package var heldNow: UInt64
    /// Why the images cannot be written; nil if all is well.
    package var failure: String?
    package var failures: UInt64
}

extension DiskLogFile {
    package var status: DiskLogStatus {
        let (applied, sealed, head) = (applied, sealed, head)
        let since = self[.waitingSince]
        let now = ftvm_disk_now()
        let failure = self[.failure]
        let index = Int(failure >> 32) - 1
        return DiskLogStatus(
            dataBytes: header.dataBytes, waitingBytes: applied < head ? self[.usedBytes] : 0,
            waitingRecords: head > applied ? head - applied : 0,
            unsealedRecords: head > sealed ? head - sealed : 0,
            ageMilliseconds: since > 0 && now > since ? (now - since) / 1_000_000 : 0,
            appliedBytes: self[.appliedBytes], syncs: self[.syncs],
            heldMilliseconds: self[.heldNanoseconds] / 1_000_000, heldNow: self[.heldNow],
            failure: failure == 0
                ? nil
                : (disks.indices.contains(index) ? "\(disks[index].name): " : "")
                    + errorText(-Int32(truncatingIfNeeded: failure & 0xffff_ffff)),
            failures: self[.failures])
    }
}
