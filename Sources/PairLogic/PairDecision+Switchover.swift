import Model

/// Planned moves. The target waits, ready, before the source stops: between the guest's last
/// instruction there and its first one here lie the last commit, the end of a QEMU, one
/// compare-and-swap and the promotion, and nothing else.
extension PairDecision {
    /// The primary's host, its driver running.
    /// - Returns: nil when things must go on as without a switchover.
    static func switchingOver(
        _ situation: PairSituation, _ record: PairRecord, _ switchover: Switchover
    ) -> [PairAction]? {
        let target = switchover.target
        if target == situation.me {
            return [.endSwitchover(.refused, reason: "the primary is on \(target) already")]
        }
        guard record.secondary == target else {
            let need = PlacementNeed(pool: record.segment?.pool)
            let placement = Placement(need, hosts: situation.hosts.filter { $0.key == target })
            if let refusal = placement.rejected.first {
                return [.endSwitchover(.refused, reason: "\(target): \(refusal.reason)")]
            }
            guard !placement.candidates.isEmpty else {
                let reason = "\(target) is not a host of the cluster"
                return [.endSwitchover(.refused, reason: reason)]
            }
            guard let present = record.secondary else { return [.placeSecondary(on: target)] }
            return [.replaceSecondary(present, by: target)]
        }
        // Whoever is not seen to live is not handed anything: dead, it is a lost secondary.
        guard record.secondaryReady, switchover.armed,
            situation.hosts[target]?.state == .online
        else { return [] }
        return [.handOver]
    }

    /// The secondary's host.
    /// - Returns: nil when it is nobody's target, or not fit yet.
    static func awaitingHandOver(
        _ situation: PairSituation, _ record: PairRecord
    ) -> [PairAction]? {
        guard let switchover = record.switchover, switchover.target == situation.me else {
            return nil
        }
        let isFit = situation.local.qemu == .waiting && situation.local.driver == .running
        guard isFit, record.secondaryReady else {
            // A former ftvmd of this host had said that it waits.
            return switchover.armed ? [.disarmSwitchover] : nil
        }
        return situation.awaitsHandOver ? [.awaitHandOver] : nil
    }
}

extension PairSituation {
    /// This host is the target of a switchover whose source lives: it is to wait for the lock. Otherwise the
    /// ordinary rules decide.
    package var awaitsHandOver: Bool {
        guard let record, let switchover = record.switchover else { return false }
        return record.awaitsHandOver(on: me, to: switchover)
            && hosts[record.primary]?.state == .online
    }
}

extension PairRecord {
    func awaitsHandOver(on me: HostName, to switchover: Switchover) -> Bool {
        switchover.target == me && secondary == me && secondaryReady && promoting == nil
            && !primaryLost && (state == .protected || state == .needSecondary)
    }

    /// Why the record's pair cannot be asked to move to `target` now; nil when it can.
    package func refusal(ofSwitchoverTo target: HostName?) -> FtvmError? {
        func refused(_ cause: String, _ advice: String? = nil) -> FtvmError {
            FtvmError(
                .failedPrecondition, "pair \(name) cannot be switched over now", cause: cause,
                advice: advice ?? "wait until 'ftvm status \(name)' says protected")
        }
        if desired == .disabled { return refused("it is being disabled") }
        if let switchover {
            return refused(
                "it is being moved to \(switchover.target) (\(switchover.requestedBy))",
                "wait for that, or end it with 'ftvm switchover \(name) --cancel'")
        }
        guard isUnderProtection, state != .failingOver, promoting == nil else {
            return refused(reason.isEmpty ? "it is \(state.rawValue)" : reason)
        }
        if let target, target == primary {
            return FtvmError(
                .alreadyExists, "the primary of \(name) is on \(target) already",
                advice: "see 'ftvm status \(name)'")
        }
        guard target == nil || target == secondary else { return nil }
        guard secondaryReady else {
            return refused(
                secondary.map { "its secondary on \($0) is not ready" }
                    ?? (reason.isEmpty ? "it has no secondary" : reason))
        }
        return nil
    }

    /// Ends the planned move, if there is one.
    mutating func endSwitchover(_ result: SwitchoverOutcome.Result, _ reason: String) {
        guard let ended = switchover else { return }
        lastSwitchover = SwitchoverOutcome(
            id: ended.id, target: ended.target, result: result, reason: reason)
        switchover = nil
        promotionRequested = false
    }

    /// A user takes the wish back. Too late once the target has claimed: then it stays.
    /// - Returns: whether there was something to take back.
    package mutating func cancelSwitchover(_ reason: String) -> Bool {
        guard switchover != nil, promoting == nil else { return false }
        endSwitchover(.cancelled, reason)
        return true
    }
}
