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
        /// A group is hurried when a marker waits for it, when it is as old as this, or when as much waits
        /// as a group may be, or a quarter of the log.
        package var lazyMilliseconds = 200
        /// How often the generation is looked at when nobody rings: a promotion waits for the old server to notice.
        package var lookMilliseconds = 10
        /// Between two attempts after an error of an image.
        package var retryMilliseconds = 1000
        package var groupBytes: UInt64 = 32 << 20
        package var groupRecords: UInt64 = 8192
        /// From so many groups on a batch goes through the journal, if there is one: it costs two
        /// syncs, and each group by itself one.
        package var batchGroups = 3
        /// A batch writes its data twice. For each sync that it saves they may be so much.
        package var batchBytes: UInt64 = 1 << 20
        /// The storage is told to begin after so many bytes of a group, and writes while the rest is copied:
        /// the sync finds little left to do.
        package var writebackBytes: UInt64 = 4 << 20
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
    /// Called on the applier's thread when another generation has taken over and the log has been given up.
    nonisolated(unsafe) package var onFenced: (@Sendable () -> Void)?

    package enum Notice: String, Sendable {
        case commitWanted = "commit"
        case durable, failed, fenced
    }

    // Under `appending`.
    @exclusivity(unchecked) var state = State.waiting
    @exclusivity(unchecked) var generation: UInt64 = 0
    @exclusivity(unchecked) var head: UInt64 = 0
    @exclusivity(unchecked) var lastKind = LogRecord.Kind.flush
    /// Bytes of data ever placed, and ever freed again; and records freed.
    @exclusivity(unchecked) var dataHead: UInt64 = 0
    @exclusivity(unchecked) var dataTail: UInt64 = 0
    @exclusivity(unchecked) var recordTail: UInt64 = 0

    // Of the applier's thread alone.
    let journal: DiskJournal?
    @exclusivity(unchecked) var hasReplayed = false
    let groups: [ExtentMap]
    let batchMaps: [ExtentMap]
    @exclusivity(unchecked) var pieces: [iovec] = []
    @exclusivity(unchecked) var hasBegunWriteback = false
    /// When an image last refused; monotonic nanoseconds.
    @exclusivity(unchecked) var failedAt: UInt64 = 0

    private var lock: ApplierLock?
    private var applier: OwnThread?
    // Under `bell`.
    @exclusivity(unchecked) var isRinging = false
    @exclusivity(unchecked) var isClosing = false

    let chunkBytes: UInt64

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
        for image in images {
            let result = image.claim()
            guard result == 0 else {
                throw diskError(
                    result, "a disk image is in use", advice: "end whatever has it open")
            }
            image.forgetCache()
        }
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
    func note(_ record: LogRecord) {
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
        giveUpImages()
    }

    /// Others may use the images again, as far as QEMU's locks are concerned: all of the log is in them.
    package func giveUpImages() { for image in images { image.giveUpClaim() } }

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
