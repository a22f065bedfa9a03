import Model

/// The host that the record names as the primary's.
extension PairDecision {
    static func primary(_ situation: PairSituation, _ record: PairRecord) -> [PairAction] {
        let local = situation.local
        // A claim, or our own word that the primary is lost: nothing may run here under the old
        // generation, and the claimant waits for the lock.
        if record.promoting != nil || record.primaryLost {
            guard local.work == nil, local.qemu != .unknown else { return [] }
            if local.qemu != .none {
                let by = record.promoting.map { "\($0) has claimed the promotion" }
                return [.cleanUpStale(reason: by ?? "it was declared lost")]
            }
            // A claim by hand was made without a proof: this is one.
            if record.primaryGone == nil, record.primaryLost { return [.confirmPrimaryGone] }
            return failover(situation, record)
        }
        if record.isNotYetProtected { return notYetProtected(situation, record) }
        guard local.work == nil else { return [] }
        return underProtection(situation, record)
    }

    /// States starting and unprotected.
    private static func notYetProtected(
        _ situation: PairSituation, _ record: PairRecord
    ) -> [PairAction] {
        let local = situation.local
        if record.desired == .disabled {
            if local.work == .enabling { return [.cancelEnabling] }
            return local.work == nil ? [.beginDisable] : []
        }
        guard local.work == nil else { return [] }
        switch local.qemu {
        case .unknown:
            return []
        case .waiting:
            return [.cleanUpStale(reason: "a waiting QEMU is nobody's primary")]
        case .none:
            let reason =
                local.guestEnded
                ? PairReason.guestShutDown
                : local.domainPresent
                    ? "the guest is shut off"
                    : "there is no domain \(record.name) on \(situation.me)"
            // What is said already need not be said better.
            guard record.state == .starting else { return [] }
            return [.reportUnprotected(reason: reason)]
        case .running, .paused:
            break
        }
        switch situation.primaryDriver {
        case .running:
            return [.reportEnabled]
        case .enabling:
            return []
        case .failed(let error):
            if record.state == .unprotected && record.lastError == error { return [] }
            return [.reportEnablingFailed(error)]
        case .none:
            switch situation.primaryLock {
            case .heldHere:
                // ftvmd was restarted after the enabling was done and before it was reported.
                return [.adoptPrimary]
            case .unknown where !situation.segmentGone:
                return []
            case .free, .held, .unknown:
                // An enabling under this generation got as far as a segment, and its QEMU is gone: no generation has
                // two primaries, so begin another. Or the old segment was removed, and the new one not made any more.
                let isUsed =
                    situation.segmentPosition.map { $0.generation >= record.generation } ?? false
                if record.state == .unprotected || isUsed { return [.beginEnabling] }
                return [.startEnabling]
            }
        }
    }

    /// States protected, need-secondary and failing-over, with nobody else claiming anything.
    private static func underProtection(
        _ situation: PairSituation, _ record: PairRecord
    ) -> [PairAction] {
        let local = situation.local
        switch local.qemu {
        case .unknown:
            return []
        case .none:
            if local.guestEnded { return [.guestShutDown] }
            if let switchover = record.switchover, switchover.armed {
                return [.reportPrimaryLost(reason: PairReason.handedOver(to: switchover.target))]
            }
            return [.reportPrimaryLost(reason: "its QEMU on \(situation.me) has ended")]
        case .waiting:
            // A promotion that was reported and a QEMU that was then lost; the guest is not in
            // here.
            return [.cleanUpStale(reason: "a waiting QEMU is nobody's primary")]
        case .running, .paused:
            break
        }
        switch situation.primaryDriver {
        case .enabling:
            return []
        case .failed(let error):
            return failedPrimary(situation, record, error)
        case .none:
            switch situation.primaryLock {
            case .heldHere: return [.adoptPrimary]
            // It does not stand on the segment: the guest was ended and started again behind us.
            case .free: return [.guestShutDown]
            case .held, .unknown: return []
            }
        case .running:
            return runningPrimary(situation, record)
        }
    }

    /// The driver cannot commit; the guest stands still at its next first touch of a page.
    private static func failedPrimary(
        _ situation: PairSituation, _ record: PairRecord, _ error: FtvmError
    ) -> [PairAction] {
        if error.code == .conflict {
            return [.cleanUpStale(reason: "it has been fenced: \(error.message)")]
        }
        let secondaryIsOnline =
            record.secondary.map { situation.hosts[$0]?.state == .online } ?? false
        if error.code == .timedOut, record.secondaryReady, secondaryIsOnline {
            // A QEMU that hangs is treated as a lost one: ended, which is the fence.
            return [.cleanUpStale(reason: "it hangs: \(error.message)")]
        }
        // Adopted again when the agent's back-off has passed.
        return note(error, record)
    }

    private static func runningPrimary(
        _ situation: PairSituation, _ record: PairRecord
    ) -> [PairAction] {
        if record.desired == .disabled { return [.beginDisable] }
        if record.state == .failingOver {
            // Somebody takes this host for dead. Who said so takes it back when it sees better; if
            // both wrote what they believe, they would do so without end. Nobody else left: so it
            // is us.
            let others = failoverOrder(situation, record).candidates.filter { $0 != situation.me }
            return others.isEmpty ? [.reportPrimaryRunning] : []
        }
        let expected: PairState = record.secondaryReady ? .protected : .needSecondary
        if record.state != expected { return [.reportPrimaryRunning] }

        if let secondary = record.secondary {
            if let reason = unfit(secondary, situation, record) {
                return [.reportSecondaryLost(secondary, reason: reason, error: nil)]
            }
        }
        if let switchover = record.switchover {
            if let actions = switchingOver(situation, record, switchover) { return actions }
        } else if record.promotionRequested {
            if record.secondaryReady, let secondary = record.secondary,
                situation.hosts[secondary]?.state == .online
            {
                return [.beginSwitchover(to: secondary)]
            }
            return [.declinePromotion(reason: "there is no secondary that is ready")]
        }
        guard record.secondary == nil else { return [] }
        let placement = Placement(
            PlacementNeed(pool: record.segment?.pool, wish: record.options.secondaryHost),
            hosts: situation.hosts.filter { $0.key != situation.me })
        if let host = placement.candidates.first { return [.placeSecondary(on: host)] }
        var reason = "no host for the secondary: \(placement.rejections)"
        if PairReason.isRefuted(record.reason) { reason = "\(PairReason.refuted); \(reason)" }
        return note(reason, record)
    }

    /// Why `host` cannot keep the secondary; nil when it can.
    private static func unfit(
        _ host: HostName, _ situation: PairSituation, _ record: PairRecord
    ) -> String? {
        if host == situation.me { return "\(host) has the primary" }
        guard let view = situation.hosts[host] else {
            return "\(host) is not a host of the cluster"
        }
        if view.state == .dead { return "\(host) is dead" }
        // Looked at only before it is ready: a waiting QEMU has what it needs.
        if !record.secondaryReady, let pool = record.segment?.pool, !view.pools.contains(pool) {
            return "pool \(pool) not visible on \(host)"
        }
        return nil
    }
}

extension PairSituation {
    /// The driver of a primary. One that runs without the lock drives a QEMU that is gone; what
    /// runs here now is another.
    fileprivate var primaryDriver: DriverState {
        if local.driver == .running, primaryLock == .free || primaryLock == .held { return .none }
        return local.driver
    }
}
