import ArgumentParser
import BenchmarkSupport
import Foundation
import Model
import Protection

/// How much is measured.
struct Options {
    let isQuick: Bool
    let rounds: Int
    /// For which each workload is watched.
    let seconds: Double
    let peers: Set<String>

    func wants(peer: String) -> Bool { peers.isEmpty || peers.contains(peer) }
}

/// `Scripts/bench --peers`: ftvm and its peers with the same guest, on the same machine, in turn.
@main
struct PeerBench: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "ftvm-peer-bench",
        abstract: "Measures ftvm and its peers, part by part, and writes the tables.",
        discussion: """
            Parts: epochs, sizes, moves, blackouts, traffic, storage, pairs. What a part has measured \
            replaces, in the results' file, what it had measured before; with --append it is added.
            """)

    @Option(help: "The parts to run, by name, with commas.") var parts = ""
    @Option(help: "Only these peers, with commas.") var peers = ""
    @Flag(help: "Fewer workloads and rounds: under 10 minutes in all.") var quick = false
    @Flag(help: "Further rounds of what is in the results already.") var append = false
    @Option(help: "Rounds; 0: the part's own number.") var rounds = 0
    @Option(help: "Seconds for which each workload is watched; 0: the part's own number.")
    var seconds = 0.0
    @Option(help: "The results' file, JSON.") var results = "results.json"
    @Flag(help: "Print the tables.") var print = false
    @Option(help: "Write the tables into this document, and the plots beside it into plots/.")
    var document: String?

    func run() async throws {
        let signals = Leftovers.endWithUs()
        defer { signals.forEach { $0.cancel() } }
        var kept = try BenchmarkResults(file: results)
        for part in parts.split(separator: ",").map(String.init) {
            try await run(part, &kept)
            try kept.write(to: results)
        }
        kept.machine = Machine.facts()
        try kept.write(to: results)
        if print { Swift.print(PeerReport(results: kept).text) }
        if let document { try PeerReport(results: kept).write(to: document) }
    }

    private func run(_ part: String, _ kept: inout BenchmarkResults) async throws {
        let before = Machine.load
        let began = MonotonicClock.nowNanoseconds()
        if !append { kept.forget(part: part) }
        let options = Options(
            isQuick: quick, rounds: rounds > 0 ? rounds : quick ? 1 : 3,
            seconds: seconds > 0 ? seconds : quick ? 2 : 4,
            peers: Set(peers.split(separator: ",").map(String.init)))
        switch part {
        case EpochPart.part: try EpochPart(options: options).run(&kept)
        case SizePart.part: try SizePart(options: options).run(&kept)
        case MovePart.part: try MovePart(options: options).run(&kept)
        case BlackoutPart.part: try await BlackoutPart(options: options).run(&kept)
        case TrafficPart.part: try await TrafficPart(options: options).run(&kept)
        case StoragePart.part: try await StoragePart(options: options).run(&kept)
        case PairsPart.part: try await PairsPart(options: options).run(&kept)
        default: throw ValidationError("There is no part '\(part)'.")
        }
        let seconds = Machine.milliseconds(since: began) / 1_000
        kept.add(
            run: .init(
                part: part,
                date: ISO8601DateFormatter().string(from: Date()).prefix(10).description,
                isQuick: quick, rounds: options.rounds, seconds: seconds, loadBefore: before,
                loadAfter: Machine.load))
        say("\(part): \(Int(seconds)) s")
    }
}
