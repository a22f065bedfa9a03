import Model

/// Who promotes, when, and what the one who has claimed the promotion does.
extension PairDecision {
    /// The primary is lost and nobody who lives is promoting.
    static func failoverIsDue(_ situation: PairSituation, _ record: PairRecord) -> Bool {
        guard record.isUnderProtection else { return false }
        if let claimant = record.promoting {
            return situation.hosts[claimant]?.state == .dead
        }
        if record.primaryLost { return true }
        switch situation.hosts[record.primary]?.state {
        case .dead: return true
        // It does not answer, and provably has no primary running: waiting longer can save nothing.
        case .suspect: return situation.evidence(record).lock == .free
        case .online, nil: return false
        }
    }

    /// Who is to claim the promotion, best first; the same on every host that sees the same.
    /// The secondary's host, unless it is dead or has failed lately; then placement's order; then,
    /// as the last resort, the old primary's host, if it lives: its QEMU ended, perhaps for a cause
    /// there.
    static func failoverOrder(
        _ situation: PairSituation, _ record: PairRecord
    ) -> (candidates: [HostName], rejections: String) {
        var candidates: [HostName] = []
        var excluded: [HostName: String] = [record.primary: "the primary was there"]
        if let secondary = record.secondary, secondary != record.primary,
            let view = situation.hosts[secondary],
            view.state == .online || (view.state == .suspect && record.secondaryReady),
            view.recentFailure == nil
        {
            candidates.append(secondary)
            excluded[secondary] = "it is the first choice"
        }
        let placement = Placement(
            PlacementNeed(pool: record.segment?.pool, excluded: excluded), hosts: situation.hosts)
        candidates += placement.candidates
        let last = Placement(
            PlacementNeed(pool: record.segment?.pool),
            hosts: situation.hosts.filter { $0.key == record.primary })
        candidates += last.candidates
        // Better on a host that is to be emptied than nowhere.
        var emptied = situation.hosts.filter { $0.value.maintenance }
        for host in emptied.keys { emptied[host]?.maintenance = false }
        let need = PlacementNeed(pool: record.segment?.pool)
        candidates += Placement(need, hosts: emptied).candidates.filter { !candidates.contains($0) }
        let rejected = placement.rejected.filter { $0.host != record.primary } + last.rejected
        let rejections = rejected.map { "\($0.host): \($0.reason)" }.sorted()
        return (candidates, rejections.joined(separator: "; "))
    }

    /// Claims, or waits for a fence, if it is this host's turn.
    static func failover(_ situation: PairSituation, _ record: PairRecord) -> [PairAction] {
        guard failoverIsDue(situation, record) else {
            return takeBack(situation, record) + lostBeforeProtected(situation, record)
        }
        let order = failoverOrder(situation, record)
        guard let candidate = order.candidates.first else {
            guard situation.isScribe(for: record) else { return [] }
            return note("no host can go on from the segment: \(order.rejections)", record)
        }
        guard candidate == situation.me else { return [] }
        if record.isToBeGivenUp { return giveUp(situation, record) }
        // The agent's back-off after a failed try.
        if case .failed = situation.local.driver { return [] }
        guard situation.segmentPresent else {
            return stuck(
                "\(noSegment(situation, record).message)\(PairReason.wayOut(record.name))", record)
        }
        guard let next = record.nextGeneration else {
            return note("its generations are used up: disable and enable it again", record)
        }
        let evidence = situation.evidence(record)
        switch evidence.lock {
        case .free:
            return [evidence.method.map { .claimFenced(next, $0) } ?? .claimPromotion(next)]
        case .held where record.promotionRequested && record.promoting == nil:
            // A user gives the old primary up. The claim fences it through its generation, and the
            // promotion still waits for the lock.
            return [.claimByHand(next)]
        case .held:
            return waitForFence(situation, record, evidence)
        case .heldHere:
            // Only a primary that the record no longer knows: it must go before anything else.
            return [.cleanUpStale(reason: "\(record.primary) has lost its primary role")]
        case .unknown:
            return waitForFence(situation, record, evidence)
        }
    }

    /// A failover is due, and cannot be begun.
    private static func stuck(_ reason: String, _ record: PairRecord) -> [PairAction] {
        // Not against the primary's own word, like a wait for a fence.
        if record.state != .failingOver && PairReason.isRefuted(record.reason) { return [] }
        return record.state == .failingOver && record.reason == reason
            ? [] : [.reportStuck(reason: reason)]
    }

