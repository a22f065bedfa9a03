import ControlAPI
import EndToEndSupport
import Foundation
import GuestClients
import Lab
import Model

/// Measures with and without protection in turn, so that a machine that gets slower or faster meanwhile does not show.
final class NetworkBench {
    let table = NetworkTable()
    /// FTVM_BENCH_ROUNDS: times that each figure of the first part is taken.
    private let rounds = Settings.number("FTVM_BENCH_ROUNDS", default: 3)
    /// FTVM_BENCH_MOVES: failovers, and switchovers, of each kind.
    private let moves = Settings.number("FTVM_BENCH_MOVES", default: 20)
    private static let questions = 1_500
    private static let bulkBytes = 256 << 20

    func run() async throws {
        try await onALab(poolSize: nil) { lab in
            try await traffic(lab)
            try await blackouts(lab, memoryMiB: 256, hosts: true)
        }
        // The same with 16 times as much memory, all of it in the segment.
        try await onALab(poolSize: "7GiB") { lab in
            try await blackouts(lab, memoryMiB: 4_096, hosts: false)
        }
    }

    private func onALab(
        poolSize: String?, _ body: (TestLab) async throws -> Void
    ) async throws {
        let lab = try TestLab(LabShape(poolSize: poolSize))
        try await lab.up()
        do {
            try await body(lab)
        } catch {
            await Artifacts.keep(
                lab, in: Artifacts.directory(test: "network-benchmark"), since: Date())
            try? await lab.down()
            throw error
        }
        try await lab.down()
    }

    // MARK: - Requests and bulk

    /// Figures of one of the two ways to run.
    private struct Traffic {
        var p50: [Double] = []
        var p99: [Double] = []
        /// Of a guest that was enabled while it ran, and not moved since: QEMU has no monitor of ours.
        var liveP50: [Double] = []
        var liveP99: [Double] = []
        var requests: [Double] = []
        var out: [Double] = []
        var `in`: [Double] = []
    }

    private func traffic(_ lab: TestLab) async throws {
        _ = try await lab.runDemo(on: lab.hosts[0])
        var figures: [Bool: Traffic] = [false: Traffic(), true: Traffic()]
        for _ in 1...rounds {
            for isProtected in [false, true] {
                if isProtected { try await protect(lab, &figures[true, default: Traffic()]) }
                try await measure(lab, &figures[isProtected, default: Traffic()])
                if isProtected { try await lab.disable() }
            }
        }
        try await lab.removeDemo()
        report(figures[false] ?? Traffic(), figures[true] ?? Traffic())
    }

    /// Enables the running guest, and moves it there and back: from then on its QEMU has a monitor of ours.
    private func protect(_ lab: TestLab, _ figures: inout Traffic) async throws {
        _ = try await lab.ftvm(PairView.self, "enable", TestLab.demo)
        _ = try await lab.protected()
        let live = try await oneByOne(lab)
        figures.liveP50.append(live.latency.p50)
        figures.liveP99.append(live.latency.p99)
        for target in [lab.hosts[1], lab.hosts[0]] {
            let answer = try await lab.attempt(["switchover", TestLab.demo, "--to", target.text])
            guard answer.status == 0 else { throw Failure("switchover: \(answer.errorOutput)") }
            _ = try await lab.protected { $0.primary == target }
        }
    }

    private func oneByOne(_ lab: TestLab) async throws -> CounterReport {
        try await lab.client(
            CounterReport.self, ["counter", "--connections", "1", "--count", "\(Self.questions)"])
    }

    private func measure(_ lab: TestLab, _ figures: inout Traffic) async throws {
        let one = try await oneByOne(lab)
        figures.p50.append(one.latency.p50)
        figures.p99.append(one.latency.p99)
        let began = monotonicNanoseconds()
        let many = try await lab.client(
            CounterReport.self,
            ["counter", "--connections", "8", "--count", "\(Self.questions / 2)"])
        let seconds = Double(monotonicNanoseconds() - began) / 1e9
        figures.requests.append(Double(many.replies) / seconds)
        for (arguments, path) in [
            (["download", "--raw"], \Traffic.out), (["upload"], \Traffic.in),
        ] {
            let report = try await lab.client(
                TransferReport.self, arguments + ["--bytes", "\(Self.bulkBytes)"])
            figures[keyPath: path].append(Double(report.bytes) / 1_048_576 / report.seconds)
        }
    }

