import CLinux
import Glibc
import Model

/// Serves a VM's disks from log and images: the engine behind the nbdkit plugin
/// (`Documentation/Disks.md`).
///
/// *Waiting* (on the secondary's host): reads come from the images, writes are refused. *Active*, from
/// `activate` on: the one writer of the log and of the images. *Ended*: fenced or closed; nothing is
/// written any more.
///
/// Any number of threads may call `read`, `write`, `zero`, `trim` and `flush`; they return 0 or
/// a negative errno and do not allocate but for the index.
package final class DiskServer: @unchecked Sendable {
    package enum State: Sendable { case waiting, active, ended }

    package struct Settings: Sendable {
        /// A group is hurried when a marker waits for it, when it is as old as this, or when a quarter
        /// of the log is in use.
        package var lazyMilliseconds = 200
        /// Between two attempts after an error of an image.
        package var retryMilliseconds = 1000
        package var groupBytes: UInt64 = 32 << 20
        package var groupRecords: UInt64 = 8192
        /// From so many groups on a batch goes through the journal, if there is one: it costs two
        /// syncs, and each group by itself one.
        package var batchGroups = 3
        /// Whether a thread of its own applies; tests apply by hand.
        package var appliesByItself = true
        package init() {}
    }

    package let log: DiskLogFile
    let images: [any DiskImage]
    let settings: Settings

    /// Guards everything of the log's end, and who waits for room; held while a write is copied.
    let appending = Turnstile()
    /// Guards the indexes; a reader holds it while it copies from the log.
    let indexLock = SharedLock()
    let indexes: [ExtentMap]
    /// The applier sleeps here.
    let bell = Turnstile()
    /// Called, from any thread, when a commit is wanted or something became durable. Must not block.
    nonisolated(unsafe) package var notify: (@Sendable (Notice) -> Void)?

    package enum Notice: String, Sendable {
        case commitWanted = "commit"
        case durable, failed, fenced
    }

    // Under `appending`.
    @exclusivity(unchecked) var state = State.waiting
    @exclusivity(unchecked) var generation: UInt64 = 0
    @exclusivity(unchecked) var head: UInt64 = 0
    @exclusivity(unchecked) private var lastKind = LogRecord.Kind.flush
    /// Bytes of data ever placed, and ever freed again; and records freed.
    @exclusivity(unchecked) private var dataHead: UInt64 = 0
    @exclusivity(unchecked) private var dataTail: UInt64 = 0
    @exclusivity(unchecked) private var recordTail: UInt64 = 0

    // Of the applier's thread alone.
    let journal: DiskJournal?
    @exclusivity(unchecked) var hasReplayed = false
    let groups: [ExtentMap]
    let batchMaps: [ExtentMap]
    @exclusivity(unchecked) var pieces: [iovec] = []
    /// When an image last refused; monotonic nanoseconds.
    @exclusivity(unchecked) var failedAt: UInt64 = 0

    private var lock: ApplierLock?
    private var applier: OwnThread?
    // Under `bell`.
    @exclusivity(unchecked) var isRinging = false
    @exclusivity(unchecked) var isClosing = false

    private let chunkBytes: UInt64

    /// - Parameters:
    ///   - images: in the order of the log's disks.
    ///   - journal: without one every group is synced by itself.
    package init(
        log: DiskLogFile, images: [any DiskImage], journal: DiskJournal? = nil,
        settings: Settings = Settings()
    ) {
        precondition(images.count == log.disks.count, "an image for every disk of the log")
        self.log = log
        self.images = images
        self.journal = journal
        self.settings = settings
        indexes = images.map { _ in ExtentMap() }
        groups = images.map { _ in ExtentMap() }
        batchMaps = images.map { _ in ExtentMap() }
        let sixteenth = log.header.dataBytes / 16 / 4096 * 4096
        chunkBytes = min(LogFormat.largestChunkBytes, max(sixteenth, 4096))
    }

    deinit { close() }

    package var isActive: Bool {
        appending.lock()
        defer { appending.unlock() }
        return state == .active
    }

    /// Becomes the writer of the log for a generation: the log's own, set by its creation or by
    /// `DiskLogFile.recover`. Rebuilds the index from the log, which takes about 0.2 us a record.
    ///
    /// - Throws: `.conflict` if the log is of another generation or somebody else has it,
    ///   `.dataCorrupted` if a record is damaged, `.failedPrecondition` after `close` or fencing.
    package func activate(_ generation: Generation, patience milliseconds: Int = 500) throws {
        appending.lock()
        defer { appending.unlock() }
        if state == .active, self.generation == generation.number { return }
        guard state == .waiting else {
            throw FtvmError(
                .failedPrecondition, "this disk server cannot be activated any more",
                cause: state == .active
                    ? "it is active for generation \(self.generation)" : "it has ended",
                advice: "start another")
        }
        try requireGeneration(generation)
        let lock = try ApplierLock.take(log, patience: milliseconds)
        // Whoever raised it meanwhile did so to fence us.
        try requireGeneration(generation)
        for image in images { image.forgetCache() }
        if let batch = try journal?.batch(), batch.identity != log.header.identity {
            throw FtvmError(
                .failedPrecondition, "the disk journal is another log's",
                cause: "it holds writes that its images may lack",
                advice: "replay that journal first, or remove it if its images are of no use")
        }
        try rebuildIndex()
        self.lock = lock
        self.generation = generation.number
        state = .active
        log[.heldNow] = 0
        log[.failure] = 0
        FaultPoint.reached("disklog.activated")
        if settings.appliesByItself {
            applier = try OwnThread("disk-apply") { [self] in applyUntilEnd() }
        }
    }

    private func requireGeneration(_ generation: Generation) throws {
        guard log.generation == generation.number || PlantedBug.active == .ignoresGeneration else {
            throw FtvmError(
                .conflict, "the disk log is not of generation \(generation)",
                cause: "it is at \(log.generation)",
                advice: "this primary has been fenced, or its promotion has not come so far")
        }
    }

    private func rebuildIndex() throws {
        (head, recordTail) = (log.head, log.applied)
        (dataHead, dataTail) = (0, 0)
        for index in indexes { index.removeAll() }
        guard recordTail <= head, head - recordTail <= log.header.recordCapacity else {
            throw FtvmError(
                .dataCorrupted, "the disk log contradicts itself",
                cause: "applied \(recordTail), head \(head)",
                advice: "keep the segment and report this")
        }
        var flushed: UInt64 = 0
        lastKind = .flush
        for sequence in recordTail..<head {
            guard let record = log.record(sequence) else {
                throw FtvmError(
                    .dataCorrupted, "record \(sequence) of the disk log is damaged",
                    cause: "its CRC or its contents are wrong",
                    advice: "keep the segment; the images are those of record \(recordTail)")
            }
            if sequence == recordTail { dataTail = record.dataPosition }
            dataHead = record.dataPosition + record.dataBytes
            lastKind = record.kind
            if record.kind != .flush {
                if PlantedBug.active != .startsEmpty { note(record) }
            } else if log.disks[record.disk].durability == .commit {
                flushed = sequence + 1
            }
        }
        // A plugin that was killed between the marker and the word: nobody was answered.
        log.raise(.flushed, to: flushed)
        log[.usedBytes] = dataHead - dataTail
    }

    /// Puts what a record wrote into the index.
    private func note(_ record: LogRecord) {
        indexes[record.disk].insert(extent(of: record))
    }

    func extent(of record: LogRecord) -> Extent {
        let source =
            switch record.kind {
            case .write: record.dataPosition % log.header.dataBytes
            case .trim: Extent.hole
            case .zero, .flush: Extent.zeros
            }
        return Extent(
            start: record.offset, end: record.offset + record.length, source: source,
            sequence: record.sequence)
    }

    /// Ends it: what is in the log stays there. Joins the applier, which finishes its group.
    package func close() {
        end(.ended)
        bell.lock()
        isClosing = true
        bell.broadcast()
        bell.unlock()
        applier?.join()
        applier = nil
        releaseLog()
    }

    /// Nothing is written any more; who waits is told.
    func end(_ reason: State) {
        appending.lock()
        state = reason
        appending.broadcast()
        appending.unlock()
    }

    /// Lets the next one have the log: after `end`, when no group is under way.
    func releaseLog() {
        appending.lock()
        lock = nil
        appending.unlock()
    }

    /// Something may have changed: sealed, stopping, generation.
    package func ring() {
        bell.lock()
        isRinging = true
        bell.broadcast()
        bell.unlock()
        appending.lock()
        appending.broadcast()
        appending.unlock()
    }
}

