import Model
import PairLogic

/// The agents: they look, decide with the real code, and act.
extension World {
    func look(_ host: SimulatedHost, _ agent: SimulatedAgent) {
        var next = period / 2 * host.slowness
        if isNoisy {
            next += random.time(0, period / 20)
            if random.chance(2) { next += random.time(0, period * 4) }
        }
        queue.push(.look(host: host.index, agent: agent.number), at: now + next)
        let clock = host.clock(now)
        observe(host, agent, clock)
        if now >= agent.nextBeat { beat(host, agent, clock) }
        guard agent.isRegistered || agent.selfFence.isFencedNow else {
            if now >= agent.nextRead {
                agent.nextRead = now + ms(500)
                ask(host, agent, .register(knowsFence: false))
            }
            return
        }
        selfFence(host, agent, clock)
        takeNote(host, agent)
        let isAnybodySuspect = agent.ledger.hosts.contains { $0.value.state == .suspect }
        if !agent.isReading, now >= agent.nextRead {
            let rhythm = isAnybodySuspect ? period : shape.timing.renewalNanoseconds
            agent.nextRead = now + rhythm
            agent.isReading = true
            agent.poolSeenBeforeRead = agent.poolSeen
            ask(host, agent, .readAll)
        }
        if now >= agent.nextSweep {
            agent.nextSweep = now + ms(pairs.count > 50 ? 1_000 : 250)
            markAllDirty(agent)
        }
        sweep(host, agent)
    }

    // MARK: Heartbeats

    private func beat(_ host: SimulatedHost, _ agent: SimulatedAgent, _ clock: MonotonicInstant) {
        agent.nextBeat = now + period * 9 / 10
        agent.beats += 1
        agent.selfFence.beat(agent.beats, at: clock)
        if host.isPoolVisible, host.beatsInPool {
            slots[host.index] = (agent.incarnation, agent.beats)
        }
        for other in hosts where other !== host {
            guard cuts[host.index * hosts.count + other.index] == 0,
                lossPerMille == 0 || !random.chance(lossPerMille), let receiver = other.agent
            else { continue }
            var delay = ms(1) / 5
            if extraDelay > 0 { delay += random.time(0, extraDelay) }
            if receiver.inbox.count < 1_000 {
                receiver.inbox.append((now + delay, host.index, agent.incarnation, agent.beats))
            }
        }
    }

    private func observe(
        _ host: SimulatedHost, _ agent: SimulatedAgent, _ clock: MonotonicInstant
    ) {
        for message in agent.inbox where message.at <= now {
            let seen = agent.udpSeen[message.from]
            if (message.incarnation, message.counter) > seen {
                agent.udpSeen[message.from] = (message.incarnation, message.counter)
            }
        }
        agent.inbox.removeAll { $0.at <= now }
        var readings: [Detector.Reading] = []
        var blind: Set<HeartbeatWay> = []
        readings.reserveCapacity(3 * hosts.count)
        for other in hosts where other !== host {
            let udp = agent.udpSeen[other.index]
            if udp.incarnation > 0 {
                readings.append(
                    .init(
                        host: other.name, incarnation: udp.incarnation, counter: udp.counter,
                        processHoldsSlot: true, way: .udp))
            }
            if host.isPoolVisible, slots[other.index].incarnation > 0 {
                agent.poolSeen[other.index] = slots[other.index]
                let isHeld =
                    other.kernel != host.kernel
                    || (other.agent?.incarnation == slots[other.index].incarnation)
                readings.append(
                    .init(
                        host: other.name, incarnation: slots[other.index].incarnation,
                        counter: slots[other.index].counter, processHoldsSlot: isHeld, way: .pool))
            }
            if agent.hasFreshLeases, agent.incarnations[other.index] > 0 {
                readings.append(
                    .init(
                        host: other.name, incarnation: agent.incarnations[other.index],
                        counter: agent.leases[other.index], processHoldsSlot: true, way: .store))
            }
        }
        agent.hasFreshLeases = false
        if !host.isPoolVisible { blind.insert(.pool) }
        if agent.storeAnsweredAt.map({ now - $0 > ms(1_500) }) ?? true { blind.insert(.store) }
        let transitions = agent.detector.observe(readings, blind: blind, at: clock)
        for transition in transitions { note(transition, host, agent) }
    }

    private func note(
        _ transition: Detector.Transition, _ host: SimulatedHost, _ agent: SimulatedAgent
    ) {
        guard let other = hostIndex[transition.host] else { return }
        say(host, "\(transition.host) is \(transition.to.rawValue): \(transition.reason)")
        count("host \(transition.to.rawValue)")
        if transition.to == .dead { checkAccusation(of: other, by: host) }
        if transition.to == .suspect { agent.nextRead = now }
        updateLedger(host, agent, other)
        markAllDirty(agent)
    }

