import BenchmarkSupport
import Fencing
import Foundation
import Glibc
import GuestSupport
import Hypervisor
import MemoryPool
import Model
import Protection

/// One way to keep the guest, or none, at work on a guest of its own.
protocol Peer: AnyObject {
    static var name: String { get }
    var guest: BenchGuest { get }
    /// Processes whose CPU time is that of this way; this one if it works in it.
    var processes: [Int32] { get }
    func end()
}

/// The guest by itself.
final class Unprotected: Peer {
    static let name = "unprotected"
    let guest: BenchGuest
    var processes: [Int32] { [guest.qemu.processID] }

    init(_ shape: BenchGuest.Shape, in directory: URL) throws {
        guest = try BenchGuest(shape, in: directory, name: "unprotected")
    }

    func end() { guest.kill() }
}

/// ftvm's own engine, in this process. The guest has no gate: its card is on QEMU's own network.
final class Ftvm: Peer {
    static let name = "ftvm"
    let guest: BenchGuest
    let driver: PrimaryDriver
    private let workspace: Workspace
    var processes: [Int32] { [guest.qemu.processID, getpid()] }

    /// - Parameter fillMiB: of the guest's memory, before it is taken over.
    init(
        _ shape: BenchGuest.Shape, in directory: URL, epochMilliseconds: Int, fillMiB: Int = 0
    ) throws {
        workspace = try Workspace(pool: .tmpfs)
        Leftovers.add(directory: workspace.directory)
        do {
            let segment = try workspace.pool.createSegment(
                SegmentSpecification(
                    name: "bench", uuid: "00000000-0000-0000-0000-000000000007",
                    memoryBytes: UInt64(shape.memoryMiB) << 20, undoLogBytes: 256 << 20))
            guest = try BenchGuest(shape, in: directory, name: "ftvm")
            let control = try guest.waitForControl()
            if fillMiB > 0 { _ = try control.ask("fill \(fillMiB)") }
            let lock = try segment.openLock()
            defer { close(lock) }
            try PrimaryLock.acquire(lock)
            driver = try PrimaryDriver.takeOver(
                process: guest.qemu,
                memory: GuestMemory.locate(
                    monitor: guest.monitor, expectedBytes: segment.memoryBytes),
                monitor: guest.monitor, segment: segment, generation: Generation(1), lock: lock,
                injector: GuestQEMU.injector, progress: { _ in })
            try driver.startEpochs(maximumMilliseconds: epochMilliseconds) { end in
                if case .stopped = end { return }
                say("ftvm's epochs have ended: \(end)")
            }
        } catch {
            workspace.remove()
            throw error
        }
    }

    func end() {
        driver.stopEpochs()
        guest.kill()
        driver.close()
        workspace.remove()
    }
}

/// QEMU's COLO: both sides run, and are made the same at checkpoints, which here only time asks for.
final class Colo: Peer {
    static let name = "COLO"
    let guest: BenchGuest
    let secondary: BenchGuest
    var processes: [Int32] { [guest.qemu.processID, secondary.qemu.processID] }

    /// In the QEMU that all are measured with or, where COLO does not begin in that, in the machine's.
    /// - Parameter remark: told why not, if so.
    static func start(
        _ shape: BenchGuest.Shape, in directory: URL, checkpointMilliseconds: Int,
        remark: (String) -> Void
    ) throws -> Colo {
        do {
            return try Colo(shape, in: directory, checkpointMilliseconds: checkpointMilliseconds)
        } catch {
            guard shape.qemu.program != BenchQEMU.machine.program else { throw error }
            say("  \(error)")
            remark("not in the newer QEMU: \(error); measured in the machine's own QEMU")
        }
        var shape = shape
        shape.qemu = .machine
        let other = directory.appendingPathComponent("machine")
        try FileManager.default.createDirectory(at: other, withIntermediateDirectories: true)
        return try Colo(shape, in: other, checkpointMilliseconds: checkpointMilliseconds)
    }

    private init(
        _ shape: BenchGuest.Shape, in directory: URL, checkpointMilliseconds: Int
    ) throws {
        var waiting = shape
        waiting.isIncoming = true
        guest = try BenchGuest(shape, in: directory, name: "colo-primary")
        secondary = try BenchGuest(waiting, in: directory, name: "colo-secondary")
        _ = try guest.waitForControl()
        let socket = directory.appendingPathComponent("colo").path
        for side in [secondary, guest] { try side.setCapabilities("x-colo") }
        try secondary.command("migrate-incoming", "{\"uri\":\"unix:\(socket)\"}")
        try guest.command(
            "migrate-set-parameters",
            "{\"x-checkpoint-delay\":\(checkpointMilliseconds),\"max-bandwidth\":\(10 << 30)}")
        try guest.command("migrate", "{\"uri\":\"unix:\(socket)\"}")
        let migration = try guest.awaitMigration(seconds: 30)
        guard migration.status == "colo" else {
            throw FtvmError(
                .unsupported, "COLO does not begin",
                cause:
                    "the migration with x-colo ends as '\(migration.status ?? "")', not as 'colo'"
                    + (migration.errorDescription.map { ": \($0)" } ?? ""))
        }
    }

    /// What either side is at, for whoever wonders why nothing goes on.
    var account: String {
        [("primary", guest), ("secondary", secondary)].map { side, guest in
            let status = (try? guest.monitor.status().status) ?? "its monitor does not answer"
            let complaints = guest.complaints.split(separator: "\n").joined(separator: "; ")
            return "\(side): \(status)" + (complaints.isEmpty ? "" : " (\(complaints))")
        }.joined(separator: ", ")
    }

    func end() {
        guest.kill()
        secondary.kill()
    }
}
