import Model
import Simulator
import Testing

@Suite struct SeedTests {
    /// `Scripts/simulate --seeds 10000` searches longer.
    @Test(arguments: 0..<4)
    func rulesHoldAndEverythingIsProtectedAgain(_ part: UInt64) throws {
        for seed in part * 30..<(part + 1) * 30 {
            let run = try Run(seed: seed)
            #expect(run.violations == [], "seed \(seed): Scripts/simulate --seeds 1 --seed \(seed)")
        }
    }

    /// What the seeds above came to: a simulation in which nothing happens proves nothing.
    @Test func mostThingsHappen() throws {
        var counts: [String: Int] = [:]
        for seed in UInt64(0)..<60 {
            counts.merge(try Run(seed: seed).counts, uniquingKeysWith: +)
        }
        // Some things hardly happen in a mixture of all faults.
        for focus in Shape.Focus.allCases {
            for seed in UInt64(0)..<10 {
                var shape = try Shape.random(seed)
                shape.focus(on: focus)
                let run = try Run(seed: seed, shape: shape)
                counts.merge(run.counts, uniquingKeysWith: +)
            }
        }
        let expected = [
            "claimPromotion", "claimFenced", "promote", "reportPromoted", "waitForFence",
            "handOver", "adoptPrimary", "adoptSecondary", "cleanUpStale", "fence mark",
            "fence takeOver", "fence confirmOwn", "fence remove", "rejoin", "guests stopped",
            "watchdog", "lie", "proof agent", "proof libvirt", "proof manual", "proof own-host",
            "commit fenced", "host dead", "host suspect", "guestShutDown", "beginEnabling",
        ]
        for what in expected { #expect((counts[what] ?? 0) > 0, "\(what) never happened") }
    }

    @Test(arguments: [UInt64(7), 42, 104, 999])
    func aSeedGivesTheSameRunAgain(_ seed: UInt64) throws {
        let first = try Run(seed: seed, keepsLog: true)
        let second = try Run(seed: seed, keepsLog: true)
        #expect(first.log.count > 50)
        #expect(first.logHash == second.logHash)
        #expect(first.log == second.log)
        #expect(try Run(seed: seed + 1, keepsLog: true).logHash != first.logHash)
    }

    @Test func aLargeClusterHeals() throws {
        let shape = try Shape(hosts: 24, pairs: 120, kernels: .own).fencedByAgents()
        let run = try Run(seed: 3, shape: shape)
        #expect(run.violations == [])
        #expect(run.steps > 50_000)
    }
}

/// The rules have teeth: each planted defect is found, in so many seeds at most.
@Suite struct PlantedBugTests {
    private func isFound(_ bug: PlantedBug, _ focus: Shape.Focus?, seeds: UInt64) throws -> Bool {
        for seed in 0..<seeds {
            var shape = try Shape.random(seed)
            guard shape.hosts <= 5 else { continue }
            if let focus { shape.focus(on: focus) }
            if try !Run(seed: seed, shape: shape, bug: bug).violations.isEmpty { return true }
        }
        return false
    }

    private static let focuses: [PlantedBug: Shape.Focus] = [
        .proofOutlivesIncarnation: .cutOff, .acknowledgesFenced: .cutOff, .selfFenceLate: .cutOff,
        .deathIsProof: .cutOff, .ownDelayAccuses: .pauses, .oneWayIsDeath: .pauses,
        .commitWithoutCompare: .lies, .anyWaitingIsReady: .users,
    ]

    @Test(arguments: PlantedBug.allCases)
    func isFound(_ bug: PlantedBug) throws {
        let found = try isFound(bug, Self.focuses[bug], seeds: 400)
        #expect(found, "\(bug) went unnoticed in 400 seeds")
    }

    /// And the same seeds without a defect are clean.
    @Test(arguments: Shape.Focus.allCases)
    func withoutOneTheyAreClean(_ focus: Shape.Focus) throws {
        for seed in UInt64(0)..<25 {
            var shape = try Shape.random(seed)
            guard shape.hosts <= 5 else { continue }
            shape.focus(on: focus)
            #expect(try Run(seed: seed, shape: shape).violations == [], "seed \(seed), \(focus)")
        }
    }
}
