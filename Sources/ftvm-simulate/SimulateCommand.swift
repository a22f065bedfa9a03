import ArgumentParser
import Simulator

struct SimulateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "ftvm-simulate",
        abstract: "Runs the cluster's decisions in virtual time, with faults that a seed decides.")

    @Option(help: "How many seeds to run.") var seeds: UInt64 = 1_000
    @Option(help: "The first seed; with --seeds 1 its transcript is printed.") var seed: UInt64 = 0
    @Flag(help: "Print the transcript of the first seed that fails only in part.") var short = false
    @Option(help: "Plant this defect.") var bug: String?

    mutating func run() throws {
        let planted = bug.flatMap { PlantedBug(rawValue: $0) }
        var failures = 0
        var steps: UInt64 = 0
        var slowest: UInt64 = 0
        var counts: [String: Int] = [:]
        let clock = ContinuousClock()
        let begin = clock.now
        for number in seed..<seed + seeds {
            let run = try Run(seed: number, bug: planted, keepsLog: seeds == 1)
            steps += run.steps
            slowest = max(slowest, run.healedNanoseconds)
            counts.merge(run.counts, uniquingKeysWith: +)
            if seeds == 1 { for line in run.log { print(line) } }
            for violation in run.violations { print("seed \(number): \(violation)") }
            guard !run.violations.isEmpty else { continue }
            failures += 1
            if failures == 10 { break }
        }
        let time = clock.now - begin
        for (what, count) in counts.sorted(by: { $0.key < $1.key }) { print("\(count)\t\(what)") }
        print(
            "\(seeds) seeds, \(steps) steps, \(time), slowest healing "
                + "\(slowest / 1_000_000) ms, \(failures) failed")
        if failures > 0 { throw ExitCode(1) }
    }
}
