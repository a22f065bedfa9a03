import Model

/// The end of a pair whose guest cannot go on, because its user says so: every promotion fails, or the segment is lost.
extension PairDecision {
    /// In the place of a claim, by whoever would claim: the guest's last memory goes, what its disks were told before that is
    /// brought into the images, and the domain is left defined here.
    static func giveUp(_ situation: PairSituation, _ record: PairRecord) -> [PairAction] {
        guard let next = record.nextGeneration else {
            return note("its generations are used up", record)
        }
        let evidence = situation.evidence(record)
        // The lock went with the segment. Whoever has the memory still is to be proven gone in another way: a guest that
        // runs would write to the same images as the next.
        let isGone =
            evidence.lock == .free
            || (situation.segmentGone
                && record.possibleHolders(besides: situation.me).allSatisfy {
                    situation.fencing.proves($0, record)
                })
        if isGone { return [.giveUp(next)] }
        if evidence.lock == .heldHere {
            return [.cleanUpStale(reason: "\(record.primary) has lost its primary role")]
        }
        return waitForFence(situation, record, evidence)
    }

    /// What becomes of a claim of this host. nil: the guest runs already, which is better than what was asked for.
    static func dropClaim(_ local: LocalObservation) -> [PairAction]? {
        switch local.qemu {
        case .none: [.releaseClaim(PairReason.givenUp)]
        case .waiting: [.cleanUpStale(reason: PairReason.givenUp.message)]
        case .running, .paused, .unknown: nil
        }
    }
}

extension PairRecord {
    /// Its user wishes it gone, be its guest's state lost with it.
    var isToBeGivenUp: Bool {
        state == .failingOver && desired == .disabled && discardsState == true
    }
}
