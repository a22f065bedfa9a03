import ClusterStore
import Foundation
import Glibc
import Hypervisor
import MemoryPool
import Model
import PairLogic
import Protection

/// Deciding and acting.
extension Agent {
    /// Looks at every pair, and at every segment that belongs to none.
    func lookAtEverything() async {
        guard recordsKnown else { return }
        for name in records.keys.sorted() { await look(at: name) }
        for name in cluster.needs.keys where records[name] == nil { cluster.needs[name] = nil }
        for (name, runtime) in runtimes where records[name] == nil {
            await look(at: name)
            if runtime.work == nil && runtime.driver == nil { runtimes[name] = nil }
        }
        await removeOrphanedSegments()
        // The images of a fenced host's pairs may be another's by now.
        guard cluster.isRegistered, !cluster.selfFence.isFencedNow else { return }
        await replayJournals()
        settleEnded()
    }

    /// What a guest wrote last, before it shut down, reaches its images; until then they are locked. The record comes first: from
    /// there on nobody goes back to a commit.
    private func settleEnded() {
        for record in records.values.map(\.record) where record.primary == host {
            let name = record.name
            guard record.state == .unprotected, record.segment != nil else {
                runtimes[name]?.isSettled = false
                continue
            }
            let runtime = runtime(of: name)
            guard !runtime.isSettled, runtime.work == nil, runtime.driver == nil,
                MonotonicClock.nowNanoseconds() >= runtime.retryAtNanoseconds
            else { continue }
            begin(.cleaningUp, name) {
                try await self.worker.settleDisksNow(record)
                await self.noteSettled(name)
            }
        }
    }

    private func noteSettled(_ name: PairName) { runtime(of: name).isSettled = true }

    /// After a loss of everything: a pair whose segment is gone may have left a journal beside its images, which lack what is
    /// in it. The images' storage is asked only then.
    private func replayJournals() async {
        for record in records.values.map(\.record) {
            let runtime = runtime(of: record.name)
            guard record.segment != nil, runtime.work == nil, runtime.driver == nil,
                runtime.journalPath(of: record) != nil,
                look(at: record.segment, runtime).isGone
            else { continue }
            do {
                _ = try await worker.settleDisks(record)
            } catch {
                logger.warning(
                    "cannot replay a disk journal",
                    metadata: ["pair": "\(record.name)", "error": "\(error)"])
            }
        }
    }

    /// One look at a pair at a time: what a slower one had seen would be out of date. Who comes meanwhile has the
    /// first one look again.
    func look(at name: PairName) async {
        guard looking[name] == nil else {
            looking[name] = true
            return
        }
        // A bound only in name: whatever else there is to do comes with the next wake.
        for _ in 0..<8 {
            looking[name] = false
            let situation = await situation(of: name)
            noteFences(needed: situation.fencesNeeded(), by: name)
            let actions = PairDecision.decide(situation)
            guard mayAct(actions, on: name) else { break }
            for action in actions { await perform(action, on: name) }
            if looking[name] == false { break }
        }
        looking[name] = nil
    }

    /// A fenced host does nothing any more, one whose time is over starts no guest, and so much is done at a time. What
    /// is not admitted is decided again.
    private func mayAct(_ actions: [PairAction], on name: PairName) -> Bool {
        guard !actions.isEmpty else { return true }
        guard cluster.isRegistered, !cluster.selfFence.isFencedNow else { return false }
        let startsGuests = actions.contains {
            switch $0 {
            case .startEnabling, .adoptPrimary, .promote: true
            default: false
            }
        }
        if startsGuests, hasSelfFence, !cluster.selfFence.mayRunGuests(at: BootClock.now()) {
            return false
        }
        let need = FailoverBudget.need(of: actions, records[name]?.record, me: host)
        guard need != nil else { return true }
        var used = (promotions: 0, reprotections: 0)
        var own: FailoverBudget.Use?
        for (other, runtime) in runtimes {
            var use = FailoverBudget.use(records[other]?.record, work: runtime.work, me: host)
            if use == nil, runtime.isClaiming { use = .promotion }
            if other == name { own = use }
            switch use {
            case .promotion: used.promotions += 1
            case .reprotection: used.reprotections += 1
            case nil: break
            }
        }
        let limits = environment.cluster.limits
        return FailoverBudget(promotions: limits.failovers, reprotections: limits.enablings)
            .admits(need, own: own, used: used)
    }

