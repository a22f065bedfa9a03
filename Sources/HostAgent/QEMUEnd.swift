import CLinux
import Fencing
import Foundation
import Glibc
import Hypervisor
import MemoryPool
import Model
import Protection

/// How long the steps of a hand-over took on the source's host, in nanoseconds.
struct HandOverReport: Sendable {
    /// The guest has stopped, and its last commit is published.
    var lastCommitNanoseconds: UInt64 = 0
    /// From SIGKILL until QEMU provably runs nothing any more.
    var endNanoseconds: UInt64 = 0
    /// Until the primary lock is free.
    var releaseNanoseconds: UInt64 = 0
    /// The lock was given back before QEMU had let go of its memory.
    var releasedEarly = false

    var totalNanoseconds: UInt64 { lastCommitNanoseconds + endNanoseconds + releaseNanoseconds }
}

extension PairWorker {
    /// The source's part of a switchover, with everything looked up before the guest stops: last commit, SIGKILL, and
    /// the lock free as soon as QEMU can do no more harm, which is long before the kernel has taken a large memory
    /// apart.
    ///
    /// If this throws, QEMU lives: the guest may stand still, and whoever adopts it lets it go on.
    func handOver(_ driver: PrimaryDriver) async throws -> HandOverReport {
        try await blocking {
            let process = driver.process
            var report = HandOverReport()
            let began = MonotonicClock.nowNanoseconds()
            try driver.commitAndStayStopped()
            // The target's sign that this was a hand-over, whoever had stopped the guest.
            driver.segment.insertFlags(.pausedByCommit)
            FaultPoint.reached("switchover.committed")
            let committed = MonotonicClock.nowNanoseconds()
            report.lastCommitNanoseconds = committed - began
            Glibc.kill(process.processID, SIGKILL)
            FaultPoint.reached("switchover.killed")
            report.releasedEarly = process.waitUntilHarmless(milliseconds: 5_000)
            let ended = MonotonicClock.nowNanoseconds()
            report.endNanoseconds = ended - committed
            // Its QEMU asks it for nothing any more; the next one's plugin waits for its lock.
            driver.disks?.close(endingPlugin: true)
            // Ours go as well: tracker, epochs, both locks.
            driver.close(isHarmless: report.releasedEarly)
            FaultPoint.reached("switchover.released")
            report.releaseNanoseconds = MonotonicClock.nowNanoseconds() - ended
            return report
        }
    }
}

/// Waits for the primary lock, and the manager's, on a thread of its own.
final class LockWait: @unchecked Sendable {
    private let lock = NSLock()
    private var isGivenUp = false

    func giveUp() { lock.withLock { isGivenUp = true } }

    /// - Returns: false when it was given up.
    func untilFree(_ segment: Segment) throws -> Bool {
        let file = try segment.openLock()
        defer { close(file) }
        let began = MonotonicClock.nowNanoseconds()
        while true {
            if lock.withLock({ isGivenUp }) { return false }
            if try PrimaryLock.holderState(file) == .free, try !segment.isLocked(.manager) {
                return true
            }
            // The source stops within milliseconds. Should it take longer, nobody's processor is kept busy.
            let isLong = MonotonicClock.nowNanoseconds() - began > 1_000_000_000
            usleep(isLong ? 2_000 : 200)
        }
    }
}
