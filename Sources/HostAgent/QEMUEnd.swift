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
            let file = try driver.segment.openLock()
            defer { close(file) }
            let process = driver.process
            // Held by us as well from here on; should we die, it is QEMU's alone again.
            let lock = try process.descriptors(ofSameFileAs: file).first.map {
                try process.duplicate(descriptor: $0)
            }
            defer { if let lock { close(lock) } }
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
            // Ours go as well: tracker, epochs, the manager's lock.
            driver.close(isHarmless: report.releasedEarly)
            if report.releasedEarly, let lock { try? PrimaryLock.release(lock) }
            FaultPoint.reached("switchover.released")
            report.releaseNanoseconds = MonotonicClock.nowNanoseconds() - ended
            return report
        }
    }
}

extension QEMUProcess {
    /// After SIGKILL: waits until no thread of the process can run a user instruction again. The kernel marks a
    /// thread that is ending (PF_EXITING, set first of all in `do_exit`, kernel/exit.c); it never returns to user mode.
    /// What comes after that, taking the memory apart, grows with the guest's memory and writes none of it.
    ///
    /// Writes that were under way in the kernel are not of this kind: the guest stands still, and `stop` has waited
    /// for its block I/O; frames that the tap still delivers go to QEMU's own threads, which are ending.
    /// - Returns: false when that is not certain after the time given.
    func waitUntilHarmless(milliseconds: Int) -> Bool {
        let deadline = MonotonicClock.nowNanoseconds() + UInt64(milliseconds) * 1_000_000
        while true {
            if !isRunning || allThreadsAreEnding() { return true }
            guard MonotonicClock.nowNanoseconds() < deadline else { return false }
            usleep(100)
        }
    }

    private func allThreadsAreEnding() -> Bool {
        let directory = "/proc/\(processID)/task"
        guard let threads = try? FileManager.default.contentsOfDirectory(atPath: directory) else {
            return !isRunning
        }
        return threads.allSatisfy { thread in
            // A thread that has gone meanwhile is no thread.
            guard
                let stat = try? String(
                    contentsOfFile: "\(directory)/\(thread)/stat", encoding: .utf8)
            else { return true }
            return Self.isEnding(stat: stat)
        }
    }

    /// proc(5): after the name in parentheses comes the state; `flags` is the seventh field from there.
    static func isEnding(stat: String) -> Bool {
        guard let end = stat.lastIndex(of: ")") else { return false }
        let fields = stat[stat.index(after: end)...].split(separator: " ")
        guard fields.count > 6 else { return false }
        if fields[0] == "Z" || fields[0] == "X" { return true }
        let exiting: UInt64 = 0x4
        return UInt64(fields[6]).map { $0 & exiting != 0 } ?? false
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
