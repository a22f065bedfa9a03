import CLinux
import MemoryPool
import Model

/// The pages that are to be logged ahead for the next epoch, and how far that has got. In fixed memory; under the
/// tracker's lock.
package struct LogAhead {
    /// Of the undo log at most an eighth is used for pages that may not be written at all.
    private static let shareOfLog: UInt64 = 8
    private static let mostPages: UInt64 = 1 << 16

    /// Kept pages have their images taken while the guest stands still for a commit, or they are not kept: so many bytes of them
    /// are copied well within the time that QEMU takes to save.
    private static let mostKeptBytes: UInt64 = 1 << 20
    /// Images taken while the guest stands still, kept pages' included: more would take the memory's time from QEMU's save.
    private static let mostPreparedBytes: UInt64 = 2 << 20

    let hot: HotPages
    private let pages: UnsafeMutablePointer<UInt64>
    private let limit: Int
    private let keptPages: UnsafeMutablePointer<UInt64>
    private let keptLimit: Int
    private let mostPrepared: Int
    /// Pages that stay writable over the commit, in the order in which they were found: `protectEarly`'s first.
    package private(set) var kept = 0
    /// All pages of the plan: the kept ones, and then the others, rising.
    package private(set) var planned = 0
    /// How many of them have their images behind the published entries of the log.
    package var prepared = 0
    /// How many more are to get one while the guest stands still.
    package var leftToPrepare: Int { max(0, min(planned, mostPrepared) - prepared) }
    /// The rest is over before QEMU has resumed the guest.
    package var isLittle: Bool { planned <= mostPrepared }
    /// How many kept pages have one.
    var keptPrepared: Int { min(kept, prepared) }
    /// How many have been logged.
    var logged = 0
    /// How many have been logged and are writable.
    var unprotected = 0

    package init(pageCount: UInt64, pageSizeBytes: UInt64, undoCapacity: UInt64) {
        hot = HotPages(pageCount: pageCount)
        limit = Int(min(undoCapacity / Self.shareOfLog, Self.mostPages, pageCount))
        pages = .allocate(capacity: max(1, limit))
        pages.initialize(repeating: 0, count: max(1, limit))
        keptLimit = min(limit, Int(Self.mostKeptBytes / pageSizeBytes))
        mostPrepared = max(1, Int(Self.mostPreparedBytes / pageSizeBytes))
        keptPages = .allocate(capacity: max(1, keptLimit))
        keptPages.initialize(repeating: 0, count: max(1, keptLimit))
    }

    package func release() {
        hot.release()
        pages.deallocate()
        keptPages.deallocate()
    }

    subscript(index: Int) -> UInt64 {
        precondition(index < planned, "a planned page")
        return index < kept ? keptPages[index] : pages[index - kept]
    }

    /// The early part of protecting this epoch's pages has been done.
    private(set) var hasBegun = false

    package mutating func begin() {
        hasBegun = true
        forget()
    }

    /// There is no plan.
    mutating func forget() {
        kept = 0
        planned = 0
        prepared = 0
        logged = 0
        unprotected = 0
    }

    /// - Returns: whether the page is kept: it is not to be protected.
    package mutating func plan(_ page: UInt64, endOf epoch: Epoch) -> Bool {
        guard hot.isHot(page: page, endOf: epoch), planned < limit else { return false }
        if kept < keptLimit {
            keptPages[kept] = page
            kept += 1
            planned += 1
            return true
        }
        pages[planned - kept] = page
        planned += 1
        return false
    }

    mutating func endPlan() { hasBegun = false }

    mutating func forgetPrepared() { prepared = 0 }

    /// Nothing more of this plan is logged.
    mutating func cutPlan() {
        planned = logged
        kept = min(kept, logged)
        prepared = min(prepared, logged)
    }

    func note(logged page: UInt64) { hot.logged(page: page) }
}

/// Logging ahead: a page that is touched in every epoch costs its guest a copy made by us, not a fault.
///
/// 1. Guest stopped, pages protected, QEMU saving: images are taken, into log entries that do not count yet. The first of
///    them are *kept*: they are not protected at all. Nothing ought to change any of these pages; if there is a fault, or
///    a kept page differs from its image in the end, the images are dropped and everything is protected.
/// 2. At the change of epochs kept pages without an image are protected, the entries are published, and the pages
///    marked as touched. Whoever touches them is let through from here on, as with any page that has been logged.
/// 3. From then on, while QEMU resumes the guest and after: the fault thread unprotects those that were protected, and logs
///    what is left of the plan, a little at a time.
///
/// A kept page always has an entry that a rollback would use: until the commit counts that of its touch in the epoch before,
/// and from then on its image.
extension PageTracker {
    /// Bytes copied with the lock held once.
    private static let chunkBytes: UInt64 = 64 << 10
    /// Ranges unprotected with the lock held once.
    private static let rangesAtOnce = 8

    /// A page that was touched is planned, if it is hot.
    /// - Returns: whether it is kept.
    func planLocked(_ page: UInt64, endOf epoch: Epoch) -> Bool {
        logsAhead && ahead?.plan(page, endOf: epoch) ?? false
    }

