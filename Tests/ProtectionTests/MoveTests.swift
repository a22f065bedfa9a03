import Fencing
import Foundation
import Glibc
import GuestSupport
import Hypervisor
import MemoryPool
import Model
import Protection
import Testing

/// A guest's memory is moved into a segment and out of it while the guest runs.
@Suite(.serialized) struct MoveTests {
    private static let rounds = 4

    /// Somebody resumes the guest whenever we stop it, and it writes as fast as it can while the rest is copied.
    @Test func aGuestThatIsResumedLosesNoPage() throws {
        let workspace = try Workspace(pool: .tmpfs)
        defer { workspace.remove() }
        var shape = GuestQEMU.Shape()
        shape.dirtyPagesPerSecond = 200_000
        let guest = try GuestQEMU(shape, in: workspace.directory, number: 0)
        defer { guest.kill() }
        _ = try guest.waitForReport()
        let user = try QMPConnection(path: guest.userSocketPath, label: "user")
        var isMeddling = false
        var resumed = 0
        let monitor = WrappedMonitor(
            guest.monitor,
            afterStop: {
                guard isMeddling else { return }
                resumed += 1
                try user.cont()
            })
        for round in 1...Self.rounds {
            let segment = try workspace.pool.createSegment(
                SegmentSpecification(
                    name: "guest-\(round)", uuid: "00000000-0000-0000-0000-000000000007",
                    memoryBytes: UInt64(shape.memoryMiB) << 20, undoLogBytes: 64 << 20))
            isMeddling = true
            let failure = #expect(throws: FtvmError.self) {
                try Self.takeOver(guest, monitor, segment).close()
            }
            #expect(failure?.code == .failedPrecondition)
            #expect(segment.flags.contains(.grafted), "the memory was moved all the same")
            try Self.requireIntact(guest)

            isMeddling = false
            let driver = try Self.takeOver(guest, monitor, segment)
            isMeddling = true
            try driver.release(injector: GuestQEMU.injector) { _ in }
            driver.close()
            #expect(!segment.flags.contains(.grafted))
            try Self.requireIntact(guest)
            _ = try workspace.pool.removeSegment(name: "guest-\(round)")
        }
        #expect(resumed == 2 * Self.rounds)
    }

    private static func takeOver(
        _ guest: GuestQEMU, _ monitor: any Monitor, _ segment: Segment
    ) throws -> PrimaryDriver {
        let lock = try segment.openLock()
        defer { close(lock) }
        try PrimaryLock.acquire(lock)
        return try PrimaryDriver.takeOver(
            process: guest.qemu,
            memory: GuestMemory.locate(monitor: monitor, expectedBytes: segment.memoryBytes),
            monitor: monitor, segment: segment, generation: Generation(1), lock: lock,
            injector: GuestQEMU.injector, progress: { _ in })
    }

    /// The guest has checked all of its memory since, and found what it wrote.
    private static func requireIntact(_ guest: GuestQEMU) throws {
        let first = try guest.waitForReport()
        let deadline = Date().addingTimeInterval(60)
        var report = first
        while report.checker.rounds < first.checker.rounds + 2, Date() < deadline {
            usleep(50_000)
            report = guest.lastReport() ?? report
            try #require(report.checker.bad == 0, "pages were lost")
        }
        try #require(
            report.checker.rounds >= first.checker.rounds + 2, "the guest does not go on: \(report)"
        )
    }
}
