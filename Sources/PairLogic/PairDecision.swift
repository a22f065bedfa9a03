import Model

/// What a host has to do about a pair, from what is known. Level-triggered: it looks only at how
/// things are, so it may be asked any number of times, and after any crash.
/// `Documentation/PairLife.md` has the table of states and situations that this follows.
package enum PairDecision {
    /// The actions to carry out now, in this order; empty when there is nothing to do but wait for
    /// a change. After carrying them out (or failing to), look and ask again.
    package static func decide(_ situation: PairSituation) -> [PairAction] {
        guard let record = situation.record else { return withoutRecord(situation) }
        if record.state == .disabled { return disabled(situation, record) }
        if record.promoting == situation.me { return promoting(situation, record) }
        if record.primary == situation.me { return primary(situation, record) }
        if record.secondary == situation.me { return secondary(situation, record) }
        return bystander(situation, record)
    }

    /// The pair has been removed, or was never there.
    private static func withoutRecord(_ situation: PairSituation) -> [PairAction] {
        guard situation.local.work == nil else { return [] }
        switch situation.local.qemu {
        case .waiting:
            return [.cleanUpStale(reason: "there is no pair \(situation.pair)")]
        case .unknown:
            return []
        case .running, .paused, .none:
            // A running QEMU is the user's, whatever it was before. While one holds the lock its
            // memory is the segment, although no record says so: never touch that.
            guard situation.segmentPresent, situation.primaryLock == .free else { return [] }
            return [.removeSegment]
        }
    }

    /// This host is neither the primary's nor the secondary's, and has claimed nothing.
    private static func bystander(
        _ situation: PairSituation, _ record: PairRecord
    ) -> [PairAction] {
        if let stale = stale(situation, record, waitingToo: true) { return stale }
        guard situation.local.work == nil else { return [] }
        return failover(situation, record)
    }

    /// The secondary's host.
    private static func secondary(
        _ situation: PairSituation, _ record: PairRecord
    ) -> [PairAction] {
        if let stale = stale(situation, record, waitingToo: !record.isUnderProtection) {
            return stale
        }
        let local = situation.local
        if local.work == nil, local.qemu == .waiting, situation.primaryLock == .heldHere {
            // A promotion of ours that was interrupted, and whose claim another has taken over: it
            // waits for this lock.
            return [.cleanUpStale(reason: "its promotion was interrupted")]
        }
        // Claiming does not have to wait for a secondary in the making; promoting does.
        guard local.work == nil || local.work == .makingSecondary else { return [] }
        let failover = failover(situation, record)
        if !failover.isEmpty || failoverIsDue(situation, record) { return failover }
        guard local.work == nil, record.promoting == nil, record.isUnderProtection else {
            return []
        }

        if let actions = awaitingHandOver(situation, record) { return actions }

        if case .failed(let error) = local.driver {
            // Placed here again although it has failed here: there is no better host, and the next
            // try is after the agent's back-off.
            if record.lastError == error && !record.secondaryReady { return [] }
            return [.reportSecondaryLost(situation.me, reason: error.message, error: error)]
        }
        switch local.qemu {
        case .waiting:
            guard local.driver == .running else {
                return local.driver == .none ? [.adoptSecondary] : []
            }
            return record.secondaryReady ? [] : [.reportSecondaryReady(record.generation)]
        case .none:
            if record.secondaryReady {
                return [
                    .reportSecondaryLost(
                        situation.me, reason: "the waiting QEMU on \(situation.me) has ended",
                        error: nil)
                ]
            }
            guard situation.segmentPresent else {
                return [
                    .reportSecondaryLost(
                        situation.me, reason: "\(situation.me) does not see the segment",
                        error: noSegment(situation, record))
                ]
            }
            return [.createSecondary]
        case .running, .paused, .unknown:
            return []
        }
    }

    /// Ends a QEMU that may not be here; nil when there is none.
    /// - Parameter waitingToo: a waiting one may not be here either.
    private static func stale(
        _ situation: PairSituation, _ record: PairRecord, waitingToo: Bool
    ) -> [PairAction]? {
        switch situation.local.qemu {
        case .none, .unknown:
            return nil
        case .waiting:
            guard waitingToo else { return nil }
        case .running, .paused:
            break
        }
        guard situation.local.work == nil else { return [] }
        if record.state == .disabled { return [.cleanUpStale(reason: PairReason.disabling)] }
        let owner =
            record.promoting.map { "\($0) has claimed the promotion" }
            ?? "its primary is on \(record.primary)"
        return [.cleanUpStale(reason: "\(owner), generation \(record.generation)")]
    }

    /// Being given back to libvirt: nobody promotes any more.
    private static func disabled(
        _ situation: PairSituation, _ record: PairRecord
    ) -> [PairAction] {
        let local = situation.local
        let me = situation.me
        guard record.primary == me else {
            if let stale = stale(situation, record, waitingToo: true) { return stale }
            if local.work == nil, local.qemu == .none, record.secondary == me {
                return [.reportSecondaryLost(me, reason: PairReason.disabling, error: nil)]
            }
            guard situation.isScribe(for: record) else { return [] }
            return note(
                "\(record.primary) was lost while it gave \(record.name) back: waiting for it",
                record)
        }
        guard local.work == nil, local.qemu != .unknown else { return [] }
        let isGrafted = local.driver == .running || situation.primaryLock == .heldHere
        switch local.qemu {
        case .running, .paused:
            if isGrafted {
                // Tried again when the agent's back-off has passed.
                if case .failed(let error) = local.driver { return note(error, record) }
                return [.startDisabling]
            }
            // Without an answer about the lock, the memory of this QEMU may still be the segment.
            if situation.primaryLock == .unknown, !situation.segmentGone { return [] }
        case .waiting:
            return [.cleanUpStale(reason: PairReason.disabling)]
        case .none, .unknown:
            break
        }
        // The secondary's host ends its QEMU and takes its name out; a dead one does that later.
        if let secondary = record.secondary, situation.hosts[secondary]?.state != .dead {
            return []
        }
        return [.finishDisable]
    }

    // MARK: Helpers

    static func note(_ reason: String, _ record: PairRecord) -> [PairAction] {
        record.reason == reason ? [] : [.noteReason(reason)]
    }

    static func note(_ error: FtvmError, _ record: PairRecord) -> [PairAction] {
        record.lastError == error ? [] : [.noteError(error)]
    }

    static func noSegment(_ situation: PairSituation, _ record: PairRecord) -> FtvmError {
        let place = record.segment.map { "segment \($0.name) of pool \($0.pool)" } ?? "a segment"
        return FtvmError(
            .notFound, "\(situation.me) does not see \(place)",
            advice: "check that the pool is mounted there")
    }
}

extension PairSituation {
    /// Whether this host writes down what concerns nobody else: the primary's host while it is
    /// online, otherwise the first online host by name.
    func isScribe(for record: PairRecord) -> Bool {
        if hosts[record.primary]?.state != .dead { return record.primary == me }
        return hosts.filter { $0.value.state == .online }.keys.min() == me
    }
}