    private func report(_ free: Traffic, _ protected: Traffic) {
        let (p50, p99) = (protected.p50.median, protected.p99.median)
        table.add(
            "request and answer over TCP, protected",
            "p50 \(decimal(p50)) ms, p99 \(decimal(p99)) ms",
            promise: "p50 < 8 ms, p99 < 15 ms", holds: p50 < 8 && p99 < 15)
        table.add(
            "the same, enabled while it ran and not moved since",
            "p50 \(decimal(protected.liveP50.median)) ms, p99 \(decimal(protected.liveP99.median)) ms"
        )
        table.add(
            "the same, unprotected",
            "p50 \(decimal(free.p50.median)) ms, p99 \(decimal(free.p99.median)) ms")
        table.add(
            "requests a second over 8 connections, protected against unprotected",
            "\(Int(protected.requests.median)) of \(Int(free.requests.median))")
        let share = protected.out.median / free.out.median * 100
        table.add(
            "bulk TCP out, protected against unprotected",
            "\(decimal(protected.out.median)) of \(decimal(free.out.median)) MiB/s (\(Int(share)) %)",
            promise: "at least 50 %", holds: share >= 50)
        let taken = protected.in.median / free.in.median * 100
        table.add(
            "bulk TCP in, protected against unprotected",
            "\(decimal(protected.in.median)) of \(decimal(free.in.median)) MiB/s (\(Int(taken)) %)")
    }

    // MARK: - What clients notice of a move

    private func blackouts(_ lab: TestLab, memoryMiB: Int, hosts: Bool) async throws {
        var domain = GuestDomain()
        domain.memoryMiB = memoryMiB
        let (_, first) = try await lab.protectedDemo(domain)
        var pair = first
        let client = try ClientProcess(lab, ["counter", "--connections", "4"], seconds: 3_600)
        try await client.goesOn(by: 50)
        var blackouts = Blackouts()
        let memory = memoryMiB >= 1_024 ? "\(memoryMiB / 1_024) GiB" : "\(memoryMiB) MiB"
        let kills: [Kill] = hosts ? [.qemu, .host] : [.qemu]
        for kill in kills {
            for round in 1...moves {
                let before = pair
                let strike = try await Strike(kill, lab, before)
                blackouts.add(kill.rawValue, at: strike.time)
                pair = try await lab.protected("protected after \(kill), round \(round)") {
                    $0.generation > before.generation
                }
                try await strike.repair(lab)
                try await settle(client)
            }
        }
        for round in 1...moves {
            let before = pair
            blackouts.add("switchover", at: monotonicNanoseconds())
            let answer = try await lab.attempt(["switchover", TestLab.demo])
            guard answer.status == 0 else {
                throw Failure("switchover \(round): \(answer.errorOutput)")
            }
            pair = try await lab.protected("protected after switchover \(round)") {
                $0.generation > before.generation
            }
            try await settle(client)
        }
        let report = try await client.finish(CounterReport.self)
        guard report.violationCount == 0 else {
            throw Failure("the client was told what was taken back: \(report.violations)")
        }
        let silences = blackouts.milliseconds(report.gaps)
        add(silences, Kill.qemu.rawValue, "when QEMU is killed", memory, limit: 150)
        if hosts { add(silences, Kill.host.rawValue, "when the host dies", memory, limit: nil) }
        add(silences, "switchover", "in a switchover", memory, limit: 100)
        try await lab.removeDemo()
    }

    /// The next one is to find an ordinary state.
    private func settle(_ client: ClientProcess) async throws {
        try await client.goesOn(by: 100)
    }

    private func add(
        _ silences: [String: [Double]], _ kind: String, _ what: String, _ memory: String,
        limit: Double?
    ) {
        let times = silences[kind] ?? []
        let worst = times.max() ?? .nan
        table.add(
            "silence on the worst of 4 connections \(what), \(memory)",
            "\(Int(times.median)) ms median, \(Int(worst)) ms worst of \(times.count)",
            promise: limit.map { "median < \(Int($0)) ms" } ?? "",
            holds: limit.map { times.median < $0 } ?? true)
    }
}
