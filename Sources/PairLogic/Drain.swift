import Model

/// Emptying a host: a pure function of all pairs and hosts. The host's own agent asks it after every
/// change and carries out the steps; every other one can ask it how far things are.
package struct Drain: Sendable, Hashable {
    /// What is to be begun now.
    package enum Step: Sendable, Hashable {
        /// The primary is here: a switchover.
        case switchOver(PairName, to: HostName)
        /// The secondary is here: another one elsewhere.
        case replaceSecondary(PairName, by: HostName)
    }

    package let steps: [Step]
    /// What is still on the host, by name; empty: it is drained.
    package let remaining: [DrainRemainder]

    /// - Parameters:
    ///   - parallel: moves under way at a time, at most.
    ///   - deferred: pairs of which a move failed lately: not now.
    ///   - hosts: the hosts as they look to a pair.
    package init(
        of host: HostName, pairs: [PairRecord], parallel: Int, deferred: Set<PairName> = [],
        hosts: (PairName) -> [HostName: HostView]
    ) {
        var steps: [Step] = []
        var remaining: [DrainRemainder] = []
        let looks = pairs.sorted { $0.name < $1.name }.compactMap {
            $0.drainLook(at: host, hosts($0.name))
        }
        // What has just left the host, and is not ready elsewhere yet, counts as well.
        var underWay =
            pairs.count { $0.isReplacing(host) } + looks.count { $0.0.progress == .moving }
        for (look, step) in looks {
            var remainder = look
            if let step {
                if deferred.contains(remainder.pair) {
                    remainder.reason += "; tried again in a moment"
                } else if underWay < parallel {
                    underWay += 1
                    steps.append(step)
                }
            }
            remaining.append(remainder)
        }
        self.steps = steps
        self.remaining = remaining
    }
}

extension PairRecord {
    fileprivate func isReplacing(_ host: HostName) -> Bool {
        guard let secondary, !secondaryReady, secondary != host else { return false }
        return reason == PairReason.replacing(host, by: secondary)
    }

    /// nil when nothing of the pair is on the host.
    fileprivate func drainLook(
        at host: HostName, _ hosts: [HostName: HostView]
    ) -> (DrainRemainder, Drain.Step?)? {
        let role: Role
        if primary == host || promoting == host {
            role = .primary
        } else if secondary == host {
            role = .secondary
        } else {
            return nil
        }
        func remainder(_ progress: DrainRemainder.Progress, _ reason: String) -> DrainRemainder {
            DrainRemainder(pair: name, role: role, progress: progress, reason: reason)
        }
        if isNotYetProtected {
            if state == .starting { return (remainder(.waiting, "it is being enabled"), nil) }
            let why = reason.isEmpty ? "" : " (\(reason))"
            let text = "it is not protected\(why): disable it, or start its guest elsewhere"
            return (remainder(.stuck, text), nil)
        }
        if desired == .disabled { return (remainder(.waiting, "it is being disabled"), nil) }
        if let switchover {
            // Away from here, or a user's own move to here, which comes first.
            let progress: DrainRemainder.Progress = switchover.target == host ? .waiting : .moving
            return (remainder(progress, "it is being moved to \(switchover.target)"), nil)
        }
        if state == .failingOver || promoting != nil || primaryLost {
            return (remainder(.waiting, reason.isEmpty ? "it is failing over" : reason), nil)
        }
        let placement = Placement(
            PlacementNeed(
                pool: segment?.pool, wish: role == .primary ? secondary : nil,
                excluded: [primary: "the primary is there"]),
            hosts: hosts.filter { $0.key != host })
        guard let target = placement.candidates.first else {
            return (remainder(.stuck, "no other host: \(placement.rejections)"), nil)
        }
        if role == .secondary {
            let step = Drain.Step.replaceSecondary(name, by: target)
            return (remainder(.waiting, "the next secondary is made on \(target)"), step)
        }
        if secondary == nil || (secondary == target && !secondaryReady) {
            // It is on its way already; the primary's host places it.
            return (remainder(.waiting, "its secondary is not ready yet"), nil)
        }
        return (remainder(.waiting, "it is to move to \(target)"), .switchOver(name, to: target))
    }
}