    /// Takes the images of some more planned pages; the guest stands still. The caller holds the lock.
    /// - Returns: whether there are more.
    func prepareAheadLocked() -> Bool {
        guard var plan = ahead, let segment, touchedCount == plan.kept else { return false }
        defer { ahead = plan }
        let chunk = min(plan.leftToPrepare, Int(max(1, Self.chunkBytes / pageSizeBytes)))
        let end = plan.prepared + chunk
        let next = Epoch(runningEpoch).next
        while plan.prepared < end {
            let page = plan[plan.prepared]
            guard
                case .appended = segment.prepareUndo(
                    page: page, offset: UInt64(plan.prepared), epoch: next)
            else { return false }
            plan.prepared += 1
        }
        return plan.leftToPrepare > 0
    }

    /// The same with kept pages only.
    func prepareKeptLocked() -> Bool {
        guard let plan = ahead, plan.keptPrepared < plan.kept else { return false }
        return prepareAheadLocked()
    }

    /// Those that the commit under way has not protected.
    package var keptPages: [UInt64] {
        withLock { ahead.map { plan in (0..<plan.kept).map { plan[$0] } } ?? [] }
    }

    /// Whether nobody has written to kept pages since their images were taken.
    func keptPagesAreAsPreparedLocked() -> Bool {
        guard let plan = ahead, let segment else { return true }
        return (0..<plan.keptPrepared).allSatisfy {
            segment.isAsPrepared(page: plan[$0], offset: UInt64($0))
        }
    }

    /// Kept pages for whose images there was no time are pages like others.
    func protectUnpreparedLocked() throws {
        guard let plan = ahead else { return }
        for index in plan.keptPrepared..<plan.kept { try protectLocked(plan[index]) }
    }

    /// The prepared entries count; they belong to the epoch that begins.
    func publishPreparedLocked(_ undoStart: UInt64) {
        guard var plan = ahead, let segment, plan.prepared > 0 else { return }
        defer { ahead = plan }
        guard case .appended = segment.publishPreparedUndo(count: UInt64(plan.prepared)) else {
            plan.forgetPrepared()
            return
        }
        FaultPoint.reached("ahead.published")
        for index in 0..<plan.prepared {
            mark(plan[index])
            plan.note(logged: plan[index])
        }
        plan.logged = plan.prepared
        plan.unprotected = plan.keptPrepared
        loggedAheadCount += UInt64(plan.prepared)
    }

    /// Whether this may be done while QEMU resumes the guest.
    var hasLittleToLogAhead: Bool { withLock { ahead?.isLittle ?? true } }

    /// The guest runs: the fault thread does the rest.
    func startLoggingAhead() {
        guard withLock({ ahead.map { $0.unprotected < $0.planned } ?? false }) else { return }
        give(.logAhead)
    }

    /// The commit has failed: what has been logged stays, nothing more is.
    func stopLoggingAheadLocked() { ahead?.cutPlan() }

    /// A part of the rest; takes the order back when there is no more.
    func logAheadLocked() {
        guard var plan = ahead else { return }
        var more = false
        if !fenced, plan.unprotected < plan.logged {
            unprotectSome(&plan)
            more = plan.unprotected < plan.planned
        } else if !fenced, plan.logged < plan.planned {
            more = logSome(&plan)
        }
        ahead = plan
        if !more { ftvm_atomic_fetch_and_u64(orders, ~Order.logAhead.rawValue) }
    }

    private func unprotectSome(_ plan: inout LogAhead) {
        for _ in 0..<Self.rangesAtOnce where plan.unprotected < plan.logged {
            let first = plan[plan.unprotected]
            var count = 1
            while plan.unprotected + count < plan.logged,
                plan[plan.unprotected + count] == first + UInt64(count)
            {
                count += 1
            }
            unprotectLocked(firstPage: first, count: UInt64(count))
            plan.unprotected += count
        }
    }

    /// Logs and unprotects neighbours among the planned pages that nobody has touched since.
    private func logSome(_ plan: inout LogAhead) -> Bool {
        guard let segment else { return false }
        while plan.logged < plan.planned, isTouched(plan[plan.logged]) { plan.logged += 1 }
        plan.unprotected = plan.logged
        guard plan.logged < plan.planned else { return false }
        let first = plan[plan.logged]
        var count = 1
        let limit = Int(max(1, Self.chunkBytes / pageSizeBytes))
        while count < limit, plan.logged + count < plan.planned,
            plan[plan.logged + count] == first + UInt64(count), !isTouched(first + UInt64(count))
        {
            count += 1
        }
        guard
            case .appended = segment.appendUndo(
                firstPage: first, count: count, epoch: Epoch(runningEpoch))
        else {
            plan.cutPlan()
            return false
        }
        for page in first..<first + UInt64(count) {
            mark(page)
            plan.note(logged: page)
        }
        unprotectLocked(firstPage: first, count: UInt64(count))
        plan.logged += count
        plan.unprotected = plan.logged
        loggedAheadCount += UInt64(count)
        return plan.logged < plan.planned
    }
}