    /// From any thread: something has happened to this pair.
    nonisolated func poke(_ name: PairName) {
        Task { await self.look(at: name) }
    }

    /// Segments carry their domain's UUID as their name, so those of no record are told easily.
    private func removeOrphanedSegments() async {
        let named = Set(records.values.map(\.record.uuid))
        for pool in environment.pools {
            guard let names = try? pool.segmentNames() else { continue }
            for name in names where !named.contains(name) {
                let reference = SegmentReference(pool: pool.name, name: name)
                guard let segment = try? pool.openSegment(name: name, access: .read) else {
                    continue
                }
                guard (try? segment.isLocked(.primary)) == false else { continue }
                await removeSegment(reference)
            }
        }
    }

    /// Removes a segment that no record in the store, read now, names.
    private func removeSegment(_ reference: SegmentReference) async {
        do {
            let listing = try await environment.pairs.list()
            guard listing.unreadable.isEmpty,
                !listing.records.contains(where: { $0.record.uuid == reference.name })
            else { return }
            if try environment.pool(reference.pool).removeSegment(name: reference.name) {
                logger.notice("segment removed", metadata: ["segment": "\(reference.name)"])
            }
        } catch {
            logger.debug("segment stays", metadata: ["error": "\(error)"])
        }
    }

    func perform(_ action: PairAction, on name: PairName) async {
        logger.debug("action", metadata: ["pair": "\(name)", "action": "\(action)"])
        switch action {
        case .startEnabling: begin(.enabling, name) { try await self.enable(name) }
        case .cancelEnabling: break  // It ends by itself within seconds; then the wish is looked at again.
        case .adoptPrimary: begin(.adopting, name) { try await self.adopt(name) }
        case .createSecondary, .adoptSecondary:
            begin(.makingSecondary, name) { try await self.makeSecondary(name) }
        case .promote(let generation):
            begin(.promoting, name) { try await self.promote(name, generation) }
        case .raiseSegmentGeneration(let generation):
            await raiseSegmentGeneration(name, generation)
        case .handOver: begin(.handingOver, name) { try await self.handOver(name) }
        case .awaitHandOver:
            begin(.awaitingHandOver, name) { try await self.awaitHandOver(name) }
        case .startDisabling: begin(.disabling, name) { try await self.release(name) }
        case .cleanUpStale(let reason):
            begin(.cleaningUp, name) { try await self.cleanUp(name, reason) }
        case .removeSegment:
            if let reference = records[name]?.record.segment { await removeSegment(reference) }
        case .finishDisable:
            begin(.cleaningUp, name) { try await self.finishDisable(name) }
        case .waitForFence(_, let reason):
            let generation = records[name]?.record.generation
            guard mayTellOfWaiting(runtime(of: name), generation, reason) else { return }
            await change(name, action)
        case .placeSecondary
        where MonotonicClock.nowNanoseconds() < runtime(of: name).quietUntilNanoseconds:
            break  // Looked at again when the quiet time is over.
        default: await change(name, action)
        }
    }

    /// Hosts that see different things must not correct each other's words as fast as the store can write.
    private func mayTellOfWaiting(
        _ runtime: PairRuntime, _ generation: Generation?, _ reason: String
    ) -> Bool {
        let now = MonotonicClock.nowNanoseconds()
        // What a fence came to is news, and the same for all.
        if let told = runtime.waitingTold, told.generation == generation, told.reason == reason,
            now - told.atNanoseconds < 3_000_000_000
        {
            return false
        }
        runtime.waitingTold = (generation, reason, now)
        return true
    }

