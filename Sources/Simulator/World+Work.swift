import Model
import PairLogic

/// Long work, step by step.
extension World {
    typealias Work = (work: PairWork, steps: [SimulatedStep], driver: DriverState?)

    func steps(of action: PairAction, _ driver: DriverState) -> Work? {
        // `failed` lasts until the back-off is over, also when the QEMU it was about is ended.
        let after: DriverState = if case .failed = driver { driver } else { .none }
        switch action {
        case .startEnabling:
            return (
                .enabling, [.nameSegment, .makeSegment, .graft, .firstCommit, .driver(.running)],
                .enabling
            )
        case .adoptPrimary:
            return (.adopting, [.checkPrimary, .continuePrimary, .driver(.running)], .enabling)
        case .createSecondary:
            return (.makingSecondary, [.startWaiting, .driver(.running)], .enabling)
        case .adoptSecondary:
            return (.makingSecondary, [.checkWaiting, .driver(.running)], .enabling)
        case .promote(let generation):
            return (
                .promoting,
                [
                    .takeLock(generation), .raiseSegment(generation), .rollBack, .load,
                    .lastLook(generation), .go(generation), .commitAfterPromotion,
                    .driver(.running),
                ], nil
            )
        case .handOver:
            return (.handingOver, [.lastCommit, .endQEMU, .driver(.none), .awaitClaim(8)], nil)
        case .awaitHandOver: return (.awaitingHandOver, [.arm, .awaitLock], nil)
        case .startDisabling: return (.disabling, [.ungraft, .driver(.none)], nil)
        case .cleanUpStale: return (.cleaningUp, [.endQEMU, .driver(after)], nil)
        case .removeSegment: return (.cleaningUp, [.removeSegmentUnlessNamed], nil)
        case .finishDisable: return (.cleaningUp, [.removeSegment, .deleteRecord], nil)
        default: return nil
        }
    }

    func startWork(_ host: SimulatedHost, _ agent: SimulatedAgent, _ pair: Int, _ work: Work) {
        agent.runtimes[pair].work = work.work
        agent.runtimes[pair].steps = work.steps
        agent.runtimes[pair].segment = pairs[pair].segment?.id
        if let driver = work.driver { agent.runtimes[pair].driver = driver }
        scheduleStep(host, agent, pair)
    }

    private func scheduleStep(_ host: SimulatedHost, _ agent: SimulatedAgent, _ pair: Int) {
        guard let step = agent.runtimes[pair].steps.first else { return }
        let usual: UInt64 =
            switch step {
            case .startWaiting: ms(300)
            case .graft, .endQEMU: ms(40)
            case .load, .takeLock, .rollBack: ms(10)
            case .driver, .arm: ms(1)
            case .awaitClaim: ms(40)
            case .awaitLock: ms(10)
            default: ms(5)
            }
        let time = isNoisy ? random.time(usual / 4, usual * 2) : usual
        queue.push(
            .step(host: host.index, agent: agent.number, pair: pair), at: now + time * host.slowness
        )
    }

    func nextStep(_ host: SimulatedHost, _ agent: SimulatedAgent, _ pair: Int) {
        guard !agent.runtimes[pair].steps.isEmpty else { return }
        let step = agent.runtimes[pair].steps.removeFirst()
        if isNoisy, random.chance(4), mayFail(step) {
            fail(agent, pair, random.chance(300) ? .timedOut : .unavailable, "\(step) failed")
        } else {
            carryOut(step, host, agent, pair)
        }
        checkRules(pair)
        if agent.runtimes[pair].steps.isEmpty {
            agent.runtimes[pair].work = nil
            markDirty(agent, pair)
            poke(host, agent)
        } else {
            scheduleStep(host, agent, pair)
        }
    }

    private func mayFail(_ step: SimulatedStep) -> Bool {
        switch step {
        case .awaitClaim, .arm, .awaitLock, .driver, .endQEMU, .removeSegment, .deleteRecord,
            .removeSegmentUnlessNamed:
            false
        default: true
        }
    }