    /// What this host does with the promotion that it has claimed.
    static func promoting(_ situation: PairSituation, _ record: PairRecord) -> [PairAction] {
        let local = situation.local
        guard local.work == nil else { return [] }
        if record.isToBeGivenUp, let actions = dropClaim(local) { return actions }
        let evidence = situation.evidence(record)
        let lock = evidence.lock
        if lock == .free, local.qemu == .none || local.qemu == .waiting,
            let position = situation.segmentPosition, position.generation >= record.generation
        {
            // A promotion under this generation was begun and is no more: its QEMU may have run the
            // guest. No generation has two primaries, so this one is used up.
            if let next = record.nextGeneration { return [.claimPromotion(next)] }
        }
        if situation.claimIsFromBefore, situation.fencing.kernelPeers != nil,
            local.qemu == .none || local.qemu == .waiting, evidence.lock == .free,
            let next = record.nextGeneration
        {
            // Somebody's claim that rests on a proof of our earlier end must not fit any more.
            return [.claimPromotion(next)]
        }
        switch local.qemu {
        case .unknown:
            return []
        case .none:
            if case .failed(let error) = local.driver { return [.releaseClaim(error)] }
            guard situation.segmentPresent else {
                return [.releaseClaim(noSegment(situation, record))]
            }
            // Also while the old primary is not proven gone yet: then it is ready in time.
            return [.createSecondary]
        case .running, .paused:
            guard lock != .unknown else { return [] }
            guard lock == .heldHere else {
                return [.cleanUpStale(reason: "it runs without the primary lock")]
            }
            switch local.driver {
            case .running: return [.reportPromoted]
            case .enabling: return []
            case .none: return [.adoptPrimary]
            case .failed(let error):
                return [.cleanUpStale(reason: "its promotion failed: \(error.message)")]
            }
        case .waiting:
            if case .failed(let error) = local.driver {
                return [.cleanUpStale(reason: "its promotion failed: \(error.message)")]
            }
            switch lock {
            case .heldHere:
                // ftvmd died half-way through a promotion; the guest has not run. Begin anew.
                return [.cleanUpStale(reason: "its promotion was interrupted")]
            case .free:
                guard local.driver == .running else {
                    return local.driver == .none ? [.adoptSecondary] : []
                }
                return [.promote(record.generation)]
            case .held:
                if let position = situation.segmentPosition,
                    position.generation < record.generation
                {
                    return [.raiseSegmentGeneration(record.generation)]
                }
                return waitForFence(situation, record, evidence)
            case .unknown:
                return waitForFence(situation, record, evidence)
            }
        }
    }

    static func waitForFence(
        _ situation: PairSituation, _ record: PairRecord, _ evidence: PrimaryEvidence
    ) -> [PairAction] {
        // The lock was free when an ordinary claim was made, so a later holder is the claimant's
        // QEMU; a claim by hand is made while the old primary's may still hold it.
        var suspects: [HostName] = []
        let claimant = record.promoting == situation.me ? nil : record.promoting
        if claimant == nil || record.promotionRequested { suspects.append(record.primary) }
        if let claimant { suspects.append(claimant) }
        if !evidence.unproven.isEmpty { suspects = evidence.unproven }
        // Said once, by whomever, and not again against the primary's own word: hosts that see
        // different things must not correct each other for ever.
        if record.state != .failingOver && PairReason.isRefuted(record.reason) { return [] }
        if record.state == .failingOver && PairReason.isWaiting(record.reason) {
            // What a fence came to is in the store, the same for everybody.
            let now = PairReason.waiting(for: suspects, evidence.reason)
            if !evidence.isShared || record.reason == now { return [] }
        }
        return [.waitForFence(of: suspects, reason: evidence.reason)]
    }

    /// The host that would promote, and so has said that a failover is due, takes that back.
    private static func takeBack(
        _ situation: PairSituation, _ record: PairRecord
    ) -> [PairAction] {
        guard record.state == .failingOver, record.promoting == nil, !record.primaryLost,
            record.primary != situation.me, situation.hosts[record.primary]?.state == .online,
            failoverOrder(situation, record).candidates.first == situation.me
        else { return [] }
        return [.reportPrimaryRunning]
    }

    /// The primary's host died before there was a segment to go on from: the guest died with it.
    private static func lostBeforeProtected(
        _ situation: PairSituation, _ record: PairRecord
    ) -> [PairAction] {
        guard record.state == .starting, record.primary != situation.me,
            situation.hosts[record.primary]?.state == .dead, situation.isScribe(for: record)
        else { return [] }
        return [.reportLostUnprotected]
    }
}