// MARK: - Requests

extension DiskServer {
    /// Reads what was written last.
    package func read(
        disk: Int, into target: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) -> Int32 {
        guard let start = target.baseAddress, target.count > 0 else { return 0 }
        let end = offset + UInt64(target.count)
        // Usually everything is in the log or nothing is: one gap is kept without allocating.
        var gap: Range<UInt64>?
        var moreGaps: [Range<UInt64>] = []
        func missing(_ from: UInt64, _ to: UInt64) {
            if gap == nil { gap = from..<to } else { moreGaps.append(from..<to) }
        }
        indexLock.read {
            var position = offset
            if PlantedBug.active != .readsImageOnly {
                indexes[disk].forEach(offset, end) { extent in
                    if extent.start > position { missing(position, extent.start) }
                    let place = start + Int(extent.start - offset)
                    let count = Int(extent.end - extent.start)
                    if extent.isZero {
                        memset(place, 0, count)
                    } else {
                        memcpy(place, log.data + Int(extent.source), count)
                    }
                    position = extent.end
                }
            }
            if position < end { missing(position, end) }
        }
        // Without the lock: what is written into the gaps from here on, is written at the same
        // time as this read.
        func fill(_ range: Range<UInt64>) -> Int32 {
            images[disk].read(
                into: UnsafeMutableRawBufferPointer(
                    start: start + Int(range.lowerBound - offset),
                    count: Int(range.upperBound - range.lowerBound)),
                at: range.lowerBound)
        }
        if let gap {
            let result = fill(gap)
            if result != 0 { return result }
        }
        for range in moreGaps {
            let result = fill(range)
            if result != 0 { return result }
        }
        return 0
    }