    func fail(_ agent: SimulatedAgent, _ pair: Int, _ code: FtvmError.Code, _ text: String) {
        agent.runtimes[pair].driver = .failed(FtvmError(code, text))
        agent.runtimes[pair].steps = []
        agent.runtimes[pair].work = nil
        agent.runtimes[pair].failures += 1
        let wait = ms(min(500 << min(agent.runtimes[pair].failures, 4), 5_000))
        agent.runtimes[pair].retryAt = now + wait
        markDirty(agent, pair)
    }

    func isStoreReachable(_ host: SimulatedHost) -> Bool {
        isStoreUp && storeCuts[host.index] == 0
    }

    private func carryOut(
        _ step: SimulatedStep, _ host: SimulatedHost, _ agent: SimulatedAgent, _ pair: Int
    ) {
        switch step {
        case .driver(let state):
            agent.runtimes[pair].driver = state
            agent.runtimes[pair].drives = host.qemus[pair]?.id
            if state == .running { agent.runtimes[pair].failures = 0 }
        case .endQEMU:
            if bug != .staleIsLeft { killQEMU(host, pair) }
        case .nameSegment, .makeSegment, .graft, .firstCommit, .ungraft:
            enablingStep(step, host, agent, pair)
        case .checkPrimary, .continuePrimary, .startWaiting, .checkWaiting, .lastCommit:
            ordinaryStep(step, host, agent, pair)
        case .takeLock, .raiseSegment, .rollBack, .load, .lastLook, .go, .commitAfterPromotion:
            promotionStep(step, host, agent, pair)
        case .arm, .awaitLock, .awaitClaim:
            switchoverStep(step, host, agent, pair)
        case .removeSegmentUnlessNamed:
            if isStoreReachable(host), pairs[pair].record == nil { pairs[pair].segment = nil }
        case .removeSegment:
            guard isStoreReachable(host) else { return }
            if pairs[pair].record?.state == .disabled { pairs[pair].segment = nil }
        case .deleteRecord:
            guard isStoreReachable(host), let present = pairs[pair].record,
                case .delete = PairAction.finishDisable.change(to: present, by: host.name)
            else { return }
            write(pair, nil)
        }
    }

    private func switchoverStep(
        _ step: SimulatedStep, _ host: SimulatedHost, _ agent: SimulatedAgent, _ pair: Int
    ) {
        guard isStoreReachable(host), let record = pairs[pair].record else { return }
        func write(_ action: PairAction) {
            self.write(pair, action.change(to: record, by: host.name), host)
        }
        switch step {
        case .arm: write(.armSwitchover)
        case .awaitClaim(let left):
            if left > 0, record.promoting == nil, record.switchover != nil {
                agent.runtimes[pair].steps = [.awaitClaim(left - 1)]
            }
        default:
            var now = situation(host, agent, pair)
            now.record = record
            guard now.awaitsHandOver else { return write(.disarmSwitchover) }
            let claim = PairAction.claimPromotion(record.generation.next)
            // Where the lock tells nothing of the source, its own word is waited for.
            guard now.primaryLock == .free, now.fencing.allows(claim, on: record, by: host.name)
            else {
                agent.runtimes[pair].steps = [.awaitLock]
                return
            }
            write(claim)
            agent.runtimes[pair].claimed = record.generation.next
        }
    }

