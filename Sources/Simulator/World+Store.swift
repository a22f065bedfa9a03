import Model
import PairLogic

/// Something that an agent asks of the store.
struct StoreOperation {
    enum Kind {
        case register(knowsFence: Bool)
        case renew
        case readAll
        case read(pair: Int, PairAction)
        case replace(pair: Int, PairAction, revision: Int, RecordChange)
        case fence(target: Int, FenceAction, lease: UInt64)
    }
    let host: Int
    let agent: Int
    let incarnation: UInt64
    let startedAt: UInt64
    var kind: Kind
    /// Its time is over and it was said to have failed; it may still arrive.
    var isForgotten = false
}

enum StoreAnswer {
    case failed
    case done
    /// The host has been fenced.
    case fenced
    case read(pair: Int, PairAction, PairRecord?, revision: Int, FencingView)
    case conflict(pair: Int, PairAction)
    case fence(target: Int, FenceAction, FenceChange)
}

extension World {
    /// Longest that an agent waits for an answer.
    private static let patience = ms(1_000)

    func ask(_ host: SimulatedHost, _ agent: SimulatedAgent, _ kind: StoreOperation.Kind) {
        send(
            StoreOperation(
                host: host.index, agent: agent.number, incarnation: agent.incarnation,
                startedAt: now, kind: kind))
    }

    private func send(_ operation: StoreOperation) {
        guard isStoreUp, storeCuts[operation.host] == 0 else {
            return queue.push(.reply(operation, .failed), at: now + Self.patience)
        }
        let delay = latency()
        var operation = operation
        if delay >= Self.patience {
            queue.push(.reply(operation, .failed), at: now + Self.patience)
            operation.isForgotten = true
        }
        queue.push(.arrival(operation), at: now + delay)
    }

    private func latency() -> UInt64 {
        let usual = isNoisy ? random.time(ms(1) / 5, ms(2)) : ms(1) / 2
        return storeDelay == 0 ? usual : usual + random.time(0, storeDelay)
    }

    func arrive(_ operation: StoreOperation) {
        guard isStoreUp else { return reply(operation, .failed, isLost: true) }
        let host = hosts[operation.host]
        let fence = storedFences[operation.host]
        switch operation.kind {
        case .register(let knowsFence):
            let isFenced = fence?.incarnation == storedIncarnations[operation.host]
            if isFenced, !knowsFence { return reply(operation, .fenced) }
            if storedIncarnations[operation.host] < operation.incarnation {
                storedIncarnations[operation.host] = operation.incarnation
                storedArmed[operation.host] = shape.fences[operation.host].selfFence
                tellWatchers()
            }
            reply(operation, .done)
        case .renew:
            guard storedIncarnations[operation.host] == operation.incarnation,
                fence?.incarnation != operation.incarnation
            else { return reply(operation, .fenced) }
            storedLeases[operation.host] += 1
            if storedHasPool[operation.host] != host.isPoolVisible {
                storedHasPool[operation.host] = host.isPoolVisible
                tellWatchers()
            }
            reply(operation, .done)
        case .readAll:
            reply(operation, .done)
        case .read(let pair, let action):
            let view = FencingView(
                kernelPeers: host.agent?.fencing.kernelPeers,
                fences: storedFences.compactMap(\.self),
                incarnations: incarnationsByName(storedIncarnations))
            reply(
                operation,
                .read(
                    pair: pair, action, pairs[pair].record, revision: pairs[pair].revision, view))
        case .replace(let pair, let action, let revision, let change):
            guard pairs[pair].revision == revision || bug == .noCompareAndSwap else {
                return reply(operation, .conflict(pair: pair, action))
            }
            write(pair, change, host)
            if case .update(let record, _) = change, record.promoting == host.name {
                noteClaim(record)
            }
            reply(operation, .done)
        case .fence(let target, let action, let lease):
            let change = action.change(
                to: storedFences[target], target: hosts[target].name,
                incarnation: storedIncarnations[target],
                leaseHasMoved: storedLeases[target] != lease,
                by: host.name)
            store(change, target, host)
            reply(operation, .fence(target: target, action, change))
        }
    }