    func updateLedger(_ host: SimulatedHost, _ agent: SimulatedAgent, _ other: Int) {
        let state = agent.detector.state(of: hosts[other].name) ?? .suspect
        agent.ledger.update(
            hosts[other].name,
            HostView(
                state: state, pools: agent.hasPool[other] ? [pool] : [],
                memoryAvailableBytes: 64 << 30))
    }

    /// Says in the pool whose heartbeat was seen: never of one whose fence it has noted.
    private func takeNote(_ host: SimulatedHost, _ agent: SimulatedAgent) {
        guard host.isPoolVisible, host.beatsInPool else { return }
        for other in hosts where other !== host {
            let seen = agent.poolSeen[other.index]
            if agent.refuses[other.index] == seen.incarnation, bug != .acknowledgesFenced {
                continue
            }
            let isBacked =
                agent.backed[other.index].incarnation == seen.incarnation
                && agent.refuses[other.index] != seen.incarnation
            let row = host.index * hosts.count + other.index
            // Two lines in one slot in a real pool: the newest seen, and the newest backed.
            notes[row] = seen
            if isBacked {
                backedNotes[row] = agent.backed[other.index]
            }
        }
    }

    // MARK: Deciding

    func markDirty(_ agent: SimulatedAgent, _ pair: Int) {
        guard !agent.isDirty[pair] else { return }
        agent.isDirty[pair] = true
        agent.dirty.append(pair)
    }

    func markAllDirty(_ agent: SimulatedAgent) {
        guard agent.dirty.count < pairs.count else { return }
        for pair in pairs.indices { markDirty(agent, pair) }
    }

    func poke(_ host: SimulatedHost, _ agent: SimulatedAgent) {
        guard !agent.isPoked else { return }
        agent.isPoked = true
        queue.push(.poke(host: host.index, agent: agent.number), at: now + ms(1) / 10)
    }

    func sweep(_ host: SimulatedHost, _ agent: SimulatedAgent) {
        guard agent.isRegistered, agent.hasRead, !agent.selfFence.isFencedNow else {
            agent.dirty.removeAll(keepingCapacity: true)
            for pair in pairs.indices { agent.isDirty[pair] = false }
            fences(host, agent)
            return
        }
        let dirty = agent.dirty
        agent.dirty.removeAll(keepingCapacity: true)
        for pair in dirty { agent.isDirty[pair] = false }
        if dirty.count == pairs.count {
            for index in hosts.indices { agent.needsFence[index] = false }
        }
        let ledger = agent.ledger
        for pair in dirty { decide(host, agent, pair) }
        // What was decided in this sweep counts for the rest of it; the records tell after that.
        agent.ledger = ledger
        fences(host, agent)
    }

    func situation(_ host: SimulatedHost, _ agent: SimulatedAgent, _ pair: Int) -> PairSituation {
        let record = agent.records[pair]
        var views = agent.ledger.hosts
        for (failed, why) in agent.failures.failing(pairs[pair].name, at: host.clock(now)) {
            views[failed]?.recentFailure = why
        }
        let runtime = agent.runtimes[pair]
        var local = LocalObservation(
            domainPresent: host.isDomainDefined[pair], guestEnded: host.hasGuestEnded[pair],
            work: runtime.work)
        if runtime.work != nil {
            local.qemu = .unknown
        } else {
            switch host.qemus[pair]?.mode {
            case nil: local.qemu = .none
            case .waiting: local.qemu = .waiting
            case .running: local.qemu = .running
            case .paused: local.qemu = .paused
            }
            if isHalfPromoted(host, pair, record) { local.qemu = .waiting }
            local.driver = driver(runtime, host.qemus[pair]?.id)
            if local.qemu == .waiting, local.driver == .running, !isFit(host, pair),
                bug != .anyWaitingIsReady
            {
                local.driver = .none
            }
            if isNoisy, random.chance(5) { local.qemu = .unknown }
        }
        var fencing = agent.fencing
        if bug == .deathIsProof {
            for (name, view) in views where view.state == .dead { fencing.proofs[name] = .agent }
        }
        return PairSituation(
            pair: pairs[pair].name, record: record, me: host.name, hosts: views, local: local,
            primaryLock: lock(host, pair, record),
            segmentPresent: host.isPoolVisible && pairs[pair].segment != nil,
            segmentPosition: host.isPoolVisible
                ? pairs[pair].segment.map {
                    SegmentPosition(generation: $0.generation, epoch: Epoch(UInt64($0.epoch)))
                } : nil,
            fencing: fencing,
            claimIsFromBefore: record?.promoting == host.name
                && runtime.claimed != record?.generation)
    }

