import Model
import PairLogic

/// The agents of the world: they look, decide with the real code, and act step by step.
extension World {
    /// One step of one host. What a step does is atomic; anything may happen before the next.
    mutating func step(_ name: HostName) {
        guard self[name].isUp, !self[name].isFrozen, let agent = self[name].agent else { return }
        if agent.work == .enabling,
            PairDecision.decide(situation(of: name)).contains(.cancelEnabling)
        {
            say("\(name): cancelEnabling")
            actions["cancelEnabling", default: 0] += 1
            self[name].agent?.steps = []
            self[name].agent?.work = nil
            self[name].agent?.driver = .none
        } else if !agent.steps.isEmpty {
            let step = self[name].agent?.steps.removeFirst()
            if let step { carryOut(step, on: name) }
            if self[name].agent?.steps.isEmpty == true { self[name].agent?.work = nil }
        } else if !agent.decided.isEmpty {
            let action = self[name].agent?.decided.removeFirst()
            if let action { begin(action, on: name) }
        } else {
            commitIfPrimary(name)
            drain(name)
            var seen = situation(of: name)
            if silencePerMille > 0 {
                if random.chance(silencePerMille) {
                    seen.local.qemu = bug == .silenceIsLoss ? .none : .unknown
                }
                if random.chance(silencePerMille) { seen.primaryLock = .unknown }
            }
            let actions = PairDecision.decide(seen)
            self[name].agent?.decided = actions
        }
        checkRules()
    }

    /// The agent reads the record anew.
    mutating func refresh(_ name: HostName) {
        guard self[name].agent != nil else { return }
        if let old = self[name].agent?.view ?? nil, let new = record {
            self[name].agent?.failures.note(
                old: old, new: new, at: MonotonicInstant(nanoseconds: 0))
        }
        let now = record
        self[name].agent?.view = .some(now)
    }

    /// Time passes for the agent: its back-off ends.
    mutating func forgive(_ name: HostName) {
        self[name].agent?.failures = RecentFailures(keepNanoseconds: .max)
        self[name].agent?.hasSaidItWaits = false
        if case .failed = self[name].agent?.driver { self[name].agent?.driver = .none }
    }

    func situation(of name: HostName) -> PairSituation {
        let host = self[name]
        let agent = host.agent ?? Agent()
        var views: [HostName: HostView] = [:]
        for other in names {
            views[other] = HostView(
                state: other == name ? .online : host.sees[other] ?? .online, pools: [pool],
                memoryAvailableBytes: 8 << 30, maintenance: self[other].isDrained,
                recentFailure: agent.failures.reason(
                    pair, other, at: MonotonicInstant(nanoseconds: 0)))
        }
        let qemu: QEMUState =
            switch host.qemu?.mode {
            case nil: .none
            case .waiting: .waiting
            case .running: .running
            case .paused: .paused
            }
        var lockState: PrimaryLockState =
            lock == nil ? .free : (host.qemu?.id == lock ? .heldHere : .held)
        if bug == .lockIgnored, lockState == .held { lockState = .free }
        // An agent that has just started reads before it decides.
        let view = agent.view ?? record
        // The lock is a part of the segment.
        if view?.segment != nil, segment == nil { lockState = .unknown }
        // The agent knows which process its driver drives: gone with it.
        var driver = agent.driver
        if driver == .running || driver == .enabling, agent.drives != host.qemu?.id {
            driver = .none
        }
        return PairSituation(
            pair: pair, record: view, me: name, hosts: views,
            local: LocalObservation(
                domainPresent: host.domainDefined, qemu: qemu, guestEnded: host.guestEnded,
                driver: driver, work: agent.work),
            primaryLock: lockState, segmentPresent: segment != nil,
            segmentGone: view?.segment != nil && segment == nil,
            segmentPosition: segment.map {
                SegmentPosition(generation: $0.generation, epoch: Epoch($0.epoch))
            })
    }

    /// An epoch of a primary whose driver runs.
    private mutating func commitIfPrimary(_ name: HostName) {
        guard self[name].agent?.driver == .running, let qemu = self[name].qemu,
            qemu.id == self[name].agent?.drives, qemu.mode == .running, qemu.generation != nil
        else { return }
        if !commit(name) { fail(name, .conflict, "this generation has been fenced") }
    }