    private func reply(_ operation: StoreOperation, _ answer: StoreAnswer, isLost: Bool = false) {
        guard !operation.isForgotten else { return }
        if isLost || storeCuts[operation.host] > 0 {
            let end = operation.startedAt + Self.patience
            return queue.push(.reply(operation, .failed), at: max(now, end))
        }
        queue.push(.reply(operation, answer), at: now + latency())
    }

    private func store(_ change: FenceChange, _ target: Int, _ host: SimulatedHost) {
        switch change {
        case .none, .outdated: return
        case .delete: storedFences[target] = nil
        case .update(let record, let reason):
            let isNew = storedFences[target] == nil
            storedFences[target] = record
            if isNew { say(host, "    fence of \(record.host) incarnation \(record.incarnation)") }
            if let reason { say(host, "    \(reason.kind.rawValue): \(reason)") }
            if let method = record.method { count("proof \(method.rawValue)") }
        }
        tellWatchers()
    }

    func write(_ pair: Int, _ change: RecordChange, _ host: SimulatedHost) {
        switch change {
        case .none, .outdated: return
        case .delete(let event):
            write(pair, nil)
            say(host, "    \(event.kind.rawValue): \(event.message)")
        case .update(var record, let event):
            if bug == .claimKeepsGeneration, let old = pairs[pair].record {
                record.generation = old.generation
            }
            write(pair, record)
            if let event { say(host, "    \(event.kind.rawValue): \(event.message)") }
        }
        checkRules(pair)
    }

    func write(_ pair: Int, _ record: PairRecord?) {
        pairs[pair].record = record
        pairs[pair].revision += 1
        changes.append(pair)
        tellWatchers()
    }

    private func tellWatchers() {
        for host in hosts {
            guard let agent = host.agent, !agent.isWatching else { continue }
            agent.isWatching = true
            let delay = isNoisy ? random.time(ms(1), ms(8)) : ms(1)
            queue.push(
                .watch(host: host.index, agent: agent.number), at: now + delay + storeDelay / 4)
        }
    }

    func incarnationsByName(_ incarnations: [UInt64]) -> [HostName: UInt64] {
        var named: [HostName: UInt64] = [:]
        for host in hosts where incarnations[host.index] > 0 {
            named[host.name] = incarnations[host.index]
        }
        return named
    }

    // MARK: The agent's side

    /// A watch has something to tell; a periodic read makes good for those that got lost.
    func watched(_ host: SimulatedHost, _ agent: SimulatedAgent) {
        agent.isWatching = false
        guard isStoreUp, storeCuts[host.index] == 0 else { return }
        takeOverView(host, agent)
        poke(host, agent)
    }

    /// What the store holds now is known to the agent.
    private func takeOverView(_ host: SimulatedHost, _ agent: SimulatedAgent) {
        for pair in changes[agent.revision...] where agent.revisions[pair] < pairs[pair].revision {
            take(host, agent, pair, pairs[pair].record, pairs[pair].revision)
        }
        agent.revision = changes.count
        agent.leases = storedLeases
        agent.hasFreshLeases = true
        agent.armed = storedArmed
        takeFences(host, agent)
        if agent.hasPool != storedHasPool {
            agent.hasPool = storedHasPool
            for other in hosts { updateLedger(host, agent, other.index) }
            markAllDirty(agent)
        }
    }

    private func takeFences(_ host: SimulatedHost, _ agent: SimulatedAgent) {
        if agent.fences != storedFences || agent.incarnations != storedIncarnations {
            agent.fences = storedFences
            agent.incarnations = storedIncarnations
            agent.fencing = FencingView(
                kernelPeers: agent.fencing.kernelPeers, fences: storedFences.compactMap(\.self),
                incarnations: incarnationsByName(storedIncarnations))
            if bug == .proofOutlivesIncarnation {
                for case .some(let fence) in storedFences {
                    if let method = fence.method { agent.fencing.proofs[fence.host] = method }
                }
            }
            markAllDirty(agent)
            obeyFence(host, agent)
        }
    }

    private func take(
        _ host: SimulatedHost, _ agent: SimulatedAgent, _ pair: Int, _ record: PairRecord?,
        _ revision: Int
    ) {
        if let old = agent.records[pair], let record {
            agent.failures.note(old: old, new: record, at: host.clock(now))
        }
        agent.ledger.update(old: agent.records[pair], new: record)
        agent.records[pair] = record
        agent.revisions[pair] = revision
        markDirty(agent, pair)
    }