    /// It has the lock, and no commit of its generation: the guest has not run there for anybody.
    private func isHalfPromoted(
        _ host: SimulatedHost, _ pair: Int, _ record: PairRecord?
    ) -> Bool {
        guard let record, record.promoting == host.name, let qemu = host.qemus[pair],
            qemu.generation != nil
        else { return false }
        return pairs[pair].segment?.commits.last?.generation != record.generation.number
    }

    /// Whether the waiting QEMU can load a state of the segment that is there now.
    func isFit(_ host: SimulatedHost, _ pair: Int) -> Bool {
        guard host.isPoolVisible, let segment = pairs[pair].segment else { return true }
        return host.qemus[pair]?.segment == segment.id
    }

    private func driver(_ runtime: SimulatedRuntime, _ qemu: Int?) -> DriverState {
        switch runtime.driver {
        case .failed: runtime.retryAt <= now ? .none : runtime.driver
        // The agent knows which process its driver drives: gone with it.
        case .running, .enabling: runtime.drives == qemu ? runtime.driver : .none
        case .none: .none
        }
    }

    private func lock(
        _ host: SimulatedHost, _ pair: Int, _ record: PairRecord?
    ) -> PrimaryLockState {
        guard let record, record.segment != nil else { return .free }
        guard host.isPoolVisible else { return .unknown }
        guard pairs[pair].segment != nil else { return .free }
        guard let holder = pairs[pair].locks[host.kernel] else { return .free }
        return holder == host.qemus[pair]?.id ? .heldHere : .held
    }

    private func decide(_ host: SimulatedHost, _ agent: SimulatedAgent, _ pair: Int) {
        guard !agent.runtimes[pair].isWriting else { return }
        let situation = situation(host, agent, pair)
        for target in situation.fencesNeeded() {
            if let index = hostIndex[target] { agent.needsFence[index] = true }
        }
        let actions = PairDecision.decide(situation)
        guard !actions.isEmpty, admits(host, agent, pair, actions) else { return }
        agent.ledger.note(actions)
        for action in actions where !agent.runtimes[pair].isWriting {
            begin(action, host, agent, pair)
        }
    }

    private func admits(
        _ host: SimulatedHost, _ agent: SimulatedAgent, _ pair: Int, _ actions: [PairAction]
    ) -> Bool {
        let need = FailoverBudget.need(of: actions, agent.records[pair], me: host.name)
        guard need != nil else { return true }
        var used = (promotions: 0, reprotections: 0)
        for other in pairs.indices {
            var use = FailoverBudget.use(
                agent.records[other], work: agent.runtimes[other].work, me: host.name)
            if use == nil, agent.runtimes[other].isClaiming { use = .promotion }
            switch use {
            case .promotion: used.promotions += 1
            case .reprotection: used.reprotections += 1
            case nil: break
            }
        }
        let own = FailoverBudget.use(
            agent.records[pair], work: agent.runtimes[pair].work, me: host.name)
        return shape.budget.admits(need, own: own, used: used)
    }

    private func begin(
        _ action: PairAction, _ host: SimulatedHost, _ agent: SimulatedAgent, _ pair: Int
    ) {
        switch action {
        case .startEnabling, .adoptPrimary, .promote:
            // Nobody may start a guest that it would have to stop at once.
            guard !hasSelfFence(host) || agent.selfFence.mayRunGuests(at: host.clock(now)) else {
                return
            }
        case .waitForFence:
            if let told = agent.runtimes[pair].waitingToldAt, now - told < ms(3_000) { return }
            agent.runtimes[pair].waitingToldAt = now
        default: break
        }
        let prefix = pairs.count == 1 ? "" : "\(pairs[pair].name) "
        say(host, "\(prefix)\(action)")
        count(action.kind)
        if let steps = steps(of: action, agent.runtimes[pair].driver) {
            startWork(host, agent, pair, steps)
        } else if case .raiseSegmentGeneration(let generation) = action {
            if let old = pairs[pair].segment?.generation, old < generation {
                pairs[pair].segment?.generation = generation
            }
        } else if case .cancelEnabling = action {
            agent.runtimes[pair].steps = []
            agent.runtimes[pair].work = nil
            agent.runtimes[pair].driver = .none
        } else {
            agent.runtimes[pair].isWriting = true
            checkRest(host, agent, pair, action)
            agent.runtimes[pair].isClaiming =
                FailoverBudget.need(of: [action], nil, me: host.name) == .promotion
            ask(host, agent, .read(pair: pair, action))
        }
    }
}

extension PairAction {
    /// The case's name, without what it carries.
    var kind: String { String("\(self)".prefix { $0 != "(" }) }
}
