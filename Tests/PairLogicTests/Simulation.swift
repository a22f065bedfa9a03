import Model
import PairLogic

/// A random life of one pair: a phase with faults, in which only the rules must hold, then
/// everything is healed and the pair has to be what its user wishes within a bound.
struct Simulation {
    /// What may go wrong, each in per mille of all steps.
    struct Faults {
        var killHost = 4
        var startHost = 15
        var killAgent = 8
        var startAgent = 40
        var freeze = 3
        var thaw = 20
        var killQEMU = 4
        /// A host takes another for dead that is not.
        var falseAccusation = 3
        var stepFails = 10
        /// libvirt or the lock gives no answer to one look.
        var silence = 20
        var shutDown = 2
        var startDomain = 20
        var askForPromotion = 4
        var askForSwitchover = 12
        var cancelSwitchover = 3
        var drain = 3
        var undrain = 12
        var askForDisable = 2
        var enable = 30
        /// How often an agent's view of the record is brought up to date before it decides.
        var refresh = 600
        var look = 300
        var forgive = 30
    }

    var world: World
    let faults: Faults
    /// Rounds that healing took.
    private(set) var roundsToHeal = 0

    init(seed: UInt64, hosts: Int, faults: Faults = Faults(), bug: World.Bug? = nil) {
        world = World(hosts: hosts, seed: seed)
        world.bug = bug
        self.faults = faults
        world.startDomain(on: world.names[world.random.below(hosts)])
        world.enable()
    }

    mutating func runWithFaults(steps: Int) {
        world.failuresPerMille = faults.stepFails
        world.silencePerMille = faults.silence
        for _ in 0..<steps where world.violations.isEmpty {
            disturb()
            let name = anyHost()
            if world.random.chance(faults.refresh) { world.refresh(name) }
            if world.random.chance(faults.look) { world.look(name) }
            if world.random.chance(faults.forgive) { world.forgive(name) }
            world.step(name)
        }
    }

    mutating func anyHost() -> HostName {
        world.names[world.random.below(world.names.count)]
    }

    private mutating func disturb() {
        let name = anyHost()
        func happens(_ perMille: Int) -> Bool { world.random.chance(perMille) }
        if happens(faults.killHost) {
            world.say("-- kill \(name)")
            world.killHost(name)
        }
        if happens(faults.startHost) { world.startHost(name) }
        if happens(faults.killAgent) {
            world.say("-- kill ftvmd on \(name)")
            world.killAgent(name)
        }
        if happens(faults.startAgent) { world.startAgent(name) }
        if happens(faults.freeze) {
            world.say("-- freeze \(name)")
            world[name].isFrozen = true
        }
        if happens(faults.thaw), world[name].isFrozen {
            world.say("-- thaw \(name)")
            world[name].isFrozen = false
        }
        if happens(faults.killQEMU), !world[name].isFrozen, world[name].qemu != nil {
            world.say("-- kill QEMU on \(name)")
            world.killQEMU(on: name)
        }
        if happens(faults.falseAccusation) {
            let other = anyHost()
            if other != name { world[name].sees[other] = .dead }
        }
        if happens(faults.shutDown) {
            world.say("-- the guest shuts down")
            world.shutGuestDown()
        }
        if happens(faults.startDomain) { userStartsDomain() }
        if happens(faults.askForPromotion) { world.ask { $0.promotionRequested = true } }
        if happens(faults.askForSwitchover) {
            world.say("-- switchover")
            world.askForSwitchover(to: world.random.chance(500) ? anyHost() : nil)
        }
        if happens(faults.cancelSwitchover) { world.cancelSwitchover() }
        if happens(faults.drain) {
            world.say("-- drain \(name)")
            world[name].isDrained = true
        }
        if happens(faults.undrain) { world[name].isDrained = false }
        if happens(faults.askForDisable) {
            world.say("-- disable")
            if world.random.chance(300) {
                world.discard()
            } else {
                world.ask { $0.desired = .disabled }
            }
        }
        if happens(faults.enable), world.record == nil {
            world.say("-- enable")
            userStartsDomain()
            world.enable()
        }
    }

    /// A user starts the guest where it belongs, once nobody could take it up from the segment.
    private mutating func userStartsDomain() {
        if let record = world.record {
            guard record.state == .unprotected || record.state == .starting else { return }
            world.startDomain(on: record.primary)
        } else {
            world.startDomain(on: anyHost())
        }
    }

    /// The world stands still: nothing fails, and everybody goes on believing what it believes,
    /// right or wrong. Then the agents must come to rest, and not write against each other without
    /// end.
    mutating func comeToRest(rounds: Int) {
        world.say("-- stand still")
        world.failuresPerMille = 0
        world.silencePerMille = 0
        let first = world.revision
        var changes = 0
        for round in 1...rounds where world.violations.isEmpty {
            let before = world.revision
            for name in world.names {
                world.refresh(name)
                world.step(name)
            }
            if round > rounds / 2 { changes += world.revision - before }
        }
        let total = world.revision - first
        world.check(
            changes == 0,
            "no rest: \(changes) of \(total) changes are late")
    }

    /// Everything is repaired; then all hosts in turn, until nothing is to do any more.
    mutating func heal(rounds: Int) {
        world.say("-- heal")
        world.failuresPerMille = 0
        world.silencePerMille = 0
        let kept = segmentToKeep
        for name in world.names {
            world.startHost(name)
            world.startAgent(name)
            world[name].isFrozen = false
            world[name].isDrained = false
        }
        for round in 1...rounds where world.violations.isEmpty {
            if world.record == nil, round % 8 == 0 {
                userStartsDomain()
                world.enable()
            } else if world.record?.state == .unprotected {
                userStartsDomain()
            }
            for name in world.names {
                world.look(name)
                world.refresh(name)
                if round % 8 == 0 { world.forgive(name) }
                world.step(name)
            }
            if isQuiet {
                roundsToHeal = round
                if let kept, world.segment?.id != kept {
                    world.violations.append("the guest was begun anew instead of going on")
                }
                return
            }
        }
        world.violations.append("not healed after \(rounds) rounds")
    }

    /// The segment that must still be the pair's after healing: the pair stands on it, and nobody
    /// wants it otherwise.
    private var segmentToKeep: Int? {
        guard let record = world.record, record.desired == .protected,
            record.state == .protected || record.state == .needSecondary
                || record.state == .failingOver,
            !world.names.contains(where: { world[$0].guestEnded })
        else { return nil }
        return world.segment?.id
    }

    /// Protected, and nothing left over.
    private var isQuiet: Bool {
        guard let record = world.record, record.state == .protected, record.switchover == nil,
            let secondary = record.secondary, record.secondaryReady,
            world[record.primary].qemu?.mode == .running,
            world[record.primary].qemu?.id == world.lock,
            world[record.primary].qemu?.generation == record.generation,
            world[secondary].qemu?.mode == .waiting
        else { return false }
        return world.names.allSatisfy { name in
            name == record.primary || name == secondary || world[name].qemu == nil
        }
            && world.names.allSatisfy {
                PairDecision.decide(world.situation(of: $0)).isEmpty
                    && world[$0].agent?.decided.isEmpty == true
                    && world[$0].agent?.steps.isEmpty == true
            }
    }
}
