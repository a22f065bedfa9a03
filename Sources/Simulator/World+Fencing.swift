import Model
import PairLogic

/// Fences and self-fences of the agents.
extension World {
    func hasSelfFence(_ host: SimulatedHost) -> Bool { shape.fences[host.index].selfFence }

    /// QEMUs of pairs here that may write or may come to.
    private func guests(_ host: SimulatedHost) -> Int {
        pairs.indices.count {
            host.qemus[$0].map { $0.generation != nil || $0.mode == .waiting } ?? false
        }
    }

    func endEverything(_ host: SimulatedHost, _ agent: SimulatedAgent, _ pair: Int) {
        agent.runtimes[pair].steps = []
        agent.runtimes[pair].work = nil
        agent.runtimes[pair].driver = .none
        guard let qemu = host.qemus[pair], qemu.generation != nil || qemu.mode == .waiting else {
            return
        }
        killQEMU(host, pair)
    }

    func selfFence(_ host: SimulatedHost, _ agent: SimulatedAgent, _ clock: MonotonicInstant) {
        if host.isPoolVisible {
            for other in hosts where other !== host {
                let row = other.index * hosts.count + host.index
                if notes[row].incarnation == agent.incarnation {
                    agent.selfFence.acknowledged(
                        by: other.name, notes[row].counter, backedByStore: false)
                }
                if backedNotes[row].incarnation == agent.incarnation {
                    agent.selfFence.acknowledged(
                        by: other.name, backedNotes[row].counter, backedByStore: true)
                }
            }
        }
        for action in agent.selfFence.look(at: clock) {
            switch action {
            case .renew: ask(host, agent, .renew)
            case .pet:
                guard hasSelfFence(host) else { continue }
                if host.pettedAt == nil {
                    queue.push(.watchdog(host: host.index), at: now + watchdogTime)
                }
                host.pettedAt = now
            case .stopGuests(let why):
                guard hasSelfFence(host) || agent.selfFence.isFencedNow, guests(host) > 0 else {
                    continue
                }
                say(host, "stops its guests: \(why)")
                count("guests stopped")
                for pair in pairs.indices { endEverything(host, agent, pair) }
                markAllDirty(agent)
            }
        }
    }

    private var watchdogTime: UInt64 { shape.timing.watchdogNanoseconds ?? ms(5_000) }

    func watchdog(_ host: SimulatedHost) {
        guard let pettedAt = host.pettedAt else { return }
        guard now >= pettedAt + watchdogTime else {
            return queue.push(.watchdog(host: host.index), at: pettedAt + watchdogTime)
        }
        if let agent = host.agent, host.pausedUntil <= now, guests(host) == 0, agent.isRegistered {
            // It has stopped its guests and lets the watchdog be.
            host.pettedAt = nil
            return
        }
        say(host, "-- its watchdog resets it")
        count("watchdog")
        killHost(host.index)
        queue.push(.start(host: host.index), at: now + random.time(ms(2_000), ms(5_000)))
    }

    /// This host reads in the store that it has been fenced.
    func obeyFence(_ host: SimulatedHost, _ agent: SimulatedAgent) {
        guard agent.isRegistered, agent.fences[host.index]?.incarnation == agent.incarnation else {
            return
        }
        agent.selfFence.fenced()
    }

    func fences(_ host: SimulatedHost, _ agent: SimulatedAgent) {
        guard agent.hasRead, agent.isRegistered || agent.selfFence.isFencedNow else { return }
        for target in hosts.indices {
            guard !agent.isWritingFence[target] else { continue }
            let record = agent.fences[target]
            if record == nil, !agent.needsFence[target], agent.plans[target] == nil { continue }
            let situation = FenceSituation(
                me: host.name, target: hosts[target].name,
                hosts: agent.ledger.hosts.mapValues(\.state),
                incarnation: agent.incarnations[target] > 0 ? agent.incarnations[target] : nil,
                judgedIncarnation: agent.detector.incarnation(of: hosts[target].name),
                record: record, isNeeded: agent.needsFence[target],
                hasSelfFence: shape.fences[target].selfFence && agent.armed[target],
                ownIncarnation: agent.incarnation, ownQEMUs: guests(host))
            for action in FenceDecision.decide(situation) {
                guard target == host.index || !agent.selfFence.isFencedNow else { continue }
                begin(action, host, agent, target)
            }
        }
    }

    private func begin(
        _ action: FenceAction, _ host: SimulatedHost, _ agent: SimulatedAgent, _ target: Int
    ) {
        if case .remove = action, bug == .proofOutlivesIncarnation { return }
        switch action {
        case .rest:
            agent.plans[target] = nil
        case .pursue:
            pursue(host, agent, target, .look)
        case .stopGuests:
            agent.selfFence.fenced()
            say(host, "has been fenced: ends its QEMUs")
            for pair in pairs.indices { endEverything(host, agent, pair) }
        case .rejoin:
            rejoin(host, agent)
        case .note:
            // Obeyed first, then written.
            agent.refuses[target] = agent.fences[target]?.incarnation
            write(action, host, agent, target)
        default:
            if case .mark(let incarnation) = action { agent.refuses[target] = incarnation }
            if case .takeOver = action {
                agent.refuses[target] = agent.fences[target]?.incarnation
            }
            say(host, "\(action) \(hosts[target].name)")
            count("fence \(action.kind)")
            write(action, host, agent, target)
        }
    }

