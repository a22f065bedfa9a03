import Fencing
import Foundation
import Glibc
import GuestSupport
import Hypervisor
import MemoryPool
import Model
import Protection

/// Pauses, promotion, take-over and release on the test guest.
struct EpochBenchmark {
    private static let promotions = 9

    func run(_ report: BenchmarkReport) throws {
        let workspace = try Workspace(pool: .tmpfs)
        defer { workspace.remove() }
        // 20,000 pages a second and epochs of 50 ms: about 1,000 dirty pages each.
        var shape = GuestQEMU.Shape()
        shape.dirtyPagesPerSecond = 20_000
        let segment = try workspace.pool.createSegment(
            SegmentSpecification(
                name: "bench", uuid: "00000000-0000-0000-0000-000000000003",
                memoryBytes: UInt64(shape.memoryMiB) << 20, undoLogBytes: 128 << 20))
        var guest = try GuestQEMU(shape, in: workspace.directory, number: 0)
        _ = try guest.waitForReport()
        let before = try writesPerSecond(guest)
        var driver = try takeOver(guest, segment)
        try driver.startEpochs(maximumMilliseconds: 50) { _ in }
        let during = try writesPerSecond(guest)
        let figures = driver.figures().figures
        report.add(
            "pause of an epoch with \(Int(figures.dirtyPagesMedian)) dirty pages",
            String(
                format: "%.1f ms median, %.1f ms p99, %d commits",
                figures.pauseMedianMicroseconds / 1_000, figures.pauseP99Microseconds / 1_000,
                Int(figures.commits)), promise: "median under 3 ms at 1,000 pages")
        report.add(
            "pages rewritten a second, protected against unprotected",
            String(format: "%.0f of %.0f (%.0f %%)", during, before, during / before * 100))

        var promotions: [Double] = []
        for number in 1...Self.promotions {
            driver.stopEpochs()
            let next = try GuestQEMU(shape, in: workspace.directory, number: number, waiting: true)
            let secondary = try WaitingSecondary.prepare(
                process: next.qemu, monitor: next.monitor, segment: segment,
                injector: GuestQEMU.injector)
            guest.kill()
            driver.close()
            let began = MonotonicClock.nowNanoseconds()
            (driver, _) = try promote(secondary, segment, Generation(UInt64(number) + 1))
            promotions.append(Double(MonotonicClock.nowNanoseconds() - began) / 1_000_000)
            guest = next
            try driver.startEpochs(maximumMilliseconds: 50) { _ in }
            usleep(500_000)
        }
        report.add(
            "promotion decided to first commit made (guest running earlier)",
            Distribution(promotions).text("ms"), promise: "guest running in under 60 ms")

        let began = MonotonicClock.nowNanoseconds()
        try driver.release(injector: GuestQEMU.injector) { _ in }
        report.add(
            "disable of a running guest",
            String(format: "%.0f ms in all", Double(MonotonicClock.nowNanoseconds() - began) / 1e6))
        let after = try writesPerSecond(guest)
        report.add(
            "pages rewritten a second after disable, against before enable",
            String(format: "%.0f of %.0f (%.0f %%)", after, before, after / before * 100),
            promise: "no overhead left")
        guest.kill()
    }

    private func writesPerSecond(_ guest: GuestQEMU) throws -> Double {
        try guest.writesPerSecond(seconds: 10)
    }

    private func takeOver(_ guest: GuestQEMU, _ segment: Segment) throws -> PrimaryDriver {
        let lock = try lock(segment)
        defer { close(lock) }
        return try PrimaryDriver.takeOver(
            process: guest.qemu,
            memory: GuestMemory.locate(monitor: guest.monitor, expectedBytes: segment.memoryBytes),
            monitor: guest.monitor, segment: segment, generation: Generation(1), lock: lock,
            injector: GuestQEMU.injector, progress: { _ in })
    }

    private func promote(
        _ secondary: WaitingSecondary, _ segment: Segment, _ generation: Generation
    ) throws -> (PrimaryDriver, PromotionReport) {
        let lock = try lock(segment)
        defer { close(lock) }
        try segment.takeManagerLock()
        try segment.raiseGeneration(to: generation)
        return try PrimaryDriver.promote(
            secondary, segment: segment, generation: generation, lock: lock,
            machine: "pc-i440fx-7.2", injector: GuestQEMU.injector)
    }

    private func lock(_ segment: Segment) throws -> Int32 {
        let lock = try segment.openLock()
        try PrimaryLock.acquire(lock)
        return lock
    }
}
