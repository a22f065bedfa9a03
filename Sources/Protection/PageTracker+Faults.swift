import CLinux
import Glibc
import MemoryPool
import Model

/// The thread that handles faults.
extension PageTracker {
    /// Neighbouring pages logged and unprotected together once a writer is seen to go through memory in order.
    private static let largestCluster: UInt64 = 16

    private static let lastQuarterNanoseconds =
        UInt64(Committer.stopTimeoutMilliseconds) * 1_100_000
    /// Whoever has faulted notices the end of the shortage after this.
    private static let longestRestraintNanoseconds: UInt64 = 50_000_000

    func handleFaults() {
        let faults = UnsafeMutablePointer<ftvm_fault>.allocate(capacity: 64)
        defer { faults.deallocate() }
        var patience = FaultPatience()
        var looks = 0
        while true {
            let given = ftvm_atomic_load_u64(orders)
            // Even while faults come: they wait for whoever is responsible next.
            if given & Order.end.rawValue != 0 { return }
            var count = ftvm_uffd_read(uffd, faults, 64)
            if count == 0 {
                if given & Order.logAhead.rawValue != 0 {
                    // A little at a time, and faults first: whoever faults waits for no more than this.
                    withLock { logAheadLocked() }
                    continue
                }
                if patience.isWorthwhile {
                    looks &+= 1
                    if looks % 16 == 0 { sched_yield() }
                    continue
                }
                let ready = ftvm_poll2(uffd, wakeDescriptor, -1)
                if ready & 2 != 0 {
                    forgetWakeUps()
                    continue
                }
                if ready <= 0 { continue }
                count = ftvm_uffd_read(uffd, faults, 64)
            }
            if count < 0 {
                lost = true
                return
            }
            if count == 0 { continue }
            pthread_mutex_lock(mutex)
            let before = segment?.undoUsed ?? 0
            for index in 0..<Int(count) where faults[index].kind == 1 {
                handle(address: faults[index].address)
            }
            let report = needsHighWaterReport()
            let restraint = restraintLocked(logged: (segment?.undoUsed ?? 0) &- before)
            pthread_mutex_unlock(mutex)
            if report { onHighWater?() }
            if restraint > 0 {
                forgetWakeUps()
                _ = ftvm_poll_ns(wakeDescriptor, restraint)
            }
            patience.faultHandled()
        }
    }

    /// What was ordered stays in `orders`.
    private func forgetWakeUps() {
        var told: UInt64 = 0
        _ = read(wakeDescriptor, &told, 8)
    }

    /// One fault, under the lock.
    private func handle(address: UInt64) {
        guard let offset = memory.offset(ofAddress: address) else {
            return handleCopied(address: address)
        }
        guard offset >= firstTrackedOffset else {
            _ = ftvm_uffd_wake(uffd, address & ~4095, 4096)
            return
        }
        faultCount &+= 1
        let page = offset / pageSizeBytes
        var count: UInt64 = 1
        if !isTouched(page) {
            count = clusterLength(from: page)
            if let segment, !log(segment, page, count) { return }
            for index in page..<(page + count) { mark(index) }
        }
        unprotectLocked(firstPage: page, count: count)
        lastPage = page + count - 1
    }

    /// How many untouched pages from this one on are taken together: one, unless faults come in order.
    private func clusterLength(from page: UInt64) -> UInt64 {
        guard pageSizeBytes <= 65_536, lastPage != .max, page == lastPage + 1, !isNearlyFull else {
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
    func log(_ segment: Segment, _ page: UInt64, _ count: UInt64) -> Bool {
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

    private var isNearlyFull: Bool { segment.map { $0.undoFree < $0.undoCapacity / 4 } ?? false }

    /// How long the next fault has to wait, in nanoseconds. The last quarter of the log lasts for longer than an early
    /// commit's `stop` may take, however fast the guest writes: it is slowed down, page by page, and can still be stopped.
    /// The caller holds the lock.
    /// - Parameter count: entries that the last faults have added.
    private func restraintLocked(logged count: UInt64) -> UInt64 {
        guard let segment, count > 0, isNearlyFull else { return 0 }
        let each = Self.lastQuarterNanoseconds / max(1, segment.undoCapacity / 4)
        return min(count * each, Self.longestRestraintNanoseconds)
    }

    private func needsHighWaterReport() -> Bool {
        guard let segment, !highWaterReported, fenced || segment.undoUsed > highWater else {
            return false
        }
        highWaterReported = true
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