    private func write(
        _ action: FenceAction, _ host: SimulatedHost, _ agent: SimulatedAgent, _ target: Int
    ) {
        guard !agent.isWritingFence[target] else { return }
        agent.isWritingFence[target] = true
        ask(host, agent, .fence(target: target, action, lease: agent.leases[target]))
    }

    private func rejoin(_ host: SimulatedHost, _ agent: SimulatedAgent) {
        say(host, "rejoins")
        count("rejoin")
        host.agent = nil
        startAgent(host.index)
    }

    /// Runs the plan for `target`, which is this host's to fence.
    func pursue(
        _ host: SimulatedHost, _ agent: SimulatedAgent, _ target: Int, _ event: FencePlan.Event
    ) {
        guard let record = agent.fences[target] else { return }
        let clock = host.clock(now)
        var plan = agent.plans[target] ?? newPlan(record, target, clock)
        var actions: [FencePlan.Action] = []
        let needed = FenceQuorum.notesNeeded(hosts: hosts.count)
        if record.notedBy.count >= needed, shape.fences[target].selfFence, agent.armed[target] {
            actions += plan.handle(.noted, at: clock)
        }
        actions += plan.handle(event, at: clock)
        agent.plans[target] = plan
        for action in actions { carryOut(action, host, agent, target) }
    }

    private func newPlan(
        _ record: FenceRecord, _ target: Int, _ clock: MonotonicInstant
    ) -> FencePlan {
        let fences = shape.fences[target]
        var levels: [[FencePlan.Device]] = []
        if fences.libvirt, !record.withoutLibvirt {
            levels.append([
                .init(method: .libvirt, name: "qemu+tls", timeoutNanoseconds: ms(2_000))
            ])
        }
        if fences.agent {
            levels.append([
                .init(method: .agent, name: "fence_ipmilan", timeoutNanoseconds: ms(3_000))
            ])
        }
        return FencePlan(
            host: hosts[target].name,
            configuration: .init(
                levels: levels, retryNanoseconds: ms(2_000), maximumRetryNanoseconds: ms(10_000),
                selfFenceNanoseconds: fences.selfFence ? shape.timing.proofNanoseconds : nil),
            at: clock)
    }

    private func carryOut(
        _ action: FencePlan.Action, _ host: SimulatedHost, _ agent: SimulatedAgent, _ target: Int
    ) {
        say(host, "fence of \(hosts[target].name): \(action)")
        switch action {
        case .run(let device, let token):
            var time = isNoisy ? random.time(ms(100), ms(1_200)) : ms(500)
            if instantProof { time = 0 }
            let isStuck = deviceModes[target] == .hangs
            if isStuck {
                // It may still do what it was asked for, long after it was given up.
                if random.chance(400), device.method == .agent {
                    queue.push(.powerOff(target: target), at: now + ms(6_000))
                }
                return
            }
            queue.push(
                .device(
                    host: host.index, agent: agent.number, target: target, token: token, device),
                at: now + time)
        case .end(let token):
            if bug == .timeOutIsProof {
                pursue(host, agent, target, .finished(token: token, .off))
                write(.prove(.agent, detail: "timed out"), host, agent, target)
            }
        case .proven(let method, let detail):
            write(.prove(method, detail: detail), host, agent, target)
        case .say(let text): write(.say(text), host, agent, target)
        case .roundFailed(let text): write(.roundFailed(text), host, agent, target)
        }
    }

    func deviceFinished(
        _ host: SimulatedHost, _ agent: SimulatedAgent, _ target: Int, _ token: UInt64,
        _ device: FencePlan.Device
    ) {
        var result = FencePlan.Result.off
        switch (deviceModes[target], device.method) {
        case (.fails, _): result = .failed("cannot connect")
        case (.hangs, _): return
        case (.lies, _): lie(about: target)
        case (.works, .libvirt):
            let there = hosts[target]
            let count = hosts.count
            let isReachable =
                there.isUp && there.pausedUntil <= now
                && cuts[host.index * count + target] == 0
                && cuts[target * count + host.index] == 0
            if isReachable {
                say(there, "-- libvirt ends its QEMUs")
                for pair in pairs.indices
                where there.qemus[pair].map({ $0.generation != nil || $0.mode == .waiting })
                    ?? false
                {
                    killQEMU(there, pair)
                }
            } else {
                result = .failed("no answer")
            }
        case (.works, _): powerOff(target)
        }
        guard agent.plans[target] != nil, agent.fences[target] != nil else { return }
        pursue(host, agent, target, .finished(token: token, result))
    }

    /// Something says that this host is off, and it may not be.
    func lie(about target: Int) {
        guard hosts[target].isUp else { return }
        count("lie")
        liedIncarnation[target] = max(liedIncarnation[target], hosts[target].incarnation)
        for case .some(let qemu) in hosts[target].qemus { liedAbout.insert(qemu.id) }
    }

    /// `ftvm hosts fence HOST --confirm-dead`.
    func confirmDead(_ target: Int) {
        let incarnation = storedIncarnations[target]
        guard isStoreUp, storedFences[target]?.method == nil, incarnation > 0 else { return }
        lie(about: target)
        var record =
            storedFences[target]
            ?? FenceRecord(host: hosts[target].name, incarnation: incarnation, by: hosts[0].name)
        guard record.incarnation == incarnation else { return }
        record.method = .manual
        record.detail = "a person says so"
        storedFences[target] = record
        count("proof manual")
        for host in hosts { host.agent?.nextRead = now }
    }
}

extension FenceAction {
    var kind: String { String("\(self)".prefix { $0 != "(" }) }
}