    /// Writes what the action does to the record, by compare-and-swap, and tells the event.
    func change(_ name: PairName, _ action: PairAction) async {
        let claim = action.claimedGeneration
        if claim != nil { runtime(of: name).isClaiming = true }
        defer { if claim != nil { runtimes[name]?.isClaiming = false } }
        // A proof must hold for the very record that is swapped: fences are read after it.
        let needsProof = claim != nil && cluster.fencing.kernelPeers != nil
        do {
            for attempt in 0..<PairRecords.updateTries {
                // What is known may be what is there: the compare-and-swap tells, and a read is saved.
                let isKnown = attempt == 0 && records[name] != nil && !needsProof
                let read = isKnown ? records[name] : try await environment.pairs.read(name)
                guard let present = read else { return }
                if needsProof {
                    let members = MemberRecords.decode(
                        try await environment.store.list(StoreKeys.members))
                    for member in members.records { remember(member) }
                    guard cluster.fencing.allows(action, on: present.record, by: host) else {
                        remember(present)
                        return
                    }
                }
                switch action.change(to: present.record, by: host) {
                case .none, .outdated:
                    if isKnown { continue }
                    remember(present)
                    return
                case .update(let record, let event):
                    if record == present.record { return }
                    action.reachFaultPoint(isDone: false)
                    guard
                        let revision = try await environment.pairs.replace(
                            name, present, by: record)
                    else { continue }
                    action.reachFaultPoint(isDone: true)
                    remember(Versioned(record: record, revision: revision))
                    if let claim { runtime(of: name).claimed = claim }
                    if let event { emit(event.kind, event.message, pair: name) }
                    if looking[name] != nil { looking[name] = true }
                    poke()
                    return
                case .delete(let event):
                    do {
                        try await environment.pairs.delete(name, revision: present.revision)
                    } catch  where error.code == .conflict { continue }
                    records[name] = nil
                    emit(event.kind, event.message, pair: name)
                    return
                }
            }
        } catch {
            logger.warning(
                "cannot change a pair's record",
                metadata: ["pair": "\(name)", "error": "\(error)"])
        }
    }

    /// Starts long work, unless there is some; afterwards everything is looked at again.
    func begin(
        _ work: PairWork, _ name: PairName, _ body: @escaping @Sendable () async throws -> Void
    ) {
        let runtime = runtime(of: name)
        guard runtime.work == nil else { return }
        runtime.work = work
        logger.info("work begins", metadata: ["pair": "\(name)", "work": "\(work.rawValue)"])
        Task {
            do {
                try await body()
                await self.end(work, name, nil)
            } catch {
                await self.end(work, name, FtvmError(ours: error))
            }
        }
    }

    private func end(_ work: PairWork, _ name: PairName, _ error: FtvmError?) async {
        let runtime = runtime(of: name)
        runtime.work = nil
        runtime.domain = nil
        if let error {
            runtime.note(failure: error, nowNanoseconds: MonotonicClock.nowNanoseconds())
            logger.warning(
                "work failed",
                metadata: [
                    "pair": "\(name)", "work": "\(work.rawValue)", "error": "\(error)",
                ])
        } else if work != .cleaningUp {
            // A clean-up is part of a failure's story: the pause after it still counts.
            runtime.noteSuccess()
        }
        await look(at: name)
        poke()
    }
}

extension PairAction {
    /// Before and after its swap.
    fileprivate func reachFaultPoint(isDone: Bool) {
        switch self {
        case .claimPromotion, .claimFenced, .claimByHand:
            if isDone {
                FaultPoint.reached("failover.claimed")
            } else {
                FaultPoint.reached("failover.claiming")
            }
        case .reportPrimaryLost:
            if isDone {
                FaultPoint.reached("failover.loss-told")
            } else {
                FaultPoint.reached("failover.telling-loss")
            }
        default: break
        }
    }
}

extension FtvmError {
    /// Any error as one of ours.
    init(ours error: any Error) {
        self = error as? FtvmError ?? FtvmError(.internalError, "\(error)")
    }
}