    /// False: fenced.
    private mutating func commit(_ name: HostName) -> Bool {
        guard let qemu = self[name].qemu, let generation = qemu.generation, segment != nil else {
            return false
        }
        guard segment?.generation == generation else { return false }
        check(lock == qemu.id, "a commit without the lock on \(name)")
        check(segment?.epoch == qemu.epoch, "a commit by \(name) on top of somebody else's")
        segment?.epoch += 1
        self[name].qemu?.epoch += 1
        return true
    }

    private mutating func fail(_ name: HostName, _ code: FtvmError.Code, _ text: String) {
        self[name].agent?.driver = .failed(FtvmError(code, text))
        self[name].agent?.steps = []
        self[name].agent?.work = nil
    }

    // MARK: Actions

    private mutating func begin(_ action: PairAction, on name: HostName) {
        func work(_ work: PairWork, _ steps: [Step], driver: DriverState? = nil) {
            self[name].agent?.work = work
            self[name].agent?.steps = steps
            if let driver { self[name].agent?.driver = driver }
        }
        say("\(name): \(action)")
        note(action)
        // `failed` lasts until the back-off is over, also when the QEMU it was about is ended.
        let driver = self[name].agent?.driver ?? .none
        let after: DriverState = if case .failed = driver { driver } else { .none }
        switch action {
        case .startEnabling:
            work(
                .enabling, [.nameSegment, .makeSegment, .graft, .firstCommit, .driver(.running)],
                driver: .enabling)
        case .cancelEnabling:
            break  // carried out at once by `step`
        case .adoptPrimary:
            work(
                .adopting, [.checkPrimary, .continuePrimary, .driver(.running)], driver: .enabling)
        case .createSecondary:
            work(.makingSecondary, [.startWaiting, .driver(.running)], driver: .enabling)
        case .adoptSecondary:
            work(.makingSecondary, [.checkWaiting, .driver(.running)], driver: .enabling)
        case .promote(let generation):
            work(.promoting, promotion(generation))
        case .raiseSegmentGeneration(let generation):
            if let old = segment?.generation, old < generation { segment?.generation = generation }
        case .handOver:
            work(.handingOver, [.lastCommit, .endQEMU, .driver(.none), .awaitClaim(8)])
        case .awaitHandOver:
            work(.awaitingHandOver, [.arm, .awaitLock])
        case .startDisabling:
            work(.disabling, [.ungraft, .driver(.none)])
        case .cleanUpStale:
            work(.cleaningUp, [.endQEMU, .driver(after)])
        case .removeSegment:
            work(.cleaningUp, [.removeSegmentUnlessNamed])
        case .finishDisable:
            work(.cleaningUp, [.removeSegment, .deleteRecord])
        case .waitForFence where self[name].agent?.hasSaidItWaits == true:
            break
        default:
            if case .waitForFence = action { self[name].agent?.hasSaidItWaits = true }
            if case .claimPromotion = action { self[name].agent?.hasSaidItWaits = false }
            if case .claimByHand = action { self[name].agent?.hasSaidItWaits = false }
            changeRecord(action, on: name)
        }
    }

    private func promotion(_ generation: Generation) -> [Step] {
        [
            .takeLock(generation), .raiseSegment(generation), .rollBack, .load, .go(generation),
            .commitAfterPromotion, .driver(.running),
        ]
    }

    /// The agent of a host that is being emptied.
    private mutating func drain(_ name: HostName) {
        guard self[name].isDrained, let record = self[name].agent?.view ?? record else { return }
        let plan = Drain(of: name, pairs: others + [record], parallel: parallelMoves) { _ in
            situation(of: name).hosts
        }
        for step in plan.steps {
            switch step {
            case .switchOver(pair, let target):
                guard let present = self.record, present.refusal(ofSwitchoverTo: target) == nil
                else { continue }
                say("\(name): drain: switch over to \(target)")
                askForSwitchover(to: target, by: "drain of \(name)")
            case .replaceSecondary(pair, let target):
                begin(.replaceSecondary(name, by: target), on: name)
            default: continue
            }
        }
    }