    /// Writes; with `flush` (FUA) a flush marker follows. A request beyond 1 MiB may be torn by a
    /// failure of everything, like one of a real disk.
    package func write(
        disk: Int, _ bytes: UnsafeRawBufferPointer, at offset: UInt64, flush: Bool = false
    ) -> Int32 {
        guard let start = bytes.baseAddress else { return 0 }
        var done: UInt64 = 0
        while done < UInt64(bytes.count) {
            let length = min(UInt64(bytes.count) - done, chunkBytes)
            let result = append(
                .write, disk: disk, at: offset + done, length: length, source: start + Int(done))
            if result != 0 { return result }
            done += length
        }
        return flush ? self.flush(disk: disk) : 0
    }

    /// Makes a range read as zeroes; `mayTrim`: its storage may be given back.
    package func zero(
        disk: Int, at offset: UInt64, bytes: UInt64, mayTrim: Bool, flush: Bool = false
    ) -> Int32 {
        guard bytes > 0 else { return 0 }
        let result = append(
            mayTrim ? .trim : .zero, disk: disk, at: offset, length: bytes, source: nil)
        return result == 0 && flush ? self.flush(disk: disk) : result
    }

    /// Everything that was answered before comes before everything that is asked for after it; and
    /// packets of this epoch wait for stable storage.
    package func flush(disk: Int) -> Int32 {
        append(.flush, disk: disk, at: 0, length: 0, source: nil)
    }
}

// MARK: - Extents

extension DiskServer {
    /// What a range consists of, in order: `body(offset, bytes, readsAsZeroes)` until it says false.
    /// At most 1,024 extents of the log are told in one call; the rest of the range is left out.
    package func extents(
        disk: Int, from offset: UInt64, to end: UInt64,
        _ body: (UInt64, UInt64, Bool) -> Bool
    ) {
        var logged: [Extent] = []
        var limit = end
        indexLock.read {
            indexes[disk].forEachWhile(offset, end) { extent in
                if logged.count == 1024 {
                    limit = extent.start
                    return false
                }
                logged.append(extent)
                return true
            }
        }
        func image(_ start: UInt64, _ end: UInt64) -> Bool {
            var position = start
            while position < end {
                let (isHole, stretch) = images[disk].extent(at: position)
                let stop = min(end, stretch)
                guard body(position, stop - position, isHole) else { return false }
                position = stop
            }
            return true
        }
        var position = offset
        for extent in logged {
            guard image(position, extent.start),
                body(extent.start, extent.end - extent.start, extent.isZero)
            else { return }
            position = extent.end
        }
        _ = image(position, limit)
    }
}

// MARK: - The end of the log

extension DiskServer {
    private func append(
        _ kind: LogRecord.Kind, disk: Int, at offset: UInt64, length: UInt64,
        source: UnsafeRawPointer?
    ) -> Int32 {
        let room = kind == .write ? LogRecord.room(for: length) : 0
        appending.lock()
        defer { appending.unlock() }
        if kind == .flush {
            // Nothing was ever written here.
            if state == .waiting { return 0 }
            if state == .active, lastKind == .flush, canJoinMarker(disk) { return 0 }
        }
        let admitted = admit(room)
        if admitted != 0 { return admitted }
        var record = LogRecord(
            sequence: head, generation: generation, offset: offset, length: length,
            dataPosition: place(room), dataCRC: 0, kind: kind, disk: disk)
        if PlantedBug.active == .headTooEarly {
            record.write(to: log.slot(head))
            log[.head] = head + 1
        }
        if let source {
            let target = log.data + Int(record.dataPosition % log.header.dataBytes)
            record.dataCRC = ftvm_crc32c_copy(target, source, Int(length))
            FaultPoint.reached("disklog.append.data-copied")
        }
        record.write(to: log.slot(head))
        FaultPoint.reached("disklog.append.record-written")
        if PlantedBug.active == .headTooLate {
            publishHeadLate(record)
            return 0
        }
        indexLock.write {
            if kind != .flush { note(record) }
            log[.head] = head + 1
        }
        FaultPoint.reached("disklog.append.head-published")
        head += 1
        lastKind = kind
        dataHead = record.dataPosition + room
        if kind == .flush {
            if log.disks[disk].durability == .commit, PlantedBug.active != .forgetsFlush {
                log.raise(.flushed, to: head)
            }
            FaultPoint.reached("disklog.flush.published")
        }
        log[.usedBytes] = dataHead - dataTail
        if isFullerThan(half: true, dataHead, head), isMostlyUnsealed { wantCommit() }
        return 0
    }

