import Model

/// How much a host does at a time when many pairs want something: promotions first, then waiting
/// QEMUs for pairs that have none. What is not admitted is decided again after the next change.
package struct FailoverBudget: Sendable, Hashable {
    /// Pairs that this host promotes at the same time, from the claim to the end of the promotion.
    package var promotions: Int
    /// Waiting QEMUs that it starts at the same time, beside those of promotions.
    package var reprotections: Int

    package init(promotions: Int = 4, reprotections: Int = 2) {
        precondition(promotions > 0 && reprotections > 0)
        self.promotions = promotions
        self.reprotections = reprotections
    }

    /// What one pair holds of the budget.
    package enum Use: Sendable, Hashable { case promotion, reprotection }

    /// What a pair holds while its record and its work are so.
    package static func use(
        _ record: PairRecord?, work: PairWork?, me: HostName
    ) -> Use? {
        if record?.promoting == me { return .promotion }
        switch work {
        case .promoting: return .promotion
        case .makingSecondary: return .reprotection
        default: return nil
        }
    }

    /// What these actions would need; nil: nothing that is rationed.
    package static func need(of actions: [PairAction], _ record: PairRecord?, me: HostName) -> Use?
    {
        for action in actions {
            switch action {
            case .claimPromotion, .claimFenced, .claimByHand, .promote: return .promotion
            case .createSecondary, .adoptSecondary:
                return record?.promoting == me ? .promotion : .reprotection
            default: continue
            }
        }
        return nil
    }

    /// Whether a pair that holds `own` may do what needs `need`, when `used` is held in all.
    package func admits(_ need: Use?, own: Use?, used: (promotions: Int, reprotections: Int))
        -> Bool
    {
        guard let need, need != own else { return true }
        switch need {
        case .promotion: return used.promotions < promotions
        case .reprotection: return used.reprotections < reprotections && used.promotions == 0
        }
    }
}

/// The hosts as placement sees them, for many pairs in one go: the pairs on each host are counted
/// once, and a placement that was just decided counts for the next one, so that the pairs of a dead
/// host do not all end up on the same one.
package struct PlacementLedger: Sendable, Hashable {
    package private(set) var hosts: [HostName: HostView]

    /// - Parameter hosts: with `pairs` as yet uncounted.
    package init(hosts: [HostName: HostView], records: some Sequence<PairRecord>) {
        self.hosts = hosts
        for record in records { count(record, +1) }
    }

    /// A pair's record has changed.
    package mutating func update(old: PairRecord?, new: PairRecord?) {
        if let old { count(old, -1) }
        if let new { count(new, +1) }
    }

    /// A host looks different now; its count stays.
    package mutating func update(_ host: HostName, _ view: HostView) {
        var view = view
        view.pairs = hosts[host]?.pairs ?? 0
        hosts[host] = view
    }

    /// These actions have been decided: what they place somewhere is there from now on.
    package mutating func note(_ actions: [PairAction]) {
        for case .placeSecondary(let host) in actions { hosts[host]?.pairs += 1 }
    }

    private mutating func count(_ record: PairRecord, _ change: Int) {
        hosts[record.primary]?.pairs += change
        if let secondary = record.secondary, secondary != record.primary {
            hosts[secondary]?.pairs += change
        }
    }
}
