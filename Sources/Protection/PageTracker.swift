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
    let segment: Segment?

    let mutex: UnsafeMutablePointer<pthread_mutex_t>
    /// One bit a page: touched since it was last protected. Under the lock.
    private let bitmap: UnsafeMutablePointer<UInt64>
    private let wordCount: Int
    private(set) var touchedCount: UInt64 = 0
    /// The epoch that runs now: entries of the log carry its number. Under the lock.
    private(set) var runningEpoch: UInt64 = 0
    /// RAM blocks that each commit copies. Under the lock.
    var copied: CopiedBlocks?
    /// What is before it in the segment is not tracked: messages of an earlier tracker's faults there may still come.
    var firstTrackedOffset: UInt64 = 0
    /// What is logged before it is touched. Under the lock.
    var ahead: LogAhead?
    var logsAhead = true
    /// Undo log entries that may be in use before somebody is asked for an early commit.
    let highWater: UInt64
    let onHighWater: (@Sendable () -> Void)?
    var highWaterReported = false
    /// Where the last fault was, and how many pages were taken together. Fault thread.
    var lastPage = UInt64.max
    var cluster: UInt64 = 1

    /// What the fault thread is to do besides handling faults: bits of `Order`. Atomic; its eventfd says that it changed.
    let orders: UnsafeMutablePointer<UInt64>
    let wakeDescriptor: Int32
    private var thread: OwnThread?
    let process: QEMUProcess

    /// Faults handled, and overflows of the undo log, since the start. Read without the lock, for figures.
    package internal(set) var faultCount: UInt64 = 0
    package internal(set) var overflowCount: UInt64 = 0
    /// Pages logged before they were touched, since the start.
    package internal(set) var loggedAheadCount: UInt64 = 0
    /// The segment belongs to a later generation. Under the lock.
    var fenced = false
    /// Set when the userfaultfd can no longer be read: the process is gone.
    package internal(set) var lost = false

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
        orders = .allocate(capacity: 1)
        orders.initialize(to: 0)
        if let segment {
            ahead = LogAhead(
                pageCount: pageCount, pageSizeBytes: pageSizeBytes,
                undoCapacity: segment.undoCapacity)
            copied = CopiedBlocks(memory.copied, of: process)
        }
        guard wakeDescriptor >= 0 else {
            throw FtvmError(.resourceExhausted, "cannot make an eventfd for the page tracker")
        }
    }

    deinit {
        precondition(thread == nil, "a page tracker is stopped before it goes away")
        close(wakeDescriptor)
        ahead?.release()
        orders.deallocate()
        pthread_mutex_destroy(mutex)
        mutex.deallocate()
        bitmap.deallocate()
    }

    // MARK: - Life

    /// Registers the range with the userfaultfd and protects all of it. Nothing is tracked before this.
    package func protectAll() throws {
        try protect(memory.blocks)
        try protectCopied()
    }

    /// The same with some blocks.
    func protect(_ blocks: [GuestMemory.Block]) throws {
        for block in blocks {
            try expect(
                ftvm_uffd_register_wp(uffd, block.hostAddress, block.lengthBytes),
                "register guest RAM with userfaultfd")
            try expect(
                ftvm_uffd_protect(uffd, block.hostAddress, block.lengthBytes),
                "write-protect guest RAM")
        }
    }

    func protectCopied() throws { try withLock { try protectCopiedLocked() } }

    /// Takes over from a tracker that died: these pages were logged, and may be unprotected.
    package func adopt(touched pages: [UInt64]) {
        withLock { for page in pages { _ = mark(page) } }
    }

    /// Begins to handle faults, as the epoch with this number. Faults that a dead tracker had read are
    /// not delivered again by themselves, so all waiters are woken: they fault anew.
    package func start(epoch: Epoch) throws {
        precondition(thread == nil, "a page tracker is started once")
        runningEpoch = epoch.number
        ftvm_atomic_store_u64(orders, 0)
        thread = try OwnThread("ftvm-faults") { self.handleFaults() }
        for block in memory.blocks {
            try expect(
                ftvm_uffd_wake(uffd, block.hostAddress, block.lengthBytes), "wake waiting vCPUs")
        }
        _ = ftvm_uffd_wake_all(uffd)
    }

    /// Ends the thread. Pages stay as they are: a write to a protected page then blocks, until another
    /// tracker takes over or `release` is called.
    package func stop() {
        guard let thread else { return }
        give(.end)
        thread.join()
        self.thread = nil
    }

    /// Things that the fault thread is told.
    enum Order: UInt64 {
        case end = 1
        case logAhead = 2
    }

    func give(_ order: Order) {
        _ = ftvm_atomic_fetch_or_u64(orders, order.rawValue)
        var one: UInt64 = 1
        _ = write(wakeDescriptor, &one, 8)
    }

    /// No page is tracked any more; whoever waits goes on.
    package func release() {
        for block in memory.blocks {
            _ = ftvm_uffd_unregister(uffd, block.hostAddress, block.lengthBytes)
        }
    }

    func expect(_ result: Int32, _ what: String) throws {
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

    /// Clean pages between touched ones that are protected once more rather than beginning another range: a range costs a
    /// system call, and an interrupt to every other CPU that runs a thread of QEMU; a page less than 0.1 us.
    private var bridgedPages: UInt64 { pageSizeBytes > 65_536 ? 0 : 32 }

    /// Protects the touched pages again and forgets that they were touched. The caller holds the lock.
    /// - Returns: how many pages had been touched.
    package func protectTouchedLocked(visit: ((UInt64, UInt64) -> Void)? = nil) throws -> UInt64 {
        guard touchedCount > 0 else { return 0 }
        let count = touchedCount
        var word = 0
        while word < wordCount {
            try protectTouchedLocked(from: &word, rangesAtMost: .max) { page in
                visit?(page, 1)
                return true
            }
        }
        return count
    }

    /// Protects touched pages from a word of the bitmap on, as many ranges as are allowed and the word's end; `take`
    /// says whether a page is to be protected. The caller holds the lock.
    private func protectTouchedLocked(
        from word: inout Int, rangesAtMost limit: Int, take: (UInt64) -> Bool
    ) throws {
        var ranges = 0
        var start = UInt64.max
        var end: UInt64 = 0
        func finishRange() throws {
            guard start != .max else { return }
            try protect(firstPage: start, endPage: end)
            start = .max
            ranges += 1
        }
        while word < wordCount, ranges < limit {
            var bits = bitmap[word]
            while bits != 0 {
                let page = UInt64(word) * 64 + UInt64(bits.trailingZeroBitCount)
                bits &= bits - 1
                guard take(page) else {
                    try finishRange()
                    continue
                }
                bitmap[word] &= ~(1 << (page & 63))
                touchedCount -= 1
                if start != .max, page > end + bridgedPages { try finishRange() }
                if start == .max { start = page }
                end = page + 1
            }
            word += 1
        }
        try finishRange()
    }

    /// The part of a commit's work that can be done while the guest still runs: protects what it has touched so far, but for
    /// pages that it touches all the time. What it touches again is logged again in the same epoch; of two images of a page
    /// the older counts. Takes the lock itself, for a little at a time: faults come first.
    /// - Returns: how many pages were protected.
    func protectEarly() throws -> UInt64 {
        var count: UInt64 = 0
        var word = 0
        let isWorthwhile = withLock {
            guard ahead != nil, touchedCount >= Self.fewPages else { return false }
            ftvm_atomic_fetch_and_u64(orders, ~Order.logAhead.rawValue)
            ahead?.begin()
            return true
        }
        guard isWorthwhile else { return 0 }
        let epoch = Epoch(runningEpoch)
        while word < wordCount {
            try withLock {
                let before = touchedCount
                try protectTouchedLocked(from: &word, rangesAtMost: Self.rangesAtOnce) { page in
                    guard let hot = self.ahead?.hot, !hot.isBusy(page: page, in: epoch) else {
                        return false
                    }
                    return !planLocked(page, endOf: epoch)
                }
                count += before - touchedCount
            }
        }
        FaultPoint.reached("commit.early")
        return count
    }

    /// Fewer touched pages are protected when the guest stands still.
    private static let fewPages: UInt64 = 16
    /// Ranges protected early with the lock held once.
    private static let rangesAtOnce = 8

    /// The first half of a commit's work, when the guest has been stopped: protects what was touched, and plans what to
    /// log ahead. The epoch goes on: what QEMU itself should touch is logged in it, a second time perhaps. The caller
    /// holds the lock.
    /// - Returns: how many pages had been touched, but for those that were protected early.
    func closeEpochLocked() throws -> UInt64 {
        guard let plan = ahead else { return try protectTouchedLocked() }
        ftvm_atomic_fetch_and_u64(orders, ~Order.logAhead.rawValue)
        let wasEarly = plan.hasBegun
        if !wasEarly { ahead?.begin() }
        ahead?.endPlan()
        let epoch = Epoch(runningEpoch)
        let count = touchedCount
        let keptEarly = ahead?.kept ?? 0
        var next = 0
        var word = 0
        try protectTouchedLocked(from: &word, rangesAtMost: .max) { page in
            guard let ahead = self.ahead else { return true }
            while next < keptEarly, ahead[next] < page { next += 1 }
            if next < keptEarly, ahead[next] == page { return false }
            if wasEarly { plan.hot.wasBusy(page: page) }
            return !self.planLocked(page, endOf: epoch)
        }
        return count
    }

    /// The second half, when the device state has been saved: what is logged from here on belongs to `epoch`. The caller
    /// holds the lock.
    /// - Returns: how many pages QEMU has touched since the first half, and where in the undo log the new epoch begins: nil
    ///   when it has touched any. They are protected again then, and the old epoch goes on.
    func openEpochLocked(_ epoch: Epoch) throws -> (latePages: UInt64, undoStart: UInt64?) {
        let kept = UInt64(ahead?.kept ?? 0)
        guard touchedCount == kept, keptPagesAreAsPreparedLocked() else {
            let late = max(1, touchedCount - kept)
            _ = try protectTouchedLocked()
            ahead?.forget()
            return (late, nil)
        }
        // The images are where entries have been written since.
        if try commitCopiedLocked() { ahead?.forgetPrepared() }
        try protectUnpreparedLocked()
        let undoStart = segment?.undoHead ?? 0
        beginEpochLocked(epoch)
        publishPreparedLocked(undoStart)
        return (0, undoStart)
    }

    /// The epoch that runs from here on.
    package func beginEpochLocked(_ epoch: Epoch) {
        runningEpoch = epoch.number
        highWaterReported = false
    }

    /// The epoch that runs is not the next one after all: its commit has failed after the pages were protected.
    func renumberEpochLocked(_ epoch: Epoch) { runningEpoch = epoch.number }

    /// One that was touched is as it was before that.
    func protectLocked(_ page: UInt64) throws {
        try protect(firstPage: page, endPage: page + 1)
        bitmap[Int(page >> 6)] &= ~(1 << (page & 63))
        touchedCount -= 1
    }

    private func protect(firstPage: UInt64, endPage: UInt64) throws {
        try memory.forEachRange(
            offset: firstPage * pageSizeBytes, length: (endPage - firstPage) * pageSizeBytes
        ) { address, _, length in
            try expect(
                ftvm_uffd_protect(uffd, address, length), "write-protect guest RAM again")
        }
    }

    /// The caller holds the lock, and has logged the pages.
    func unprotectLocked(firstPage: UInt64, count: UInt64) {
        memory.forEachRange(offset: firstPage * pageSizeBytes, length: count * pageSizeBytes) {
            _ = ftvm_uffd_unprotect(uffd, $0, $2)
        }
    }

    /// Touched pages from this one on. The caller holds the lock.
    func touchedLocked(from first: UInt64) -> [UInt64] {
        touchedCount == 0 ? [] : (first..<pageCount).filter(isTouched)
    }

    func isTouched(_ page: UInt64) -> Bool {
        bitmap[Int(page >> 6)] & (1 << (page & 63)) != 0
    }

    /// Marks a page as touched; says whether it was not before.
    @discardableResult
    func mark(_ page: UInt64) -> Bool {
        precondition(page < pageCount, "a page of the guest's RAM")
        guard !isTouched(page) else { return false }
        bitmap[Int(page >> 6)] |= 1 << (page & 63)
        touchedCount += 1
        return true
    }
}
