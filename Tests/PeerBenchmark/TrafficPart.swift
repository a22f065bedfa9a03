import BenchmarkSupport
import ControlAPI
import EndToEndSupport
import Foundation
import GuestClients
import Lab
import Model

/// What protection costs clients: a guest in the lab, with and without it in turn.
struct TrafficPart {
    static let part = "traffic"
    static let connections = [1, 8, 32]
    let options: Options

    func run(_ results: inout BenchmarkResults) async throws {
        var found = results
        try await BenchLab.with(LabShape(hosts: 2, logLevel: "info"), part: Self.part) { lab in
            var domain = GuestDomain()
            domain.hasRedis = true
            _ = try await lab.runDemo(domain, on: lab.hosts[0])
            for round in 1...options.rounds {
                for peer in [Unprotected.name, Ftvm.name] where options.wants(peer: peer) {
                    say("traffic, round \(round): \(peer)")
                    if peer == Ftvm.name { try await BenchLab.protect(lab) }
                    try await measure(lab, peer, &found)
                    if peer == Ftvm.name { try await lab.disable() }
                }
            }
            try await lab.removeDemo()
        }
        results = found
    }

    private func measure(
        _ lab: TestLab, _ peer: String, _ results: inout BenchmarkResults
    ) async throws {
        for connections in Self.connections {
            let questions = (options.isQuick ? 2_000 : 6_000) / connections
            let began = monotonicNanoseconds()
            let report = try await lab.client(
                CounterReport.self,
                ["counter", "--connections", "\(connections)", "--count", "\(questions)"])
            let seconds = Double(monotonicNanoseconds() - began) / 1e9
            let workload = "request and answer, \(connections) connections"
            add(workload, peer, "throughput", Double(report.replies) / seconds, "/s", &results)
            add(workload, peer, "latency p50", report.latency.p50, "ms", &results)
            add(workload, peer, "latency p99", report.latency.p99, "ms", &results)
        }
        for (connections, pipeline) in [(8, 1), (32, 1), (32, 16)] {
            let requests = (options.isQuick ? 5_000 : 20_000) * (pipeline > 1 ? 4 : 1)
            let rate = try await redis(lab, connections, pipeline, requests)
            let workload =
                "redis SET, \(connections) connections"
                + (pipeline > 1 ? ", \(pipeline) at a time" : "")
            add(workload, peer, "throughput", rate, "/s", &results)
        }
        let bytes = (options.isQuick ? 128 : 512) << 20
        for (workload, arguments) in [
            ("bulk TCP out", ["download", "--raw"]), ("bulk TCP in", ["upload"]),
        ] {
            let report = try await lab.client(
                TransferReport.self, arguments + ["--bytes", "\(bytes)"])
            let rate = Double(report.bytes) / 1_048_576 / report.seconds
            add(workload, peer, "throughput", rate, "MiB/s", &results)
        }
    }

    private func add(
        _ workload: String, _ peer: String, _ measure: String, _ value: Double, _ unit: String,
        _ results: inout BenchmarkResults
    ) {
        results.add(Self.part, workload, peer, measure, value, unit: unit)
        say("  \(workload): \(measure) \(Format.number(value)) \(unit)")
    }

    /// `redis-benchmark`'s requests a second.
    private func redis(
        _ lab: TestLab, _ connections: Int, _ pipeline: Int, _ requests: Int
    ) async throws -> Double {
        let outcome = try await Command.attempt(
            [
                Command.ftvm, "lab", "client", "--name", lab.layout.name, "--", "redis-benchmark",
                "-h", LabLayout.guestAddress, "-t", "set", "-n", "\(requests)",
                "-c", "\(connections)", "-P", "\(pipeline)", "--csv",
            ], seconds: 120)
        guard outcome.status == 0, let rate = RedisBenchmarkText.rate(of: "SET", in: outcome.output)
        else { throw Failure("redis-benchmark: \(outcome.output) \(outcome.errorOutput)") }
        return rate
    }
}
