import Model
import PairLogic

/// One seed's run: all pairs are enabled, then a phase with faults in which only the rules must
/// hold, then everything is repaired and all must be protected again within a bound.
package struct Run: Sendable {
    package let seed: UInt64
    /// Broken rules; empty: clean.
    package let violations: [String]
    package let log: [String]
    package let logHash: UInt64
    package let steps: UInt64
    package let counts: [String: Int]
    /// Virtual time from the repair until all was protected, in nanoseconds.
    package let healedNanoseconds: UInt64

    package init(
        seed: UInt64, shape: Shape? = nil, bug: PlantedBug? = nil, keepsLog: Bool = false
    ) throws(FtvmError) {
        let shape = if let shape { shape } else { try Shape.random(seed) }
        let world = World(shape: shape, seed: seed, bug: bug)
        world.keepsLog = keepsLog
        self.seed = seed
        world.enableEverything()
        world.settle(within: shape.healingNanoseconds, "not protected in the first place")
        if world.violations.isEmpty {
            world.scheduleFaults()
            world.run(until: world.now + shape.faultyNanoseconds)
        }
        var healed: UInt64 = 0
        if world.violations.isEmpty {
            world.heal()
            let begin = world.now
            world.settle(within: shape.healingNanoseconds, "not healed")
            healed = world.now - begin
        }
        violations = world.violations
        log = world.log
        logHash = world.logHash
        steps = world.steps
        counts = world.counts
        healedNanoseconds = healed
    }
}

extension World {
    func enableEverything() {
        for pair in pairs.indices {
            let host = pair % hosts.count
            startDomain(pair, on: host)
            enable(pair, on: host)
        }
    }

    /// Runs until all is protected and has been for two seconds.
    func settle(within time: UInt64, _ what: String) {
        let end = now + time
        var good = 0
        while violations.isEmpty {
            run(until: now + ms(500))
            let missing = unhealed()
            good = missing == nil ? good + 1 : 0
            if good == 4 { return }
            userStartsWhatIsOff()
            if now > end, let missing {
                check(false, "\(what) after \(time / 1_000_000_000) s: \(missing)")
            }
        }
    }

    /// A guest that was lost before it was protected, or ended, is started by its user where it
    /// belongs.
    private func userStartsWhatIsOff() {
        for pair in pairs.indices {
            guard let record = pairs[pair].record,
                record.state == .unprotected || record.state == .starting,
                let host = hostIndex[record.primary]
            else { continue }
            startDomain(pair, on: host)
        }
    }
}

extension World {
    /// The times from the death of a host to each claim for a pair of its primaries, with a proof
    /// that is there at once (the fence is not what is measured), in nanoseconds of virtual time.
    package static func decisionTimes(
        killing host: Int, shape: Shape, seed: UInt64
    ) throws(FtvmError) -> [UInt64] {
        var shape = shape
        shape.budget = FailoverBudget(promotions: shape.pairs, reprotections: 4)
        let world = World(shape: shape, seed: seed)
        world.instantProof = true
        for pair in world.pairs.indices {
            world.startDomain(pair, on: host)
            world.enable(pair, on: host)
        }
        world.settle(within: ms(60_000), "not protected")
        world.run(until: world.now + world.random.time(ms(100), ms(400)))
        world.killedAt[host] = world.now
        world.begin(.crash(host))
        world.run(until: world.now + ms(3_000))
        return world.violations.isEmpty ? world.decisionTimes : []
    }
}
