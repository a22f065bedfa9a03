import Fencing
import Foundation
import Glibc
import GuestSupport
import Hypervisor
import MemoryPool
import Model
import Protection
import Testing

/// An undo log that is much too small for the guest: early commits keep it from overflowing, and where nobody commits
/// the guest runs on, the segment says that it cannot be rolled back, and the next commit makes good.
@Suite(.serialized) struct UndoLogPressureTests {
    @Test func aSmallLogMeansEarlyCommitsAndAnOverflowIsNeverSilent() throws {
        let workspace = try Workspace(pool: .tmpfs)
        defer { workspace.remove() }
        let shape = GuestQEMU.Shape()
        let segment = try workspace.pool.createSegment(
            SegmentSpecification(
                name: "small", uuid: "00000000-0000-0000-0000-000000000004",
                memoryBytes: UInt64(shape.memoryMiB) << 20, undoLogBytes: 2048 * 4096))
        let guest = try GuestQEMU(shape, in: workspace.directory, number: 0)
        let booted = try guest.waitForReport()
        let lock = try segment.openLock()
        defer { close(lock) }
        try PrimaryLock.acquire(lock)
        let driver = try PrimaryDriver.takeOver(
            process: guest.qemu,
            memory: GuestMemory.locate(monitor: guest.monitor, expectedBytes: segment.memoryBytes),
            monitor: guest.monitor, segment: segment, generation: Generation(1), lock: lock,
            injector: GuestQEMU.injector, progress: { _ in })
        defer { driver.close() }
        // One commit in ten seconds by the clock; 20,000 pages a second fill half of the log in 50 ms.
        try driver.startEpochs(maximumMilliseconds: 10_000) { _ in }
        let deadline = Date().addingTimeInterval(20)
        while driver.figures().figures.commits < 10, Date() < deadline { usleep(20_000) }
        #expect(driver.figures().figures.commits >= 10, "nobody asked for early commits")
        driver.stopEpochs()
        #expect(driver.figures().figures.overflows == 0)
        let running = segment.position.epoch.next

        // Nobody commits. The last quarter of the log lasts for longer than an early commit's `stop` may take.
        while segment.undoFree > segment.undoCapacity / 4, Date() < deadline { usleep(1_000) }
        let nearlyFull = MonotonicClock.nowNanoseconds()
        while segment.overflowEpoch != running, Date() < deadline { usleep(20_000) }
        #expect(MonotonicClock.nowNanoseconds() - nearlyFull >= 5_000_000_000)
        // Required: nothing is to be rolled back under a running guest.
        try #require(segment.overflowEpoch == running)
        #expect(driver.figures().figures.overflows > 0)
        let refusal = #expect(throws: FtvmError.self) { try segment.rollBack() }
        #expect(refusal?.message.isEmpty == false)

        _ = try driver.committer.commit()
        #expect(segment.position.epoch == running)
        #expect(throws: Never.self) { try segment.latestCommit() }
        let committed = try segment.latestCommit()
        #expect(committed?.epoch == running)
        // The guest never noticed.
        let end = Date().addingTimeInterval(30)
        var report = try guest.waitForReport()
        try driver.startEpochs(maximumMilliseconds: 50) { _ in }
        while report.checker.rounds <= booted.checker.rounds + 1, Date() < end {
            usleep(100_000)
            report = try guest.waitForReport()
        }
        #expect(report.checker.rounds > booted.checker.rounds + 1)
        #expect(report.checker.bad == 0)
    }
}