    private mutating func note(_ action: PairAction) { actions[action.kind, default: 0] += 1 }

    private mutating func changeRecord(_ action: PairAction, on name: HostName) {
        let old = self[name].agent?.view ?? nil
        if self[name].agent?.steps.isEmpty == false || action == .armSwitchover { note(action) }
        defer { refresh(name) }
        guard let present = bug == .noCompareAndSwap ? old ?? record : record else { return }
        if case .reportPrimaryLost = action {
            check(self[name].qemu?.generation == nil, "declared lost on \(name), but it is there")
        }
        if case .giveUp = action {
            let holders = names.filter { self[$0].qemu?.generation != nil }
            check(holders.isEmpty, "given up on \(name), while \(holders) may run it")
        }
        if action == .guestShutDown {
            // Ended, or ended and begun anew behind our back.
            let isAnother = self[name].qemu.map { $0.generation == nil } ?? false
            check(
                self[name].guestEnded || isAnother,
                "the guest was given up, but nobody had ended it")
        }
        switch action.change(to: present, by: name) {
        case .update(var changed, let event):
            if bug == .claimKeepsGeneration { changed.generation = present.generation }
            if changed != present {
                record = changed
                revision += 1
                if let event { say("    \(event.kind.rawValue): \(event.message)") }
            }
        case .delete, .none:
            violations.append("\(action) is not a change of the record")
        case .outdated:
            say("    outdated")
        }
    }

    // MARK: Steps

    private mutating func carryOut(_ step: Step, on name: HostName) {
        if failuresPerMille > 0, random.chance(failuresPerMille) {
            switch step {
            case .driver, .endQEMU, .removeSegment, .deleteRecord, .removeSegmentUnlessNamed, .arm,
                .awaitLock, .awaitClaim:
                break
            case .lastCommit:
                changeRecord(.endSwitchover(.failed, reason: "no last commit"), on: name)
                return fail(name, .unavailable, "\(step) failed")
            default:
                return fail(name, random.chance(300) ? .timedOut : .unavailable, "\(step) failed")
            }
        }
        switch step {
        case .driver(let state):
            let drives = self[name].qemu?.id
            self[name].agent?.driver = state
            self[name].agent?.drives = drives
        case .endQEMU:
            if bug != .staleIsLeft { killQEMU(on: name) }
        case .nameSegment, .makeSegment, .graft, .firstCommit, .ungraft:
            enablingStep(step, name)
        case .checkPrimary, .continuePrimary, .startWaiting, .checkWaiting, .lastCommit:
            ordinaryStep(step, name)
        case .takeLock, .raiseSegment, .rollBack, .load, .go, .commitAfterPromotion:
            promotionStep(step, name)
        case .arm, .awaitLock, .awaitClaim:
            handOverStep(step, name)
        case .removeSegmentUnlessNamed:
            if record == nil { segment = nil }
        case .removeSegment:
            if record?.state == .disabled { segment = nil }
        case .deleteRecord:
            guard let present = record,
                case .delete = PairAction.finishDisable.change(to: present, by: name)
            else { break }
            record = nil
            revision += 1
            refresh(name)
        }
    }

    private mutating func handOverStep(_ step: Step, _ name: HostName) {
        switch step {
        case .awaitClaim(let left):
            // Until somebody has claimed, or the wish is gone: then the loss is told.
            if left > 0, record?.promoting == nil, record?.switchover != nil {
                self[name].agent?.steps.insert(.awaitClaim(left - 1), at: 0)
            }
        case .arm:
            changeRecord(.armSwitchover, on: name)
        default:
            if lock != nil {
                if situation(of: name).awaitsHandOver {
                    self[name].agent?.steps.insert(.awaitLock, at: 0)
                    return
                }
                return changeRecord(.disarmSwitchover, on: name)
            }
            // Ended in another way than by a hand-over: the ordinary rules decide.
            let isHandedOver = segment?.pausedByCommit == true
            guard isHandedOver || bug == .claimsWithoutHandOver,
                let next = record.flatMap({ Generation($0.generation.number + 1) })
            else { return changeRecord(.disarmSwitchover, on: name) }
            let ended = names.filter { self[$0].guestEnded && record?.primary == $0 }
            check(ended.isEmpty, "a guest that has shut down on \(ended) is begun anew on \(name)")
            begin(.claimPromotion(next), on: name)
            guard record?.promoting == name, record?.generation == next else { return }
            say("\(name): promote(\(next)) at once")
            let steps = promotion(next)
            self[name].agent?.work = .promoting
            self[name].agent?.steps = steps
        }
    }

