import CLinux
import MemoryPool
import Model

/// The pages that are to be logged ahead for the next epoch, and how far that has got. In fixed memory; under the
/// tracker's lock.
struct LogAhead {
    /// Of the undo log at most an eighth is used for pages that may not be written at all.
    private static let shareOfLog: UInt64 = 8
    private static let mostPages: UInt64 = 1 << 16

    let hot: HotPages
    private let pages: UnsafeMutablePointer<UInt64>
    private let limit: Int
    /// Planned pages, rising.
    private(set) var planned = 0
    /// How many of them have their images behind the published entries of the log.
    var prepared = 0
    /// How many have been logged.
    var logged = 0
    /// How many have been logged and unprotected.
    var unprotected = 0

    init(pageCount: UInt64, undoCapacity: UInt64) {
        hot = HotPages(pageCount: pageCount)
        limit = Int(min(undoCapacity / Self.shareOfLog, Self.mostPages, pageCount))
        pages = .allocate(capacity: max(1, limit))
        pages.initialize(repeating: 0, count: max(1, limit))
    }

    func release() {
        hot.release()
        pages.deallocate()
    }

    subscript(index: Int) -> UInt64 {
        precondition(index < planned, "a planned page")
        return pages[index]
    }

    /// The early part of protecting this epoch's pages has been done.
    private(set) var hasBegun = false

    mutating func begin() {
        hasBegun = true
        planned = 0
        prepared = 0
        logged = 0
        unprotected = 0
    }

    mutating func plan(_ page: UInt64, endOf epoch: Epoch) {
        guard hot.isHot(page: page, endOf: epoch), planned < limit else { return }
        pages[planned] = page
        planned += 1
    }

    mutating func endPlan() { hasBegun = false }

    mutating func forgetPrepared() { prepared = 0 }

    /// Nothing more of this plan is logged.
    mutating func cutPlan() {
        planned = logged
        prepared = min(prepared, logged)
    }

    func note(logged page: UInt64) { hot.logged(page: page) }
}

/// Logging ahead: a page that is touched in every epoch costs its guest a copy made by us, not a fault.
///
/// 1. Guest stopped, pages protected, QEMU saving: images are taken, into log entries that do not count yet. Nothing may
///    change these pages without a fault; if there is one, the images are dropped.
/// 2. At the change of epochs the entries are published and the pages marked as touched. Whoever touches them is let
///    through from here on, as with any page that has been logged.
/// 3. From then on, while QEMU resumes the guest and after: the fault thread unprotects them, and logs what is left of the
///    plan, a little at a time.
extension PageTracker {
    /// Bytes copied with the lock held once.
    private static let chunkBytes: UInt64 = 64 << 10
    /// Ranges unprotected with the lock held once.
    private static let rangesAtOnce = 8

    /// Takes the images of some more planned pages; the guest stands still. The caller holds the lock.
    /// - Returns: whether there are more.
    func prepareAheadLocked() -> Bool {
        guard var plan = ahead, let segment, touchedCount == 0 else { return false }
        defer { ahead = plan }
        let end = min(plan.planned, plan.prepared + Int(max(1, Self.chunkBytes / pageSizeBytes)))
        let next = Epoch(runningEpoch).next
        while plan.prepared < end {
            let page = plan[plan.prepared]
            guard
                case .appended = segment.prepareUndo(
                    page: page, offset: UInt64(plan.prepared), epoch: next)
            else { return false }
            plan.prepared += 1
        }
        return plan.prepared < plan.planned
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
        loggedAheadCount += UInt64(plan.prepared)
    }

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
