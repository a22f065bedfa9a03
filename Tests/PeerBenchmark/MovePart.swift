import BenchmarkSupport
import Foundation
import Model
import Protection

/// QEMU's own ways to another QEMU, on one machine and over a Unix socket: live migration, COLO's
/// failover, and a new start. No libvirt, no network and no detection: the least that each can
/// take.
struct MovePart {
    static let part = "moves"
    static let migration = "live migration (QEMU)"
    static let restart = "restart (QEMU)"
    let options: Options

    func run(_ results: inout BenchmarkResults) throws {
        for round in 1...options.rounds {
            for mebibytes in [1_024, 4_096] {
                say("moves, round \(round): live migration of \(SizePart.name(mebibytes))")
                try attempt(Self.migration, &results) { try migrate(mebibytes, $0, &$1) }
            }
            say("moves, round \(round): COLO's failover")
            try attempt(Colo.name, &results, failover)
            say("moves, round \(round): restart")
            try attempt(Self.restart, &results, restart)
        }
    }

    private func attempt(
        _ peer: String, _ results: inout BenchmarkResults,
        _ body: (URL, inout BenchmarkResults) throws -> Void
    ) throws {
        let directory = try BenchDirectory()
        defer { directory.remove() }
        do {
            try body(directory.url, &results)
        } catch {
            say("  \(peer): \(error)")
            results.remark(Self.part, peer, "\(error)")
        }
    }

    /// Three quarters of the memory are in use, and 5,000 pages a second of 16 MiB change.
    private func migrate(
        _ mebibytes: Int, _ directory: URL, _ results: inout BenchmarkResults
    ) throws {
        let shape = BenchGuest.Shape(memoryMiB: mebibytes)
        let source = try BenchGuest(shape, in: directory, name: "source")
        defer { source.kill() }
        let control = try source.waitForControl()
        _ = try control.ask("fill \(mebibytes * 3 / 4)")
        _ = try control.ask("dirty 5000 16")
        var waiting = shape
        waiting.isIncoming = true
        let target = try BenchGuest(waiting, in: directory, name: "target")
        defer { target.kill() }
        let socket = directory.appendingPathComponent("migration").path
        try target.command("migrate-incoming", "{\"uri\":\"unix:\(socket)\"}")
        // Not held back, as between hosts with a network of their own for it.
        try source.command(
            "migrate-set-parameters", "{\"max-bandwidth\":\(10 << 30)}")
        _ = try source.takeEvents()
        let began = MonotonicClock.nowNanoseconds()
        try source.command("migrate", "{\"uri\":\"unix:\(socket)\"}")
        let migration = try source.awaitMigration(seconds: 120)
        guard migration.status == "completed" else {
            throw FtvmError(.unavailable, "the migration failed", cause: "\(migration)")
        }
        try target.command("cont")
        let total = Machine.milliseconds(since: began)
        let stopped = try source.takeEvents().last { $0.name == "STOP" }
        let resumed = try target.takeEvents().last { $0.name == "RESUME" }
        guard let stopped, let resumed else {
            throw FtvmError(.unavailable, "the guest's stop and resumption were not reported")
        }
        let name = SizePart.name(mebibytes)
        let blackout = (resumed.seconds - stopped.seconds) * 1_000
        results.add(Self.part, name, Self.migration, "total", total, unit: "ms")
        results.add(Self.part, name, Self.migration, "blackout", blackout, unit: "ms")
        say("  \(Int(total)) ms in all, the guest stood still for \(Int(blackout)) ms")
    }

    /// From the primary's death until the secondary runs alone and answers a new connection; it is
    /// told at once.
    private func failover(_ directory: URL, _ results: inout BenchmarkResults) throws {
        let colo = try Colo.start(
            BenchGuest.Shape(), in: directory, checkpointMilliseconds: EpochPart.periodMilliseconds
        ) { results.remark(Self.part, Colo.name, $0) }
        defer { colo.end() }
        let control = try colo.guest.waitForControl()
        _ = try control.ask("dirty 5000 16")
        usleep(1_000_000)
        let began = MonotonicClock.nowNanoseconds()
        colo.guest.kill()
        try colo.secondary.command("x-colo-lost-heartbeat")
        let deadline = Date().addingTimeInterval(20)
        while try colo.secondary.monitor.status().status != "running" {
            guard Date() < deadline else {
                throw FtvmError(.timedOut, "the secondary does not take over")
            }
            usleep(1_000)
        }
        _ = try colo.secondary.waitForControl(seconds: 20)
        let blackout = Machine.milliseconds(since: began)
        results.add(Self.part, "512 MiB", Colo.name, "blackout", blackout, unit: "ms")
        say("  \(Int(blackout)) ms")
    }

    /// From the death until the guest, booted anew, answers: nobody has to notice first.
    private func restart(_ directory: URL, _ results: inout BenchmarkResults) throws {
        let shape = BenchGuest.Shape()
        let first = try BenchGuest(shape, in: directory, name: "first")
        defer { first.kill() }
        _ = try first.waitForControl()
        let began = MonotonicClock.nowNanoseconds()
        first.kill()
        let second = try BenchGuest(shape, in: directory, name: "second")
        defer { second.kill() }
        _ = try second.waitForControl()
        let blackout = Machine.milliseconds(since: began)
        results.add(Self.part, "512 MiB", Self.restart, "blackout", blackout, unit: "ms")
        say("  \(Int(blackout)) ms")
    }
}