    private func enablingStep(
        _ step: SimulatedStep, _ host: SimulatedHost, _ agent: SimulatedAgent, _ pair: Int
    ) {
        guard isStoreReachable(host), host.isPoolVisible, let record = pairs[pair].record,
            record.primary == host.name, let qemu = host.qemus[pair], qemu.mode != .waiting
        else { return fail(agent, pair, .failedPrecondition, "not the primary's host") }
        let lock = pairs[pair].locks[host.kernel]
        switch step {
        case .nameSegment:
            guard record.state == .starting else {
                return fail(agent, pair, .conflict, "the pair has moved on")
            }
            ask(pair) { $0.segment = SegmentReference(pool: pool, name: "s\(pair)") }
        case .makeSegment:
            guard lock == nil else { return fail(agent, pair, .conflict, "it is in use") }
            pairs[pair].segment = SimulatedSegment(id: nextQEMU, generation: record.generation)
            nextQEMU += 1
        case .graft:
            guard lock == nil, pairs[pair].segment?.generation == record.generation else {
                return fail(agent, pair, .conflict, "the lock is held")
            }
            pairs[pair].locks[host.kernel] = qemu.id
            host.qemus[pair]?.generation = record.generation
            host.qemus[pair]?.epoch = 0
            scheduleEpoch(host, pair, qemu.id)
        case .firstCommit:
            if !commit(host, pair) { fail(agent, pair, .conflict, "fenced") }
        default:
            if lock == qemu.id { pairs[pair].locks[host.kernel] = nil }
            host.qemus[pair]?.generation = nil
        }
    }

    private func ordinaryStep(
        _ step: SimulatedStep, _ host: SimulatedHost, _ agent: SimulatedAgent, _ pair: Int
    ) {
        let qemu = host.qemus[pair]
        switch step {
        case .checkPrimary:
            guard let qemu, pairs[pair].locks[host.kernel] == qemu.id else {
                return fail(agent, pair, .failedPrecondition, "it does not hold the lock")
            }
            if qemu.generation != pairs[pair].segment?.generation {
                fail(agent, pair, .conflict, "this generation has been fenced")
            }
        case .continuePrimary:
            guard let qemu, qemu.id == pairs[pair].locks[host.kernel] else {
                return fail(agent, pair, .unavailable, "gone")
            }
            guard qemu.generation == pairs[pair].segment?.generation else {
                return fail(agent, pair, .conflict, "this generation has been fenced")
            }
            host.qemus[pair]?.mode = .running
            // Taken over, and ftvmd or the step after it failed: goes on with the first commit.
            if pairs[pair].segment?.epoch == 0, !commit(host, pair) {
                fail(agent, pair, .conflict, "fenced")
            }
        case .startWaiting:
            guard qemu == nil, pairs[pair].segment != nil, host.isPoolVisible else {
                return fail(agent, pair, .failedPrecondition, "no room for a waiting QEMU")
            }
            newQEMU(host, pair, .waiting)
            host.qemus[pair]?.segment = agent.runtimes[pair].segment
            host.hasGuestEnded[pair] = false
        case .checkWaiting:
            guard qemu?.mode == .waiting, let segment = pairs[pair].segment else {
                return fail(agent, pair, .unavailable, "gone")
            }
            if qemu?.segment != segment.id {
                newQEMU(host, pair, .waiting)
                host.qemus[pair]?.segment = segment.id
            }
        default:
            guard commit(host, pair) else { return fail(agent, pair, .conflict, "fenced") }
            host.qemus[pair]?.mode = .paused
        }
    }