    private mutating func enablingStep(_ step: Step, _ name: HostName) {
        guard let record, record.primary == name, let qemu = self[name].qemu,
            qemu.mode != .waiting
        else { return fail(name, .failedPrecondition, "\(step): not the primary's host") }
        switch step {
        case .nameSegment:
            guard record.state == .starting else {
                return fail(name, .conflict, "the pair has moved on")
            }
            let reference = SegmentReference(pool: pool, name: "demo")
            ask { $0.segment = reference }
        case .makeSegment:
            guard lock == nil else { return fail(name, .conflict, "the segment is in use") }
            segment = Segment(id: nextQEMU, generation: record.generation)
            nextQEMU += 1
        case .graft:
            guard lock == nil, segment?.generation == record.generation else {
                return fail(name, .conflict, "the lock is held")
            }
            lock = qemu.id
            self[name].qemu?.generation = record.generation
            self[name].qemu?.epoch = 0
        case .firstCommit:
            if !commit(name) { fail(name, .conflict, "fenced") }
        default:
            // The lock goes first of all: from then on it is an ordinary domain.
            if lock == qemu.id { lock = nil }
            self[name].qemu?.generation = nil
        }
    }

    private mutating func ordinaryStep(_ step: Step, _ name: HostName) {
        let qemu = self[name].qemu
        switch step {
        case .checkPrimary:
            guard let qemu, lock == qemu.id else {
                return fail(name, .failedPrecondition, "it does not hold the lock")
            }
            if qemu.generation != segment?.generation {
                fail(name, .conflict, "this generation has been fenced")
            }
        case .continuePrimary:
            guard qemu != nil, qemu?.id == lock else { return fail(name, .unavailable, "gone") }
            self[name].qemu?.mode = .running
            segment?.pausedByCommit = false
        case .startWaiting:
            guard qemu == nil, segment != nil, !self[name].isBroken else {
                return fail(name, .failedPrecondition, "no room for a waiting QEMU")
            }
            self[name].qemu = QEMU(id: nextQEMU, mode: .waiting)
            self[name].guestEnded = false
            nextQEMU += 1
        case .checkWaiting:
            guard qemu?.mode == .waiting else { return fail(name, .unavailable, "gone") }
        default:
            guard commit(name) else { return fail(name, .conflict, "fenced") }
            self[name].qemu?.mode = .paused
            segment?.pausedByCommit = true
        }
    }

    private mutating func promotionStep(_ step: Step, _ name: HostName) {
        guard let qemu = self[name].qemu else { return fail(name, .unavailable, "QEMU is gone") }
        switch step {
        case .takeLock(let generation):
            guard lock == nil || bug == .lockIgnored else {
                return fail(name, .conflict, "the lock is held")
            }
            lock = qemu.id
            self[name].qemu?.generation = generation
        case .raiseSegment(let generation):
            guard let old = segment?.generation, old <= generation else {
                return fail(name, .conflict, "the segment has a higher generation")
            }
            if bug != .segmentNotRaised { segment?.generation = generation }
        case .rollBack where bug == .noRollBack:
            break
        case .rollBack:
            let epoch = segment?.epoch ?? 0
            self[name].qemu?.epoch = epoch
        case .load:
            self[name].qemu?.mode = .paused
        case .go(let generation):
            check(lock == qemu.id, "continued without the lock on \(name)")
            // The last look: a claim that has been taken over is not carried out.
            guard record?.promoting == name, record?.generation == generation else {
                return fail(name, .conflict, "the claim has been taken over")
            }
            self[name].qemu?.mode = .running
            segment?.pausedByCommit = false
        default:
            if !commit(name) { fail(name, .conflict, "fenced") }
        }
    }
}

extension PairAction {
    /// The case's name, without what it carries.
    var kind: String {
        String("\(self)".prefix { $0 != "(" })
    }
}
