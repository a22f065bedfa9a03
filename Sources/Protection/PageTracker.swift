import CLinux
import Glibc
import Hypervisor
import MemoryPool
import Model

/// Catches the first write to each page of a running guest, from outside QEMU.
///
/// QEMU's mapping of guest RAM is write-protected through a userfaultfd that was put into QEMU. The first
/// write to a page blocks its vCPU; our thread reads the fault, puts the page's old content into the undo
/// log (or, while memory is being moved, only notes the page), allows writing and lets the vCPU go on.
///
/// One lock serialises "log the page, then unprotect it" with the commit's "protect again, begin a new
/// log": without it a page could be logged in the old epoch and left unprotected in the new one, and would
/// never be logged again. A fault message may be stale by the time it is handled; what counts is the
/// bitmap, read under the lock.
package final class PageTracker: @unchecked Sendable {
    /// What a first touch is for.
    package enum Purpose {
        /// The page's old content goes to the undo log of the segment.
        case undoLog(Segment)
        /// Only which pages were touched counts.
        case dirtyPages
    }

    package let memory: GuestMemory
    package let pageSizeBytes: UInt64
    package let pageCount: UInt64
    package let uffd: Int32
    private let purpose: Purpose
    private let segment: Segment?

    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    /// One bit a page: touched since it was last protected. Under the lock.
    private let bitmap: UnsafeMutablePointer<UInt64>
    private let wordCount: Int
    private var touchedCount: UInt64 = 0
    /// The epoch that runs now: entries of the log carry its number. Under the lock.
    private var runningEpoch: UInt64 = 0
    /// Undo log entries that may be in use before somebody is asked for an early commit.
    private let highWater: UInt64
    private let onHighWater: (@Sendable () -> Void)?
    private var highWaterReported = false
    private var lastPage = UInt64.max
    private var cluster: UInt64 = 1

    private let wakeDescriptor: Int32
    private var thread = pthread_t()
    private var running = false
    private var process: QEMUProcess

    /// Faults handled, and overflows of the undo log, since the start. Read without the lock, for figures.
    package private(set) var faultCount: UInt64 = 0
    package private(set) var overflowCount: UInt64 = 0
    /// The segment belongs to a later generation. Under the lock.
    private var fenced = false
    /// Set when the userfaultfd can no longer be read: the process is gone.
    package private(set) var lost = false

    /// Neighbouring pages logged and unprotected together once a writer is seen to go through memory in order.
    private static let largestCluster: UInt64 = 16

    /// - Parameter onHighWater: called on the fault thread, at most once an epoch; it must not block.
    package init(
        process: QEMUProcess, memory: GuestMemory, uffd: Int32, pageSizeBytes: UInt64,
        purpose: Purpose, onHighWater: (@Sendable () -> Void)? = nil
    ) throws {
        precondition(
            memory.lengthBytes % pageSizeBytes == 0, "guest RAM is a whole number of pages")
        self.process = process
        self.memory = memory
        self.uffd = uffd
        self.pageSizeBytes = pageSizeBytes
        self.pageCount = memory.lengthBytes / pageSizeBytes
        self.purpose = purpose
        self.onHighWater = onHighWater
        if case .undoLog(let segment) = purpose { self.segment = segment } else { segment = nil }
        highWater = (segment?.undoCapacity ?? 2) / 2
        wordCount = Int((pageCount + 63) / 64)
        bitmap = .allocate(capacity: wordCount)
        bitmap.initialize(repeating: 0, count: wordCount)
        mutex = .allocate(capacity: 1)
        mutex.initialize(to: pthread_mutex_t())
        pthread_mutex_init(mutex, nil)
        wakeDescriptor = ftvm_eventfd()
        guard wakeDescriptor >= 0 else {
            throw FtvmError(.resourceExhausted, "cannot make an eventfd for the page tracker")
        }
    }

    deinit {
        precondition(!running, "a page tracker is stopped before it goes away")
        close(wakeDescriptor)
        pthread_mutex_destroy(mutex)
        mutex.deallocate()
        bitmap.deallocate()
    }

    // MARK: - Life

    /// Registers the range with the userfaultfd and protects all of it. Nothing is tracked before this.
    package func protectAll() throws {
        try expect(
            ftvm_uffd_register_wp(uffd, memory.hostAddress, memory.lengthBytes),
            "register guest RAM with userfaultfd")
        try expect(
            ftvm_uffd_protect(uffd, memory.hostAddress, memory.lengthBytes),
            "write-protect guest RAM")
    }

    /// Takes over from a tracker that died: these pages were logged, and may be unprotected.
    package func adopt(touched pages: [UInt64]) {
        withLock { for page in pages { _ = mark(page) } }
    }

    /// Begins to handle faults, as the epoch with this number. Faults that a dead tracker had read are
    /// not delivered again by themselves, so all waiters are woken: they fault anew.
    package func start(epoch: Epoch) throws {
        precondition(!running, "a page tracker is started once")
        runningEpoch = epoch.number
        running = true
        let context = Unmanaged.passRetained(self)
        let result = pthread_create(&thread, nil, PageTracker.threadMain, context.toOpaque())
        guard result == 0 else {
            context.release()
            running = false
            throw FtvmError(
                .resourceExhausted, "cannot start the page tracker's thread",
                cause: String(cString: strerror(result)))
        }
        try expect(
            ftvm_uffd_wake(uffd, memory.hostAddress, memory.lengthBytes), "wake waiting vCPUs")
    }

    /// Ends the thread. Pages stay as they are: a write to a protected page then blocks, until another
    /// tracker takes over or `release` is called.
    package func stop() {
        guard running else { return }
        var one: UInt64 = 1
        _ = write(wakeDescriptor, &one, 8)
        pthread_join(thread, nil)
        running = false
    }

    /// No page is tracked any more; whoever waits goes on.
    package func release() {
        _ = ftvm_uffd_unregister(uffd, memory.hostAddress, memory.lengthBytes)
    }

    private func expect(_ result: Int32, _ what: String) throws {
        guard result < 0 else { return }
        throw FtvmError(
            result == -ESRCH ? .unavailable : .unsupported,
            "cannot \(what) (QEMU process \(process.processID))",
            cause: String(cString: strerror(-result)),
            advice: "the kernel must be 6.4 or newer; `ftvm hosts` names the hosts that are ready")
    }

    // MARK: - Commit's side

    /// Runs `body` while no fault can be handled.
    package func withLock<Result>(_ body: () throws -> Result) rethrows -> Result {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return try body()
    }

    package var touchedPages: UInt64 { withLock { touchedCount } }

    /// Protects the touched pages again and forgets that they were touched. The caller holds the lock.
    /// Ranges are merged across small gaps: protecting a few clean pages once more is cheaper than
    /// another system call.
    /// - Returns: how many pages had been touched.
    package func protectTouchedLocked(visit: ((UInt64, UInt64) -> Void)? = nil) throws -> UInt64 {
        let gapPages: UInt64 = pageSizeBytes > 65_536 ? 1 : 32
        var runStart = UInt64.max
        var runEnd: UInt64 = 0
        var word = 0
        while word < wordCount {
            var bits = bitmap[word]
            while bits != 0 {
                let page = UInt64(word) * 64 + UInt64(bits.trailingZeroBitCount)
                bits &= bits - 1
                visit?(page, 1)
                if runStart == .max {
                    runStart = page
                } else if page > runEnd + gapPages {
                    try protect(firstPage: runStart, endPage: runEnd)
                    runStart = page
                }
                runEnd = page + 1
            }
            word += 1
        }
        if runStart != .max { try protect(firstPage: runStart, endPage: runEnd) }
        return touchedCount
    }

    /// Forgets which pages were touched, after they were protected and the epoch was published.
    package func beginEpochLocked(_ epoch: Epoch) {
        if touchedCount > 0 { bitmap.update(repeating: 0, count: wordCount) }
        touchedCount = 0
        runningEpoch = epoch.number
        highWaterReported = false
    }

    /// The epoch that runs is not the next one after all: its commit has failed after the pages were protected.
    func renumberEpochLocked(_ epoch: Epoch) { runningEpoch = epoch.number }

    private func protect(firstPage: UInt64, endPage: UInt64) throws {
        try expect(
            ftvm_uffd_protect(
                uffd, memory.hostAddress + firstPage * pageSizeBytes,
                (endPage - firstPage) * pageSizeBytes),
            "write-protect guest RAM again")
    }

    // MARK: - Fault thread

    private static let threadMain:
        @convention(c) (UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? =
            { context in
                guard let context else { return nil }
                let tracker = Unmanaged<PageTracker>.fromOpaque(context).takeRetainedValue()
                ftvm_name_thread("ftvm-faults")
                tracker.handleFaults()
                return nil
            }

    private func handleFaults() {
        let faults = UnsafeMutablePointer<ftvm_fault>.allocate(capacity: 64)
        defer { faults.deallocate() }
        var patience = FaultPatience()
        var looks = 0
        while true {
            var count = ftvm_uffd_read(uffd, faults, 64)
            if count == 0 {
                if patience.isWorthwhile {
                    looks &+= 1
                    if looks % 16 == 0 { sched_yield() }
                    continue
                }
                let ready = ftvm_poll2(uffd, wakeDescriptor, -1)
                if ready & 2 != 0 { return }
                if ready <= 0 { continue }
                count = ftvm_uffd_read(uffd, faults, 64)
            }
            if count < 0 {
                lost = true
                return
            }
            if count == 0 { continue }
            pthread_mutex_lock(mutex)
            for index in 0..<Int(count) where faults[index].kind == 1 {
                handle(address: faults[index].address)
            }
            let report = needsHighWaterReport()
            pthread_mutex_unlock(mutex)
            if report { onHighWater?() }
            patience.faultHandled()
        }
    }

    /// One fault, under the lock.
    private func handle(address: UInt64) {
        guard address >= memory.hostAddress, address < memory.hostEnd else { return }
        faultCount &+= 1
        let page = (address - memory.hostAddress) / pageSizeBytes
        var count: UInt64 = 1
        if !isTouched(page) {
            count = clusterLength(from: page)
            if let segment, !log(segment, page, count) { return }
            for index in page..<(page + count) { _ = mark(index) }
        }
        _ = ftvm_uffd_unprotect(
            uffd, memory.hostAddress + page * pageSizeBytes, count * pageSizeBytes)
        lastPage = page + count - 1
    }

    /// How many untouched pages from this one on are taken together: one, unless faults come in order.
    private func clusterLength(from page: UInt64) -> UInt64 {
        guard pageSizeBytes <= 65_536, lastPage != .max, page == lastPage + 1 else {
            cluster = 1
            return 1
        }
        cluster = min(cluster * 2, Self.largestCluster)
        var count: UInt64 = 1
        while count < cluster, page + count < pageCount, !isTouched(page + count) { count += 1 }
        return count
    }

    /// Says whether the pages may be unprotected. Not when the segment belongs to a later generation: whoever
    /// writes then waits until this QEMU is ended. A page that finds the log full is let through: the guest must be
    /// able to reach its next stop. The epoch is then marked as one that cannot be rolled back, before the page is
    /// unprotected, and an early commit is on its way.
    private func log(_ segment: Segment, _ page: UInt64, _ count: UInt64) -> Bool {
        switch segment.appendUndo(firstPage: page, count: Int(count), epoch: Epoch(runningEpoch)) {
        case .appended: return true
        case .fenced:
            fenced = true
            return false
        case .full:
            segment.markOverflow(epoch: Epoch(runningEpoch))
            overflowCount &+= 1
            return true
        }
    }

    private func needsHighWaterReport() -> Bool {
        guard let segment, !highWaterReported, fenced || segment.undoUsed > highWater else {
            return false
        }
        highWaterReported = true
        return true
    }

    private func isTouched(_ page: UInt64) -> Bool {
        bitmap[Int(page >> 6)] & (1 << (page & 63)) != 0
    }

    /// Marks a page as touched; says whether it was not before.
    private func mark(_ page: UInt64) -> Bool {
        precondition(page < pageCount, "a page of the guest's RAM")
        guard !isTouched(page) else { return false }
        bitmap[Int(page >> 6)] |= 1 << (page & 63)
        touchedCount += 1
        return true
    }
}

/// How long the fault thread stays awake for the next fault. Waking a sleeping thread on an idle CPU costs 40 us and more,
/// several times what handling a fault does; staying awake costs a CPU. So it stays awake for a short while, and only as
/// long as faults follow each other closely, and yields to whoever else wants its CPU.
private struct FaultPatience {
    /// Waited for the next fault at most so long.
    private static let limitNanoseconds: UInt64 = 30_000
    /// Worthwhile while the mean distance of the last faults is below this.
    private static let closeNanoseconds: UInt64 = 100_000
    private var lastFault: UInt64 = 0
    /// Mean distance of faults, the last ones weighing most.
    private var distance: UInt64 = 1_000_000

    mutating func faultHandled() {
        let now = MonotonicClock.nowNanoseconds()
        let gap = min(now &- lastFault, 1_000_000)
        distance = (distance * 7 + gap) / 8
        lastFault = now
    }

    var isWorthwhile: Bool {
        distance < Self.closeNanoseconds
            && MonotonicClock.nowNanoseconds() &- lastFault < Self.limitNanoseconds
    }
}