    func answered(
        _ host: SimulatedHost, _ agent: SimulatedAgent, _ operation: StoreOperation,
        _ answer: StoreAnswer
    ) {
        if case .failed = answer {} else { agent.storeAnsweredAt = now }
        switch (operation.kind, answer) {
        case (.register, .done):
            guard operation.incarnation == agent.incarnation else { return }
            agent.isRegistered = true
            agent.selfFence.renewed(sentAt: host.clock(operation.startedAt))
            say(host, "registered, incarnation \(agent.incarnation)")
        case (.register, .fenced):
            // A predecessor was fenced: nothing of it may run before this one is known.
            say(host, "its predecessor was fenced")
            for pair in pairs.indices { endEverything(host, agent, pair) }
            ask(host, agent, .register(knowsFence: true))
        case (.renew, .done):
            if operation.incarnation == agent.incarnation {
                agent.selfFence.renewed(sentAt: host.clock(operation.startedAt))
            }
        case (.renew, .fenced):
            if operation.incarnation == agent.incarnation, agent.isRegistered {
                agent.selfFence.fenced()
            }
        case (.readAll, .done):
            readAll(host, agent, operation.startedAt)
        case (.readAll, _):
            agent.isReading = false
        case (.read, .read(let pair, let action, let record, let revision, let view)):
            write(host, agent, pair, action, record, revision, view)
        case (.replace, .conflict(let pair, let action)):
            ask(host, agent, .read(pair: pair, action))
        case (.read(let pair, _), _), (.replace(let pair, _, _, _), _):
            if case .replace(_, let action, let revision, .update(let record, _)) = operation.kind,
                case .done = answer
            {
                if agent.revisions[pair] <= revision {
                    take(host, agent, pair, record, revision + 1)
                }
                if let generation = action.claimedGeneration {
                    agent.runtimes[pair].claimed = generation
                }
            }
            agent.runtimes[pair].isWriting = false
            agent.runtimes[pair].isClaiming = false
            markDirty(agent, pair)
            poke(host, agent)
        case (.fence(let target, let action, _), .fence(_, _, let change)):
            agent.isWritingFence[target] = false
            // Written and known at once, unless a watch has told of something later.
            if storedFences[target] == change.record { takeFences(host, agent) }
            if case .prove = action, case .outdated = change { agent.plans[target] = nil }
            poke(host, agent)
        case (.fence(let target, _, _), _):
            agent.isWritingFence[target] = false
        default: break
        }
    }

    private func readAll(
        _ host: SimulatedHost, _ agent: SimulatedAgent, _ startedAt: UInt64
    ) {
        agent.isReading = false
        agent.hasRead = true
        takeOverView(host, agent)
        // What was seen in the pool before this read began, and has no fence in it, is backed by it.
        for other in hosts {
            let fence = storedFences[other.index]
            if fence?.incarnation != agent.poolSeen[other.index].incarnation {
                agent.backed[other.index] = agent.poolSeenBeforeRead[other.index]
            }
        }
        poke(host, agent)
    }

    /// The record is here: computes its change, and swaps it in.
    private func write(
        _ host: SimulatedHost, _ agent: SimulatedAgent, _ pair: Int, _ action: PairAction,
        _ present: PairRecord?, _ revision: Int, _ fencing: FencingView
    ) {
        func done() {
            agent.runtimes[pair].isWriting = false
            agent.runtimes[pair].isClaiming = false
            markDirty(agent, pair)
            poke(host, agent)
        }
        guard let present else { return done() }
        checkAction(action, host, pair)
        let base = bug == .noCompareAndSwap ? agent.records[pair] ?? present : present
        if agent.revisions[pair] < revision { take(host, agent, pair, present, revision) }
        var allowed = fencing.allows(action, on: base, by: host.name)
        if bug == .deathIsProof || bug == .proofOutlivesIncarnation { allowed = true }
        guard allowed else { return done() }
        let change = action.change(to: base, by: host.name)
        switch change {
        case .none, .outdated:
            return done()
        case .update(let record, _):
            if record == present { return done() }
        case .delete: break
        }
        send(
            StoreOperation(
                host: host.index, agent: agent.number, incarnation: agent.incarnation,
                startedAt: now,
                kind: .replace(pair: pair, action, revision: revision, change)))
    }
}
