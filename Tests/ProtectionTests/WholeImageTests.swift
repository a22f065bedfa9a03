import CLinux
import Fencing
import Foundation
import Glibc
import GuestSupport
import Hypervisor
import MemoryPool
import Model
import Protection
import Testing

/// The check that finds every lost page: at a commit copy the guest's RAM, kill QEMU somewhere in a later epoch, roll
/// back, compare page by page. Then go on from there on a fresh QEMU, and again. The guest's own checker must find
/// nothing either.
@Suite(.serialized) struct WholeImageTests {
    /// FTVM_IMAGE_ROUNDS: rounds of each of the four combinations; 60 kills in all without it.
    static var rounds: Int {
        ProcessInfo.processInfo.environment["FTVM_IMAGE_ROUNDS"].flatMap(Int.init) ?? 15
    }

    @Test(arguments: [PoolKind.tmpfs, .hugetlbfs], [1, 2])
    func rollbackGivesExactlyTheCommittedImage(kind: PoolKind, vcpus: Int) throws {
        try run(kind, vcpus: vcpus)
    }

    /// The same where QEMU stops, saves and goes on in one command.
    @Test(arguments: [PoolKind.tmpfs, .hugetlbfs])
    func commitsInPassingGiveExactlyTheImage(kind: PoolKind) throws {
        try run(kind, vcpus: 2, savesInPassing: true)
    }

    private func run(_ kind: PoolKind, vcpus: Int, savesInPassing: Bool = false) throws {
        let workspace = try Workspace(pool: kind, hugePages: 400)
        defer { workspace.remove() }
        var shape = GuestQEMU.Shape()
        shape.vcpus = vcpus
        try ImageRounds(workspace: workspace, shape: shape, savesInPassing: savesInPassing)
            .run(Self.rounds)
    }
}

private final class ImageRounds {
    let workspace: Workspace
    let shape: GuestQEMU.Shape
    let savesInPassing: Bool
    let segment: Segment
    let image: UnsafeMutableRawPointer
    var random = SystemRandomNumberGenerator()

    init(workspace: Workspace, shape: GuestQEMU.Shape, savesInPassing: Bool) throws {
        self.workspace = workspace
        self.savesInPassing = savesInPassing
        self.shape = shape
        segment = try workspace.pool.createSegment(
            SegmentSpecification(
                name: "image", uuid: "00000000-0000-0000-0000-000000000001",
                memoryBytes: UInt64(shape.memoryMiB) << 20,
                undoLogBytes: workspace.pool.pageSizeBytes > 4096 ? 256 << 20 : 128 << 20))
        image = UnsafeMutableRawPointer.allocate(
            byteCount: Int(segment.memoryBytes), alignment: 4096)
    }

    deinit { image.deallocate() }

    func run(_ rounds: Int) throws {
        var guest = try GuestQEMU(shape, in: workspace.directory, number: 0)
        let booted = try guest.waitForReport()
        var driver = try takeOver(guest)
        var writes = booted.checker.writes
        var rolledBack: [UInt64] = []
        var pauses: [Double] = []
        for round in 1...rounds {
            try driver.startEpochs(maximumMilliseconds: 20) { end in
                if case .stopped = end { return }
                Issue.record("the epochs ended by themselves: \(end)")
            }
            usleep(UInt32.random(in: 20_000...150_000, using: &random))
            let pausesOfRound = driver.figures().figures.pauseMedianMicroseconds
            driver.stopEpochs()
            try commitAndCopy(driver)
            usleep(UInt32.random(in: 0...60_000, using: &random))
            let overflows = driver.figures().figures.overflows
            pauses.append(pausesOfRound)
            guest.kill()
            driver.close()
            #expect(overflows == 0, "the undo log was too small for the test")
            let generation = Generation(UInt64(round) + 1)
            let next = try GuestQEMU(
                shape, in: workspace.directory, number: round, waiting: true)
            try segment.takeManagerLock()
            try segment.raiseGeneration(to: generation)
            let rollback = try segment.rollBack()
            #expect(differingPages() == [], "round \(round), rollback of \(rollback)")
            rolledBack.append(rollback.distinctPages)
            driver = try promote(next, generation)
            guest = next
        }
        let report = try waitForWrites(guest, beyond: writes)
        writes = report.checker.writes
        #expect(report.checker.bad == 0)
        driver.close()
        guest.kill()
        // Rounds in which nothing had to be rolled back prove nothing.
        #expect(rolledBack.filter { $0 > 0 }.count > rounds / 2)
        print(
            "image: \(shape), \(workspace.pool.pageSizeBytes)-byte pages: \(rounds) rounds, median of",
            "\(rolledBack.sorted()[rounds / 2]) pages rolled back, pause \(pauses.sorted()[rounds / 2]) us,",
            "checker: \(report.checker.rounds) rounds, \(report.checker.bad) bad")
    }

    /// The image is that of a guest which stands still.
    private func commitAndCopy(_ driver: PrimaryDriver) throws {
        nonisolated(unsafe) let image = image
        let segment = segment
        guard savesInPassing else {
            _ = try driver.committer.commit(.standStill)
            memcpy(image, segment.ram, Int(segment.memoryBytes))
            return try driver.committer.resume()
        }
        FaultPoint.hook = { point in
            guard point == "commit.passed" else { return }
            memcpy(image, segment.ram, Int(segment.memoryBytes))
        }
        defer { FaultPoint.hook = nil }
        try driver.committer.commit()
    }

    private func monitor(of guest: GuestQEMU) -> any Monitor {
        savesInPassing ? WrappedMonitor(guest.monitor, savesInPassing: true) : guest.monitor
    }

    /// The guest goes on and has verified its memory at least once more.
    private func waitForWrites(_ guest: GuestQEMU, beyond writes: UInt64) throws -> GuestQEMU.Report
    {
        let first = try guest.waitForReport()
        let deadline = Date().addingTimeInterval(60)
        while Date() < deadline {
            if let report = guest.lastReport(), report.checker.rounds > first.checker.rounds,
                report.checker.writes > writes
            {
                return report
            }
            usleep(100_000)
        }
        throw FtvmError(.timedOut, "the guest's checker does not go on")
    }

    private func takeOver(_ guest: GuestQEMU) throws -> PrimaryDriver {
        let memory = try GuestMemory.locate(
            monitor: guest.monitor, expectedBytes: segment.memoryBytes)
        let lock = try segment.openLock()
        defer { close(lock) }
        try PrimaryLock.acquire(lock)
        return try PrimaryDriver.takeOver(
            process: guest.qemu, memory: memory, monitor: monitor(of: guest), segment: segment,
            generation: Generation(1), lock: lock, injector: GuestQEMU.injector, progress: { _ in })
    }

    private func promote(_ guest: GuestQEMU, _ generation: Generation) throws -> PrimaryDriver {
        let secondary = try WaitingSecondary.prepare(
            process: guest.qemu, monitor: monitor(of: guest), segment: segment,
            injector: GuestQEMU.injector)
        let lock = try segment.openLock()
        defer { close(lock) }
        try PrimaryLock.acquire(lock)
        return try PrimaryDriver.promote(
            secondary, segment: segment, generation: generation, lock: lock,
            machine: "pc-i440fx-7.2", injector: GuestQEMU.injector
        ).0
    }

    private func differingPages() -> [Int] {
        let size = 4096
        return (0..<Int(segment.memoryBytes) / size).filter {
            memcmp(image + $0 * size, segment.ram + $0 * size, size) != 0
        }
    }
}
