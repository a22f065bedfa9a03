import Model
import PairLogic

/// What must always hold (the invariants of `Documentation/Cluster.md`).
extension World {
    /// After every step that has to do with this pair.
    func checkRules(_ pair: Int) {
        let truth = pairs[pair]
        let name = truth.name
        var honest: [HostName] = []
        for host in hosts {
            guard let qemu = host.qemus[pair], qemu.mode == .running else { continue }
            guard let generation = qemu.generation else {
                honest.append(host.name)
                continue
            }
            if !liedAbout.contains(qemu.id) { honest.append(host.name) }
            check(
                truth.locks[host.kernel] == qemu.id,
                "\(name): the primary on \(host.name) runs without the lock")
            let before = truth.ran[generation.number]
            check(
                before == nil || before == qemu.id,
                "\(name): generation \(generation) has two primaries, the second on \(host.name)")
            pairs[pair].ran[generation.number] = qemu.id
        }
        // Where a fence was a lie, what it was about runs on until its next commit.
        check(honest.count <= 1, "\(name): the guest runs on \(honest)")
        guard let record = truth.record else { return }
        check(
            record.generation.number >= truth.highestGeneration,
            "\(name): the generation went back")
        pairs[pair].highestGeneration = record.generation.number
        if let segment = truth.segment {
            check(segment.generation <= record.generation, "\(name): the segment is ahead")
        }
        if record.promoting == nil {
            check(record.secondary != record.primary, "\(name): both roles on \(record.primary)")
        }
        if record.state != .disabled, record.secondaryReady, let secondary = record.secondary,
            let host = hostIndex[secondary].map({ hosts[$0] }), host.qemus[pair]?.mode == .waiting
        {
            check(isFit(host, pair), "\(name): the secondary on \(secondary) is of another segment")
        }
        if record.state == .protected || record.state == .needSecondary {
            check((truth.segment?.epoch ?? 0) > 0, "\(name): protected without a commit")
        }
    }

    /// Promotion implies proof: the record has one, and it is true (unless somebody lied).
    func checkPromotion(_ host: SimulatedHost, _ pair: Int, _ qemu: SimulatedQEMU) {
        let name = pairs[pair].name
        // The last look was a moment ago; a later claim has a proof of its own, about this host.
        if let record = pairs[pair].record, record.promoting == host.name {
            check(
                record.primaryGone != nil || pairs[pair].locks[host.kernel] == qemu.id,
                "\(name): \(host.name) promotes without a proof")
        }
        for other in hosts where other !== host {
            guard let old = other.qemus[pair], old.mode != .waiting, old.generation != nil,
                !liedAbout.contains(old.id), !liedAbout.contains(qemu.id)
            else { continue }
            check(
                false,
                "\(name): \(host.name) is promoted while \(other.name) still has the old primary")
        }
    }

    func checkAction(_ action: PairAction, _ host: SimulatedHost, _ pair: Int) {
        let qemu = host.qemus[pair]
        if case .reportPrimaryLost = action {
            check(
                qemu?.generation == nil,
                "\(pairs[pair].name): declared lost on \(host.name), but it is there")
        }
        if action == .guestShutDown {
            let isAnother = qemu.map { $0.generation == nil } ?? false
            check(
                host.hasGuestEnded[pair] || isAnother,
                "\(pairs[pair].name): given up on \(host.name), but nobody had ended it")
        }
    }

    /// No host writes about a pair without end. A failover and all that follows are some ten writes.
    func checkRest(
        _ host: SimulatedHost, _ agent: SimulatedAgent, _ pair: Int, _ action: PairAction
    ) {
        if now - agent.runtimes[pair].writesSince > ms(1_000) {
            agent.runtimes[pair].writesSince = now
            agent.runtimes[pair].writes = 0
        }
        agent.runtimes[pair].writes += 1
        check(
            agent.runtimes[pair].writes <= 40,
            "\(pairs[pair].name): \(host.name) writes again and again: \(action)")
    }

    /// Nobody who is healthy, and is to be heard on one way at least, is called dead, whatever became
    /// of the accuser.
    func checkAccusation(of other: Int, by host: SimulatedHost) {
        let accused = hosts[other]
        let quiet = ms(4_000)
        let isNetworkWell = networkTroubles == 0 && now >= networkTroubledUntil + quiet
        let isPoolWell =
            accused.beatsInPool && accused.isPoolVisible && host.isPoolVisible
            && now >= max(poolTroubledUntil[other], poolTroubledUntil[host.index]) + quiet
        // Who stood still lately must have done so together with the accuser.
        let isAwakeLong = accused.pausedUntil + quiet <= now
        let sleptTogether =
            accused.pausedUntil <= host.pausedUntil + ms(40)
            && host.pausedUntil <= accused.pausedUntil + ms(40)
        guard isAwakeLong || sleptTogether else { return }
        guard accused.isUp, accused.agent != nil, troubles[other] == 0,
            accused.pausedUntil <= now + ms(40), now >= troubledUntil[other] + quiet,
            isNetworkWell || isPoolWell
        else { return }
        check(false, "\(host.name) takes \(accused.name) for dead, which is well")
    }

    /// A claim was written: how long after the death of the primary's host.
    func noteClaim(_ record: PairRecord) {
        guard let index = hostIndex[record.primary], let killed = killedAt[index] else { return }
        decisionTimes.append(now - killed)
    }

    /// Every pair protected, its guest committing, and nothing left over; nil, or what is missing.
    package func unhealed() -> String? {
        for (index, pair) in pairs.enumerated() {
            guard let record = pair.record else { return "\(pair.name): no record" }
            guard record.state == .protected, record.secondaryReady,
                let secondary = record.secondary.flatMap({ hostIndex[$0] }),
                let primary = hostIndex[record.primary]
            else { return "\(pair.name): \(record.state.rawValue), \(record.reason)" }
            guard let qemu = hosts[primary].qemus[index], qemu.mode == .running,
                qemu.generation == record.generation, now - pair.committedAt < ms(2_500)
            else { return "\(pair.name): its guest does not go on on \(record.primary)" }
            guard hosts[secondary].qemus[index]?.mode == .waiting else {
                return "\(pair.name): no waiting QEMU on \(hosts[secondary].name)"
            }
            guard isFit(hosts[secondary], index) else {
                return "\(pair.name): \(hosts[secondary].name) could not load its state"
            }
            for host in hosts
            where host.index != primary && host.index != secondary && host.qemus[index] != nil {
                return "\(pair.name): a QEMU is left over on \(host.name)"
            }
        }
        return nil
    }
}
