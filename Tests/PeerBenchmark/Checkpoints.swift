import BenchmarkSupport
import CLinux
import Foundation
import Glibc
import Hypervisor
import Model
import Protection
import Synchronization

/// Checkpoints as scripts make them: QEMU migrates the running guest into memory, and goes on when
/// that has ended. With
/// `ignoresShared` the guest's memory is a shared file and is not copied: the state of the devices only, so that there
/// is nothing to go back to. It is the least that a checkpoint through a migration can take.
final class MigrationCheckpoints: Peer, @unchecked Sendable {
    static let name = "migration"
    static let nameIgnoringShared = "x-ignore-shared"
    let guest: BenchGuest
    var processes: [Int32] { [guest.qemu.processID] }
    private let target: Int32
    private let memoryFile: String?
    private let period: UInt64
    private let isEnding = Atomic<Bool>(false)
    private let ended = DispatchSemaphore(value: 0)
    private let failures = Mutex<[String]>([])

    /// A checkpoint that does not come to its end because memory changes too quickly.
    private static let longestSeconds = 20.0

    init(
        _ shape: BenchGuest.Shape, in directory: URL, ignoresShared: Bool,
        checkpointMilliseconds: Int
    ) throws {
        var shape = shape
        if ignoresShared { shape.memoryFile = directory.appendingPathComponent("memory").path }
        memoryFile = shape.memoryFile
        period = UInt64(checkpointMilliseconds) * 1_000_000
        let path = directory.appendingPathComponent("checkpoint").path
        target = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard target >= 0 else {
            throw FtvmError(.unavailable, "cannot write \(path)")
        }
        unlink(path)
        guest = try BenchGuest(shape, in: directory, name: "migration")
        _ = try guest.waitForControl()
        if ignoresShared {
            try guest.setCapabilities("events", "x-ignore-shared")
        } else {
            try guest.setCapabilities("events")
        }
        try guest.command(
            "migrate-set-parameters", "{\"max-bandwidth\":\(10 << 30),\"downtime-limit\":20}")
        let thread = Thread { [self] in
            run()
            ended.signal()
        }
        thread.start()
    }

    /// Why checkpoints failed, if any did.
    var complaints: [String] { failures.withLock { $0 } }

    private func run() {
        while !isEnding.load(ordering: .relaxed) {
            let began = MonotonicClock.nowNanoseconds()
            do {
                try checkpoint()
            } catch {
                if isEnding.load(ordering: .relaxed) { return }
                failures.withLock { if $0.count < 5 { $0.append("\(error)") } }
                usleep(200_000)
            }
            let next = began + period
            let now = MonotonicClock.nowNanoseconds()
            if now < next { usleep(UInt32((next - now) / 1_000)) }
        }
    }

    private func checkpoint() throws {
        lseek(target, 0, SEEK_SET)
        try guest.command("getfd", "{\"fdname\":\"checkpoint\"}", descriptor: target)
        try guest.command("migrate", "{\"uri\":\"fd:checkpoint\"}")
        let deadline = Date().addingTimeInterval(Self.longestSeconds)
        while try !hasEnded(deadline) {}
        let migration = try guest.migration()
        // It is over for QEMU only when the guest is marked as one that has left.
        while migration.status == "completed",
            try guest.monitor.status().status != "postmigrate", Date() < deadline
        {}
        if try guest.monitor.status().status != "running" { try guest.command("cont") }
        guard migration.status == "completed" else {
            throw FtvmError(.unavailable, "a checkpoint failed", cause: "\(migration)")
        }
    }

    /// Looks at the monitor's events, which come at once.
    private func hasEnded(_ deadline: Date) throws -> Bool {
        if Date() > deadline {
            try guest.command("migrate_cancel")
            throw FtvmError(
                .timedOut, "a checkpoint does not converge",
                cause: "memory changes quicker than it is copied, for \(Self.longestSeconds) s")
        }
        let events = try guest.monitor.takeEvents(waitMilliseconds: 100)
        guard events.contains(where: { $0.name == "MIGRATION" }) else { return false }
        return try guest.migration().hasEnded
    }

    func end() {
        isEnding.store(true, ordering: .relaxed)
        guest.kill()
        ended.wait()
        close(target)
        if let memoryFile { unlink(memoryFile) }
    }
}
