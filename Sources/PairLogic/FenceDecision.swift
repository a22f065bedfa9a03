import Model

/// How many hosts have to do with a fence, or with a self-fence, so that the two exclude each other.
///
/// A host that has lost the store goes on while a majority of all hosts, itself among them, says in
/// the pool that it takes note of its heartbeat. Who wants to count its self-fence as a proof first
/// has so many others stop saying so that no such majority is left.
package enum FenceQuorum {
    /// Other hosts whose acknowledgement in the pool keeps a host going without the store.
    package static func acknowledgementsNeeded(hosts: Int) -> Int { hosts / 2 }
    /// Hosts, the fencer among them, that must have noted the fence.
    package static func notesNeeded(hosts: Int) -> Int { (hosts + 1) / 2 }
}

/// Everything that a decision about the fence of one host rests on, for one deciding host.
package struct FenceSituation: Sendable, Hashable {
    package var me: HostName
    package var target: HostName
    /// All hosts as `me` sees them, itself online.
    package var hosts: [HostName: HostState]
    /// The target's incarnation as registered in the store; nil: it never was.
    package var incarnation: UInt64?
    /// The incarnation that the detector's word is about (`Detector.incarnation(of:)`).
    package var judgedIncarnation: UInt64?
    package var record: FenceRecord?
    /// Some pair cannot go on without it (`PairSituation.fencesNeeded`).
    package var isNeeded: Bool
    /// The target is configured with a self-fence, and its lease says that it had it armed.
    package var hasSelfFence: Bool
    /// For `me == target`: this incarnation of ours, and our QEMUs of pairs that may write or wait, with their disk servers.
    package var ownIncarnation: UInt64
    package var ownQEMUs: Int

    package init(
        me: HostName, target: HostName, hosts: [HostName: HostState], incarnation: UInt64?,
        judgedIncarnation: UInt64?, record: FenceRecord?, isNeeded: Bool, hasSelfFence: Bool,
        ownIncarnation: UInt64,
        ownQEMUs: Int
    ) {
        self.me = me
        self.target = target
        self.hosts = hosts
        self.incarnation = incarnation
        self.judgedIncarnation = judgedIncarnation
        self.record = record
        self.isNeeded = isNeeded
        self.hasSelfFence = hasSelfFence
        self.ownIncarnation = ownIncarnation
        self.ownQEMUs = ownQEMUs
    }
}

package enum FenceAction: Sendable, Hashable {
    // MARK: Work on this host

    /// Run the target's `FencePlan` here (go on with it, if it runs).
    case pursue
    /// Stop a plan that runs here: the fence is another's, or over.
    case rest
    /// This host has been fenced: end every QEMU of a pair here, at once.
    case stopGuests
    /// Nothing of the fenced incarnation runs here: begin a new one, and register it.
    case rejoin

    // MARK: Changes of the fence's record

    case mark(incarnation: UInt64)
    case takeOver
    /// From now on this host does not take note of the target's heartbeat any more; to be obeyed
    /// *before* it is written.
    case note
    /// The target's own word: all its QEMUs have ended.
    case confirmOwn
    case prove(FenceMethod, detail: String)
    case say(String)
    case roundFailed(String)
    /// The target is back under a later incarnation.
    case remove
}

