import BenchmarkSupport
import ControlAPI
import EndToEndSupport
import Foundation
import GuestClients
import Lab
import Model

/// What a client on the lab's switch notices: the primary killed, a restart on another host, a
/// planned move, libvirt's live migration. Of four connections the one that was silent for longest
/// counts.
struct BlackoutPart {
    static let part = "blackouts"
    static let restart = "restart (libvirt)"
    static let migration = "live migration (libvirt)"
    static let (kill, move) = ("kill", "planned move")
    static let sizes = [256, 4_096]
    let options: Options

    func run(_ results: inout BenchmarkResults) async throws {
        var found = results
        try await BenchLab.with(LabShape(poolSize: "7GiB", logLevel: "info"), part: Self.part) {
            lab in
            for mebibytes in Self.sizes {
                if options.wants(peer: Self.restart), mebibytes == Self.sizes[0] {
                    try await restarts(lab, mebibytes, &found)
                }
                if options.wants(peer: Self.migration) {
                    try await migrations(lab, mebibytes, &found)
                }
                if options.wants(peer: Ftvm.name) { try await moves(lab, mebibytes, &found) }
            }
        }
        results = found
    }

    /// The larger guest has three quarters of its memory in use.
    private func domain(_ mebibytes: Int) -> GuestDomain {
        var domain = GuestDomain()
        domain.memoryMiB = mebibytes
        if mebibytes > 1_024 { domain.checkMiB = mebibytes * 3 / 4 }
        return domain
    }

    private func workload(_ what: String, _ mebibytes: Int) -> String {
        "\(what), \(SizePart.name(mebibytes))"
    }

    // MARK: - Restart

    /// From the kill until the guest that was started on the other host answers; nobody has to
    /// notice first.
    private func restarts(
        _ lab: TestLab, _ mebibytes: Int, _ results: inout BenchmarkResults
    ) async throws {
        for round in 1...options.rounds {
            let domain = domain(mebibytes)
            _ = try await lab.runDemo(domain, on: lab.hosts[0])
            try await lab.define(domain, on: lab.hosts[1])
            let qemu = try await lab.presentQEMU(lab.hosts[0])
            let began = monotonicNanoseconds()
            try qemu.kill()
            _ = try await lab.virsh(lab.hosts[1], "start", domain.name)
            try await answers(lab, domain)
            let blackout = Double(monotonicNanoseconds() - began) / 1e6
            results.add(
                Self.part, workload(Self.kill, mebibytes), Self.restart, "blackout", blackout,
                unit: "ms")
            say("blackouts: restart \(round): \(Int(blackout)) ms")
            try await lab.removeDemo()
        }
    }

    private func answers(_ lab: TestLab, _ domain: GuestDomain) async throws {
        try await eventually("the guest answers", period: .milliseconds(10)) { () -> Void? in
            do {
                _ = try GuestClient(
                    lab.layout, address: domain.address, timeout: .milliseconds(100)
                ).status()
                return ()
            } catch let error as FtvmError where error.code == .unavailable {
                return nil
            }
        }
    }

    // MARK: - Live migration

    private func migrations(
        _ lab: TestLab, _ mebibytes: Int, _ results: inout BenchmarkResults
    ) async throws {
        let domain = domain(mebibytes)
        _ = try await lab.runDemo(domain, on: lab.hosts[0])
        let client = try ClientProcess(lab, ["counter", "--connections", "4"], seconds: 600)
        try await client.goesOn(by: 50)
        var blackouts = Blackouts()
        let status = try await lab.status()
        do {
            for round in 1...options.rounds {
                let (from, to) = round % 2 == 1 ? (0, 1) : (1, 0)
                let target = lab.hosts[to]
                let address = status.hosts.first { $0.name == target }?.address ?? ""
                let began = monotonicNanoseconds()
                blackouts.add(Self.move, at: began)
                _ = try await Command.succeed(
                    [
                        "virsh", "-q", "-c", lab.layout.libvirtURI(of: lab.hosts[from]), "migrate",
                        "--live", "--persistent", "--undefinesource", domain.name,
                        lab.layout.libvirtURI(of: target), "--migrateuri", "tcp:\(address)",
                    ], seconds: 120)
                let total = Double(monotonicNanoseconds() - began) / 1e6
                results.add(
                    Self.part, workload(Self.move, mebibytes), Self.migration, "total", total,
                    unit: "ms")
                say("blackouts: live migration \(round): \(Int(total)) ms in all")
                try await client.goesOn(by: 100)
            }
            let report = try await client.finish(CounterReport.self)
            add(report, blackouts, Self.move, mebibytes, Self.migration, &results)
        } catch {
            say("blackouts: \(error)")
            results.remark(Self.part, Self.migration, "\(error)")
        }
        try await lab.removeDemo()
    }

    // MARK: - ftvm

    private func moves(
        _ lab: TestLab, _ mebibytes: Int, _ results: inout BenchmarkResults
    ) async throws {
        let (_, first) = try await lab.protectedDemo(domain(mebibytes))
        var pair = first
        let client = try ClientProcess(lab, ["counter", "--connections", "4"], seconds: 3_600)
        try await client.goesOn(by: 50)
        var blackouts = Blackouts()
        for round in 1...options.rounds * 3 {
            let before = pair
            let strike = try await Strike(.qemu, lab, before)
            blackouts.add(Self.kill, at: strike.time)
            pair = try await lab.protected("protected after kill \(round)") {
                $0.generation > before.generation
            }
            try await strike.repair(lab)
            try await client.goesOn(by: 100)
        }
        for round in 1...options.rounds * 3 {
            let before = pair
            let began = monotonicNanoseconds()
            blackouts.add(Self.move, at: began)
            let answer = try await lab.attempt(["switchover", TestLab.demo])
            guard answer.status == 0 else { throw Failure("switchover: \(answer.errorOutput)") }
            let total = Double(monotonicNanoseconds() - began) / 1e6
            results.add(
                Self.part, workload(Self.move, mebibytes), Ftvm.name, "total", total, unit: "ms")
            pair = try await lab.protected("protected after switchover \(round)") {
                $0.generation > before.generation
            }
            try await client.goesOn(by: 100)
        }
        let report = try await client.finish(CounterReport.self)
        guard report.violationCount == 0 else {
            throw Failure("the client was told what was taken back: \(report.violations)")
        }
        for what in [Self.kill, Self.move] {
            add(report, blackouts, what, mebibytes, Ftvm.name, &results)
        }
        try await lab.removeDemo()
    }

    private func add(
        _ report: CounterReport, _ blackouts: Blackouts, _ what: String, _ mebibytes: Int,
        _ peer: String, _ results: inout BenchmarkResults
    ) {
        let silences = blackouts.milliseconds(report.gaps)[what] ?? []
        results.add(
            Self.part, workload(what, mebibytes), peer, "blackout", silences, unit: "ms")
        say(
            "blackouts: \(what) of \(peer), \(SizePart.name(mebibytes)): \(silences.map { Int($0) })"
        )
    }
}