    /// The planted bug: answered, and published only with the next record.
    private func publishHeadLate(_ record: LogRecord) {
        log[.head] = head
        indexLock.write { if record.kind != .flush { note(record) } }
        head += 1
        lastKind = record.kind
        dataHead = record.dataPosition + record.dataBytes
        if record.kind == .flush { log.raise(.flushed, to: head) }
    }

    /// Whether the marker at the end of the log is as good as a new one: it is not when it is one
    /// that no packets wait for, and this flush wants them to wait.
    private func canJoinMarker(_ disk: Int) -> Bool {
        guard log.generation == generation else { return false }
        // Of what is applied nothing has to be waited for any more.
        if head == log.applied { return true }
        return log.disks[disk].durability == .pool || log.flushed >= head
    }

    /// Where data of this size go: never around the end of the ring.
    private func place(_ room: UInt64) -> UInt64 {
        let left = log.header.dataBytes - dataHead % log.header.dataBytes
        return room > left ? dataHead + left : dataHead
    }

    /// Whether more than half (or three quarters) of the log were in use with this end.
    private func isFullerThan(half: Bool, _ dataEnd: UInt64, _ recordEnd: UInt64) -> Bool {
        let (data, records) = (log.header.dataBytes, log.header.recordCapacity)
        let (dataMark, recordMark) =
            half ? (data / 2, records / 2) : (data / 4 * 3, records / 4 * 3)
        return dataEnd - dataTail > dataMark || recordEnd - recordTail > recordMark
    }

    /// Waits until there is room, with `appending` held. 0, or why there will be none.
    private func admit(_ room: UInt64) -> Int32 {
        var heldSince: UInt64 = 0
        defer {
            if heldSince != 0 {
                log.add(ftvm_disk_now() - heldSince, to: .heldNanoseconds)
                log.add(.max, to: .heldNow)
            }
        }
        while true {
            switch state {
            case .waiting: return -EROFS
            case .ended: return -ESHUTDOWN
            case .active: break
            }
            guard log.generation == generation || PlantedBug.active == .ignoresGeneration else {
                return -ESHUTDOWN
            }
            let end = place(room) + room
            if !isFullerThan(half: false, end, head + 1) { return 0 }
            if log.isStopping {
                // The last quarter; beyond it QEMU keeps the request and repeats it (werror).
                let fits =
                    end - dataTail <= log.header.dataBytes
                    && head + 1 - recordTail <= log.header.recordCapacity
                return fits ? 0 : -ENOSPC
            }
            let failure = log[.failure]
            if failure != 0 { return -Int32(truncatingIfNeeded: failure & 0xffff_ffff) }
            if heldSince == 0 {
                heldSince = max(ftvm_disk_now(), 1)
                log.add(1, to: .heldNow)
                FaultPoint.reached("disklog.append.held")
            }
            // While sealed records wait, the storage is what is slow: a commit makes no room.
            if log.applied >= log.sealed || isMostlyUnsealed { wantCommit() }
            appending.wait(milliseconds: 50)
        }
    }

    /// Whether a quarter of the log waits for a commit: only that is a reason to want one early.
    private var isMostlyUnsealed: Bool {
        let sealed = log.sealed
        guard sealed < head else { return false }
        if head - sealed > log.header.recordCapacity / 4 { return true }
        guard let first = log.record(sealed) else { return false }
        return dataHead - first.dataPosition > log.header.dataBytes / 4
    }

    /// Asks ftvmd for a commit, once until it has made one.
    private func wantCommit() {
        guard log.head > log.sealed, log.exchange(.demand, 0, 1) else { return }
        notify?(.commitWanted)
    }

    /// Gives back the room of everything below `sequence`, whose data end at `dataEnd`.
    func free(below sequence: UInt64, dataEnd: UInt64) {
        appending.lock()
        recordTail = sequence
        dataTail = sequence == head ? dataHead : max(dataTail, dataEnd)
        log[.usedBytes] = dataHead - dataTail
        appending.broadcast()
        appending.unlock()
    }

    /// What is used of the log, in sixteenths of its data or of its records.
    var fullness: UInt64 {
        appending.lock()
        defer { appending.unlock() }
        return max(
            (dataHead - dataTail) * 16 / log.header.dataBytes,
            (head - recordTail) * 16 / log.header.recordCapacity)
    }
}
