import Fencing
import Foundation
import Glibc
import GuestSupport
import Hypervisor
import MemoryPool
import Model
import Protection

/// What a commit costs at different numbers of dirty pages, step by step, and what logging ahead saves.
struct PauseBenchmark {
    private struct Setting {
        let name: String
        let dirtyPagesPerSecond: Int
        let checkMiB: Int
        var logsAhead = true
    }

    private static let settings = [
        Setting(name: "100 random pages", dirtyPagesPerSecond: 2_000, checkMiB: 48),
        Setting(name: "1,000 random pages", dirtyPagesPerSecond: 20_000, checkMiB: 48),
        Setting(name: "4,000 random pages", dirtyPagesPerSecond: 100_000, checkMiB: 96),
        Setting(
            name: "working set of 1,024 pages, no log-ahead", dirtyPagesPerSecond: 40_000,
            checkMiB: 4, logsAhead: false),
        Setting(
            name: "working set of 1,024 pages", dirtyPagesPerSecond: 40_000, checkMiB: 4),
    ]
    private static let commits = 200

    private struct Row {
        var reports: [CommitReport] = []
        var faultsPerEpoch = 0.0
        var aheadPerEpoch = 0.0
        var rateAlone = 0.0
        var rateProtected = 0.0
    }

    func run() throws {
        print(
            "| guest writes, an epoch of 50 ms | dirty pages | pause ms (p99) | stop | protect, images "
                + "| rest of save | publish | cont | saved again | faults | ahead | speed |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for setting in Self.settings {
            let row = try measure(setting)
            func steps(_ value: (CommitSteps) -> UInt64) -> String {
                let values = row.reports.map { Double(value($0.steps)) / 1e6 }
                return String(format: "%.2f", Distribution(values).median)
            }
            let pauses = Distribution(row.reports.map { Double($0.pauseNanoseconds) / 1e6 })
            let again = row.reports.filter { $0.saves > 1 }.count * 100 / row.reports.count
            let dirty = Distribution(row.reports.map { Double($0.dirtyPages) })
            print(
                "| \(setting.name) | \(Int(dirty.median)) |",
                String(format: "%.2f (%.2f)", pauses.median, pauses.p99),
                "| \(steps(\.stop)) | \(steps(\.prepare)) | \(steps(\.save)) | \(steps(\.publish))",
                "| \(steps(\.resume)) | \(again) % |",
                String(
                    format: "%.0f | %.0f | %.0f %% |", row.faultsPerEpoch, row.aheadPerEpoch,
                    row.rateProtected / row.rateAlone * 100))
        }
    }

    private func measure(_ setting: Setting) throws -> Row {
        let workspace = try Workspace(pool: .tmpfs)
        defer { workspace.remove() }
        var shape = GuestQEMU.Shape()
        shape.dirtyPagesPerSecond = setting.dirtyPagesPerSecond
        shape.checkMiB = setting.checkMiB
        let segment = try workspace.pool.createSegment(
            SegmentSpecification(
                name: "bench", uuid: "00000000-0000-0000-0000-000000000005",
                memoryBytes: UInt64(shape.memoryMiB) << 20, undoLogBytes: 128 << 20))
        let guest = try GuestQEMU(shape, in: workspace.directory, number: 0)
        _ = try guest.waitForReport()
        var row = Row()
        row.rateAlone = try guest.writesPerSecond(seconds: 5)
        let lock = try segment.openLock()
        defer { close(lock) }
        try PrimaryLock.acquire(lock)
        let driver = try PrimaryDriver.takeOver(
            process: guest.qemu,
            memory: GuestMemory.locate(monitor: guest.monitor, expectedBytes: segment.memoryBytes),
            monitor: guest.monitor, segment: segment, generation: Generation(1), lock: lock,
            injector: GuestQEMU.injector, progress: { _ in })
        defer {
            driver.close()
            guest.kill()
        }
        driver.logsAhead = setting.logsAhead
        for _ in 0..<40 {
            usleep(50_000)
            try driver.committer.commit()
        }
        let before = driver.figures().figures
        let first = try guest.waitForReport()
        for _ in 0..<Self.commits {
            usleep(50_000)
            row.reports.append(try driver.committer.commit())
        }
        let after = driver.figures().figures
        let last = try guest.waitForReport()
        row.faultsPerEpoch = Double(after.faults - before.faults) / Double(Self.commits)
        row.aheadPerEpoch =
            Double(after.loggedAheadPages - before.loggedAheadPages) / Double(Self.commits)
        row.rateProtected =
            Double(last.checker.writes - first.checker.writes)
            / (last.uptimeSeconds - first.uptimeSeconds)
        return row
    }
}

extension GuestQEMU {
    /// From the guest's own reports, two of them at least so far apart.
    func writesPerSecond(seconds: Double) throws -> Double {
        let first = try waitForReport()
        let deadline = Date().addingTimeInterval(60)
        while Date() < deadline {
            if let last = lastReport(), last.uptimeSeconds > first.uptimeSeconds + seconds {
                return Double(last.checker.writes - first.checker.writes)
                    / (last.uptimeSeconds - first.uptimeSeconds)
            }
            usleep(100_000)
        }
        throw FtvmError(.timedOut, "the guest does not report")
    }
}
