import BenchmarkSupport
import ControlAPI
import EndToEndSupport
import Foundation
import GuestClients
import Lab
import Model

/// Idle pairs, all with their primaries on one host: what CPU time and memory they cost there.
struct PairsPart {
    static let part = "pairs"
    static let memoryMiB = 128
    let options: Options

    static func counts(isQuick: Bool) -> [Int] { isQuick ? [1, 4] : [1, 4, 16] }

    static func name(_ pairs: Int) -> String { pairs == 1 ? "1 pair" : "\(pairs) pairs" }

    func run(_ results: inout BenchmarkResults) async throws {
        var found = results
        try await BenchLab.with(
            LabShape(hosts: 2, poolSize: "6GiB", logLevel: "info"), part: Self.part
        ) { lab in
            var domains: [GuestDomain] = []
            for count in Self.counts(isQuick: options.isQuick) {
                let new = (domains.count..<count).map(domain)
                for domain in new {
                    try await lab.define(domain, on: lab.hosts[0])
                    _ = try await lab.virsh(lab.hosts[0], "start", domain.name)
                }
                for domain in new {
                    _ = try await Guest(lab: lab, domain: domain).connect(seconds: 240)
                }
                say("pairs: \(count) guests run")
                if domains.isEmpty { try await watch(lab, "1 guest", Unprotected.name, &found) }
                for domain in new {
                    _ = try await lab.ftvm(PairView.self, "enable", domain.name)
                    _ = try await lab.protected(of: domain.name, seconds: 120)
                }
                domains += new
                try await watch(lab, Self.name(count), Ftvm.name, &found)
                try await memory(lab, domains, Self.name(count), &found)
                for domain in domains {
                    _ = try await Guest(lab: lab, domain: domain).status()
                    _ = try await lab.protected(of: domain.name)
                }
            }
            for domain in domains { try await lab.removeDemo(domain.name) }
        }
        results = found
    }

    private func domain(_ index: Int) -> GuestDomain {
        var domain = GuestDomain()
        domain.name = "p\(index)"
        domain.number = 10 + index
        domain.memoryMiB = Self.memoryMiB
        domain.checkMiB = 4
        domain.dirtyPagesPerSecond = 0
        return domain
    }

    /// CPU time of the primaries' host, by program, in shares of a core.
    private func watch(
        _ lab: TestLab, _ workload: String, _ peer: String, _ results: inout BenchmarkResults
    ) async throws {
        // What was just enabled comes to rest.
        try await Task.sleep(for: .seconds(3))
        let seconds = options.isQuick ? 10.0 : 30.0
        let before = try await used(lab)
        let began = monotonicNanoseconds()
        try await Task.sleep(for: .seconds(seconds))
        let after = try await used(lab)
        let elapsed = Double(monotonicNanoseconds() - began) / 1e9
        for program in ["ftvmd", "libvirtd", "qemu"] {
            let cores = (after[program, default: 0] - before[program, default: 0]) / elapsed
            results.add(Self.part, workload, peer, "\(program) CPU", cores * 100, unit: "%")
            say("  \(workload), \(peer): \(program) \(Format.number(cores * 100, decimals: 1)) %")
        }
    }

    private func used(_ lab: TestLab) async throws -> [String: Double] {
        var used: [String: Double] = [:]
        let status = try await lab.status()
        for process in status.hosts.first(where: { $0.name == lab.hosts[0] })?.processes ?? [] {
            let program = ["ftvmd", "libvirtd", "qemu"].first { process.name.hasPrefix($0) }
            if let program { used[program, default: 0] += ProcessTime.seconds(process.pid) }
        }
        return used
    }

    /// What a pair takes above the guest's own memory: in the segment, in the waiting QEMU, and of
    /// both daemons.
    private func memory(
        _ lab: TestLab, _ domains: [GuestDomain], _ workload: String,
        _ results: inout BenchmarkResults
    ) async throws {
        var segments = 0.0
        for domain in domains {
            guard let segment = try await lab.pair(domain.name)?.segment else { continue }
            let directory = URL(fileURLWithPath: lab.ramFile(segment)).deletingLastPathComponent()
            segments += Self.allocatedMiB(directory.path) - Double(Self.memoryMiB)
        }
        var (waiting, daemons) = (0.0, 0.0)
        for host in try await lab.status().hosts {
            for process in host.processes {
                let view = ProcessView(pid: process.pid)
                let kibibytes = view.status("RssAnon").first.flatMap { Double($0) } ?? 0
                if process.name.hasPrefix("ftvmd") { daemons += kibibytes / 1_024 }
                if process.name.hasPrefix("qemu"), host.name != lab.hosts[0] {
                    waiting += kibibytes / 1_024
                }
            }
        }
        let pairs = Double(domains.count)
        for (measure, value) in [
            ("segment above RAM", segments / pairs), ("waiting QEMU", waiting / pairs),
            ("ftvmd, two hosts", daemons),
        ] {
            results.add(Self.part, workload, Ftvm.name, measure, value, unit: "MiB")
            say("  \(workload): \(measure) \(Format.number(value)) MiB")
        }
    }

    private static func allocatedMiB(_ directory: String) -> Double {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
        return names.reduce(0) { sum, name in
            var information = stat()
            guard stat("\(directory)/\(name)", &information) == 0 else { return sum }
            return sum + Double(information.st_blocks) / 2_048
        }
    }
}
