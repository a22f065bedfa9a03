import DiskLog
import Foundation
import Testing

/// The block-level model checker (`Tests/DiskCrasher/Rounds.swift`): random writes, trims, zeroes,
/// flushes and commits on two disks, killed at random fault points, and judged after a restart of the
/// plugin, after a failover (killed as well), and on the images alone.
@Suite struct CheckerTests {
    /// Rounds in all; `FTVM_DISK_ROUNDS` asks for another number.
    static var rounds: Int {
        ProcessInfo.processInfo.environment["FTVM_DISK_ROUNDS"].flatMap(Int.init) ?? 1000
    }

    /// Where a process must have died in the course of it.
    static let points: Set<String> = [
        "disklog.append.data-copied", "disklog.append.record-written",
        "disklog.append.head-published", "disklog.flush.published", "disklog.sealed.stored",
        "disklog.apply.verified", "disklog.apply.written", "disklog.apply.zeroed",
        "disklog.apply.writing-back",
        "disklog.apply.all-written", "disklog.apply.one-synced", "disklog.apply.synced",
        "disklog.apply.noted", "disklog.recover.generation-raised", "disklog.recover.head-cut",
        "disklog.recover.done", "life.commit.sealed", "life.commit.published", "image.write.half",
        "image.sync.half", "disklog.batch.collected", "disklog.batch.durable",
        "disklog.journal.data-written", "disklog.journal.written", "disklog.journal.cleared",
        "disklog.journal.replayed", "disklog.journal.noted",
    ]

    @Test func everyDeathLeavesWhatWasPromised() throws {
        let seeds = 4
        nonisolated(unsafe) var deaths: [String: Int] = [:]
        nonisolated(unsafe) var failures: [String] = []
        let lock = NSLock()
        @Sendable func run(_ rounds: Int) {
            do {
                let seed = UInt64.random(in: 1...UInt64.max / 2)
                let ending = try Crasher().run("rounds", ["\(seed)", "\(rounds)", "none"])
                lock.withLock {
                    if ending.status != 0 { failures.append("seed \(seed): \(ending.output)") }
                    for line in ending.output.split(separator: "\n") {
                        let words = line.split(separator: " ").map(String.init)
                        if words.count == 3, words[0] == "death", let count = Int(words[2]) {
                            deaths[words[1], default: 0] += count
                        }
                    }
                }
            } catch {
                lock.withLock { failures.append("\(error)") }
            }
        }
        DispatchQueue.concurrentPerform(iterations: seeds) { _ in
            run(CheckerTests.rounds / seeds)
        }
        guard CheckerTests.rounds >= 1000 else { return #expect(failures == []) }
        // Some points are reached once in some hundred rounds: luck is no reason to fail, only never is.
        for _ in 0..<20 where !CheckerTests.points.isSubset(of: deaths.keys) {
            run(CheckerTests.rounds / seeds)
        }
        #expect(failures == [])
        #expect(
            CheckerTests.points.subtracting(deaths.keys) == [], "nobody died here: \(deaths)")
    }

    /// Mistakes that a story finds and the checker cannot: nothing is damaged in it, and nobody is
    /// taken for dead who lives.
    static let stories: [PlantedBug: String] = [
        .ignoresDamage: "damaged-data", .ignoresLock: "fenced-applier",
        .ignoresGeneration: "fenced-applier",
    ]

    @Test(arguments: PlantedBug.allCases)
    func aPlantedMistakeIsFound(bug: PlantedBug) throws {
        if let story = CheckerTests.stories[bug] {
            let ending = try Crasher().run("scenario", [story, bug.rawValue])
            #expect(ending.status == 3, "\(bug): \(ending.output)")
            return
        }
        // Each seed is a history of its own; most mistakes do not outlive the
        // first, those of the syncs some ten.
        for seed in 1...40 {
            let ending = try Crasher().run("rounds", ["\(seed)", "60", bug.rawValue])
            if ending.status == 3 { return }
            try #require(ending.status == 0, "\(bug): \(ending.output)")
        }
        Issue.record("\(bug) was not found")
    }
}

@Suite struct ScenarioTests {
    @Test(arguments: [
        "fenced-applier", "damaged-data", "damaged-record", "full-image", "full-log",
        "many-writers", "durability", "waiting-server", "socket", "seal-cost",
    ])
    func story(_ name: String) throws {
        let ending = try Crasher().run("scenario", [name, "none"])
        #expect(ending.status == 0, "\(ending.output)")
    }
}