    private func promotionStep(
        _ step: SimulatedStep, _ host: SimulatedHost, _ agent: SimulatedAgent, _ pair: Int
    ) {
        guard let qemu = host.qemus[pair], host.isPoolVisible else {
            return fail(agent, pair, .unavailable, "QEMU is gone")
        }
        switch step {
        case .takeLock(let generation):
            guard pairs[pair].locks[host.kernel] == nil else {
                return fail(agent, pair, .conflict, "the lock is held")
            }
            pairs[pair].locks[host.kernel] = qemu.id
            host.qemus[pair]?.generation = generation
        case .raiseSegment(let generation):
            guard let old = pairs[pair].segment?.generation, old <= generation else {
                return fail(agent, pair, .conflict, "the segment has a higher generation")
            }
            if bug != .segmentNotRaised { pairs[pair].segment?.generation = generation }
        case .rollBack:
            if bug != .noRollBack { host.qemus[pair]?.epoch = pairs[pair].segment?.epoch ?? 0 }
        case .load:
            host.qemus[pair]?.mode = .paused
        case .lastLook(let generation):
            guard isStoreReachable(host), pairs[pair].record?.promoting == host.name,
                pairs[pair].record?.generation == generation
            else { return fail(agent, pair, .conflict, "the claim has been taken over") }
        case .go(let generation):
            guard pairs[pair].segment?.generation == generation || bug == .segmentNotRaised else {
                return fail(agent, pair, .conflict, "this generation has been fenced")
            }
            checkPromotion(host, pair, qemu)
            host.qemus[pair]?.mode = .running
            scheduleEpoch(host, pair, qemu.id)
        default:
            if !commit(host, pair) { fail(agent, pair, .conflict, "fenced") }
        }
    }

    // MARK: Epochs

    func scheduleEpoch(_ host: SimulatedHost, _ pair: Int, _ qemu: Int) {
        let time = isNoisy ? random.time(ms(20), ms(400)) : ms(200)
        queue.push(.epoch(host: host.index, qemu: qemu, pair: pair), at: now + time * host.slowness)
    }

    func epochEnds(_ host: SimulatedHost, _ id: Int, _ pair: Int) {
        guard let qemu = host.qemus[pair], qemu.id == id, qemu.generation != nil else { return }
        scheduleEpoch(host, pair, id)
        // Without its driver a guest waits at its next first touch, and its packets wait.
        guard let agent = host.agent, agent.runtimes[pair].driver == .running,
            agent.runtimes[pair].drives == id, agent.runtimes[pair].work == nil,
            qemu.mode == .running, host.isPoolVisible
        else { return }
        if bug == .releaseBeforeCommit, let generation = qemu.generation {
            release(host, id, pair, qemu.epoch + 1, generation.number)
        }
        if !commit(host, pair) {
            say(host, "\(pairs[pair].name): fenced at its commit")
            count("commit fenced")
            fail(agent, pair, .conflict, "this generation has been fenced")
            poke(host, agent)
        }
        checkRules(pair)
    }

    /// False: fenced, nothing is released.
    private func commit(_ host: SimulatedHost, _ pair: Int) -> Bool {
        guard let qemu = host.qemus[pair], let generation = qemu.generation,
            let segment = pairs[pair].segment, host.isPoolVisible
        else { return false }
        guard segment.generation == generation || bug == .commitWithoutCompare else { return false }
        check(
            segment.epoch == qemu.epoch,
            "\(pairs[pair].name): a commit by \(host.name) on top of somebody else's")
        pairs[pair].segment?.commits.append((generation.number, qemu.id, false))
        host.qemus[pair]?.epoch += 1
        pairs[pair].committedAt = now
        let delay = isNoisy ? random.time(1, ms(5)) : ms(1)
        queue.push(
            .release(
                host: host.index, qemu: qemu.id, pair: pair, epoch: qemu.epoch + 1,
                generation: generation.number), at: now + delay)
        return true
    }

    /// Packets of this epoch leave. Rule 2: it is, and stays, a part of what everybody goes on from.
    func release(
        _ host: SimulatedHost, _ qemu: Int, _ pair: Int, _ epoch: Int, _ generation: UInt64
    ) {
        guard let segment = pairs[pair].segment else { return }
        let commit = epoch <= segment.epoch ? segment.commits[epoch - 1] : nil
        check(
            commit?.generation == generation && commit?.qemu == qemu,
            "\(pairs[pair].name): \(host.name) released packets of epoch \(epoch), generation "
                + "\(generation), which is not committed")
        if commit != nil { pairs[pair].segment?.commits[epoch - 1].isReleased = true }
    }
}