/// Who fences a host, and what a fenced host does. Level-triggered, as `PairDecision`.
package enum FenceDecision {
    package static func decide(_ situation: FenceSituation) -> [FenceAction] {
        if situation.target == situation.me { return ofMe(situation) }
        guard let record = situation.record, record.incarnation == situation.incarnation else {
            guard let incarnation = situation.incarnation, situation.isNeeded,
                situation.hosts[situation.target] == .dead,
                // One that has only just registered has not been heard yet, and is not silent.
                situation.judgedIncarnation.map({ $0 >= incarnation }) ?? true,
                order(situation, nil).first == situation.me
            else { return [.rest] }
            return [.mark(incarnation: incarnation)]
        }
        guard record.method == nil else {
            // Somebody is promoting there: libvirt's word is not enough for that.
            if record.method == .libvirt, !record.withoutLibvirt, situation.isNeeded,
                order(situation, record).first == situation.me
            {
                return [.mark(incarnation: record.incarnation)]
            }
            return [.rest]
        }
        var actions: [FenceAction] = []
        if situation.hasSelfFence, !record.notedBy.contains(situation.me),
            record.notedBy.count < FenceQuorum.notesNeeded(hosts: situation.hosts.count)
        {
            actions.append(.note)
        }
        // A fence that was begun is ended, also when the target is heard again: it may be half
        // off. It gives its own word when it can.
        if record.by == situation.me {
            actions.append(.pursue)
        } else {
            actions.append(.rest)
            // Hosts that see different things must not take it from each other for ever.
            let isGone = (situation.hosts[record.by] ?? .dead) == .dead
            let failed = record.failedRounds[record.by.text] ?? 0
            let isTurn = failed > record.failedRounds[situation.me.text] ?? 0
            if isGone || isTurn, order(situation, record).first == situation.me {
                actions.append(.takeOver)
            }
        }
        return actions
    }

    private static func ofMe(_ situation: FenceSituation) -> [FenceAction] {
        guard let record = situation.record else { return [] }
        guard record.incarnation >= situation.ownIncarnation else { return [.remove] }
        if situation.ownQEMUs > 0 { return [.stopGuests] }
        return record.method == nil ? [.confirmOwn] : [.rejoin]
    }

    /// Hosts that may carry out the fence, best first: who has failed least, then by name.
    private static func order(
        _ situation: FenceSituation, _ record: FenceRecord?
    ) -> [HostName] {
        situation.hosts
            .filter { $0.key != situation.target && $0.value == .online }
            .map { (record?.failedRounds[$0.key.text] ?? 0, $0.key) }
            .sorted { $0 < $1 }.map(\.1)
    }
}

/// What a fence action does to the record as it stands now in the store.
package enum FenceChange: Sendable, Hashable {
    case none
    case outdated
    case update(FenceRecord, EventReason?)
    case delete

    package var record: FenceRecord? {
        if case .update(let record, _) = self { record } else { nil }
    }
}

extension FenceAction {
    /// - Parameters:
    ///   - present: the fence's record now.
    ///   - incarnation: the target's registered incarnation now.
    ///   - leaseHasMoved: the target has renewed its lease since it was last looked at: it lives,
    ///     and is not fenced. To be checked in the same transaction.
    package func change(
        to present: FenceRecord?, target: HostName, incarnation: UInt64?, leaseHasMoved: Bool,
        by me: HostName
    ) -> FenceChange {
        if case .mark(let meant) = self {
            guard incarnation == meant, !leaseHasMoved,
                present.map({ $0.incarnation < meant || $0.method == .libvirt }) ?? true
            else { return .outdated }
            var record = FenceRecord(host: target, incarnation: meant, by: me)
            record.withoutLibvirt = present?.incarnation == meant
            return .update(record, nil)
        }
        guard var record = present else { return .outdated }
        var reason: EventReason?
        switch self {
        case .pursue, .rest, .stopGuests, .rejoin, .mark:
            return .none
        case .takeOver:
            guard record.method == nil else { return .outdated }
            record.by = me
        case .note:
            guard record.method == nil, !record.notedBy.contains(me) else { return .outdated }
            record.notedBy.append(me)
        case .confirmOwn:
            guard record.method == nil, target == me else { return .outdated }
            record.method = .ownHost
            record.detail = "\(me) has ended its QEMUs"
            reason = .fenceProven(target, .ownHost)
        case .prove(let method, let detail):
            guard record.method == nil, incarnation == record.incarnation else {
                return .outdated
            }
            record.method = method
            record.detail = detail
            record.status = ""
            reason = .fenceProven(target, method)
        case .say(let status):
            guard record.method == nil, record.by == me else { return .outdated }
            if record.status == status { return .none }
            record.status = status
            reason = .fenceTried(target, level: "", result: status)
        case .roundFailed(let status):
            guard record.method == nil, record.by == me else { return .outdated }
            record.status = status
            record.failedRounds[me.text, default: 0] += 1
            reason = .fenceTried(target, level: "all", result: status)
        case .remove:
            guard let incarnation, record.incarnation < incarnation else { return .outdated }
            return .delete
        }
        return .update(record, reason)
    }
}
