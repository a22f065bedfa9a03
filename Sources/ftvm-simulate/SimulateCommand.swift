import ArgumentParser
import Model
import Simulator

struct SimulateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "ftvm-simulate",
        abstract: "Runs the cluster's decisions in virtual time, with faults that a seed decides.",
        discussion: "Prints the transcript of the first seed that breaks a rule; exits with 1 then."
    )

    @Option(help: "How many seeds to run.") var seeds: UInt64 = 1_000
    @Option(help: "The first seed; with --seeds 1 its transcript is printed.") var seed: UInt64 = 0
    @Option(help: "Run all seeds in a cluster of this many hosts.") var hosts: Int?
    @Option(help: "And this many pairs.") var pairs: Int?
    @Option(help: "Plant this defect (tests do).") var bug: String?
    @Option(help: "Play a scenario's file and print what happens.") var scenario: String?
    @Flag(help: "Measure the decision code instead: 50 hosts, 500 pairs.") var benchmark = false
    @Flag(help: "Count what the hosts did.") var counts = false

    func validate() throws {
        if let bug, PlantedBug(rawValue: bug) == nil {
            let known = PlantedBug.allCases.map(\.rawValue).joined(separator: ", ")
            throw ValidationError("there is no defect \(bug); there are \(known)")
        }
        guard (2...50).contains(hosts ?? 2), (1...500).contains(pairs ?? 1), seeds > 0 else { throw ValidationError("2 to 50 hosts, 1 to 500 pairs, at least one seed") }
    }

    mutating func run() throws {
        if benchmark {
            for figure in Benchmark().figures {
                print("\(Int(figure.microseconds * 10 + 0.5) / 10)\tus\t\(figure.what)")
            }
            return
        }
        if let scenario { return print(try ScenarioFile.play(scenario), terminator: "") }
        var failures = 0
        var steps: UInt64 = 0
        var slowest: UInt64 = 0
        var total: [String: Int] = [:]
        let clock = ContinuousClock()
        let begin = clock.now
        for number in seed..<seed + seeds {
            let run = try Run(
                seed: number, shape: try shape(number), bug: planted, keepsLog: seeds == 1)
            steps += run.steps
            slowest = max(slowest, run.healedNanoseconds)
            total.merge(run.counts, uniquingKeysWith: +)
            if seeds == 1 { for line in run.log { print(line) } }
            guard let first = run.violations.first else { continue }
            failures += 1
            if failures == 1, seeds > 1 {
                let again = try Run(
                    seed: number, shape: try shape(number), bug: planted, keepsLog: true)
                for line in again.log { print(line) }
            }
            print("seed \(number): \(first)")
            if failures == 10 { break }
        }
        if counts {
            for (what, count) in total.sorted(by: { $0.key < $1.key }) {
                print("\(count)\t\(what)")
            }
        }
        print(
            "\(seeds) seeds, \(steps) steps, \(clock.now - begin), slowest healing "
                + "\(slowest / 1_000_000) ms, \(failures) failed")
        if failures > 0 { throw ExitCode(1) }
    }

    private var planted: PlantedBug? { bug.flatMap { PlantedBug(rawValue: $0) } }

    private func shape(_ seed: UInt64) throws -> Shape? {
        guard hosts != nil || pairs != nil else { return nil }
        return try Shape(
            hosts: hosts ?? 3, pairs: pairs ?? 1, kernels: .own, isFast: false
        ).fencedByAgents()
    }
}
