import Model

/// What a host is to do about a pair. Actions of the first group are work on this host, of the
/// second changes of the pair's record (`change(to:by:)` says which). Every action may be carried
/// out twice.
package enum PairAction: Sendable, Hashable {
    // MARK: Work on this host

    /// Make the running domain the primary: reserve the segment (its reference goes into the record
    /// first), move the memory, put the lock into QEMU, start the epochs. Ends with driver
    /// `running`.
    case startEnabling
    /// Stop the enabling that is under way; the guest stays as it was.
    case cancelEnabling
    /// Take up the primary that runs here and holds the lock: fetch the tracker again, go on with
    /// epochs. A QEMU that is paused is continued once its pages are tracked.
    case adoptPrimary
    /// Start a waiting QEMU on the segment, read-only.
    case createSecondary
    /// Take up the waiting QEMU that is here; one that was not made for the present segment is made anew.
    case adoptSecondary
    /// Promote the waiting QEMU: take the lock into it (no lock: `conflict`), raise the segment's
    /// generation to this one (higher already: `conflict`), roll back, load, track, continue,
    /// commit.
    case promote(Generation)
    /// Write this generation into the segment, so that a primary of an older one fails at its next
    /// commit and ends itself.
    case raiseSegmentGeneration(Generation)
    /// Switchover, on the primary's host: last commit without going on, then end this host's QEMU and
    /// prove it; wait a moment for the target's claim. If the last commit fails, the guest goes on.
    case handOver
    /// Switchover, on the target's host: have everything ready, say so (`armSwitchover`), then wait for
    /// the primary lock. When it is free and the guest had made its last commit: `claimPromotion`
    /// and `promote` at once. Ends without a claim when `PairSituation.awaitsHandOver` is false.
    case awaitHandOver
    /// Give the running guest private memory again, release the lock, remove the tracker. The guest
    /// never stops.
    case startDisabling
    /// End this host's QEMU of the pair, whatever it does, and forget its driver.
    case cleanUpStale(reason: String)
    /// Remove the segment that no record names. The view that led here may be old: read the record
    /// again first.
    case removeSegment

    // MARK: Changes of the record

    /// The guest is to be enabled anew, under a generation of its own: it runs again after it was
    /// shut off, or an earlier try came to nothing.
    case beginEnabling
    /// Enabling has succeeded: the segment is enough to go on from.
    case reportEnabled
    case reportEnablingFailed(FtvmError)
    /// There is no guest to protect.
    case reportUnprotected(reason: String)
    /// The primary's host has died before there was anything to go on from.
    case reportLostUnprotected
    case guestShutDown
    /// Somebody has changed the running guest's devices: a waiting QEMU does not have them, and packets of a new NIC are
    /// not held back. From here on nobody promotes; its host gives the guest back and enables it anew.
    case reportDevicesChanged(what: String)
    case placeSecondary(on: HostName)
    /// The waiting QEMU here is ready, as it was made under the record of this generation: of a pair that has been enabled
    /// anew meanwhile it is not the secondary.
    case reportSecondaryReady(Generation)
    case reportSecondaryLost(HostName, reason: String, error: FtvmError?)
    case reportPrimaryLost(reason: String)
    /// The primary goes on: its host was taken for dead, and is not.
    case reportPrimaryRunning
    /// Claim the promotion, under this generation.
    /// The primary lock, or the word of the old primary's host, is the proof.
    case claimPromotion(Generation)
    /// The same; fences of the hosts that may have run a primary are the proof.
    case claimFenced(Generation, FenceMethod)
    /// A user gives the old primary up: nothing is proven yet, and the promotion waits for it.
    case claimByHand(Generation)
    /// The user gives the guest's last state up: nobody promotes any more, and this host removes what is left, under this
    /// generation.
    case giveUp(Generation)
    /// This host's QEMU of an older generation is gone, for whoever has claimed without a proof.
    case confirmPrimaryGone
    /// This host could not carry out the promotion that it claimed; its QEMU of the pair is gone.
    case releaseClaim(FtvmError)
    case reportPromoted
    /// A promotion is due, but the old primary is not proven gone.
    case waitForFence(of: [HostName], reason: String)
    /// A promotion is due, and nobody can begin it.
    case reportStuck(reason: String)
    /// Say why things are as they are.
    case noteReason(String)
    case noteError(FtvmError)
    /// This host, the target of a switchover, has everything ready and waits for the lock.
    case armSwitchover
    /// It does not wait any more.
    case disarmSwitchover
    /// `ftvm promote` while the primary lives: the switchover to the secondary.
    case beginSwitchover(to: HostName)
    /// The switchover goes to another host than the secondary's: that one's is made anew there.
    case replaceSecondary(HostName, by: HostName)
    case endSwitchover(SwitchoverOutcome.Result, reason: String)
    /// A promotion by hand is not possible.
    case declinePromotion(reason: String)
    /// From here on nobody promotes: the segment will no longer be what to go on from.
    case beginDisable
    /// Remove the segment, then the record (by compare-and-swap).
    case finishDisable
}

extension PairAction {
    /// The generation under which whoever does this has the pair from then on; nil: it claims nothing.
    package var claimedGeneration: Generation? {
        switch self {
        case .claimPromotion(let generation), .claimFenced(let generation, _),
            .claimByHand(let generation), .giveUp(let generation):
            generation
        default: nil
        }
    }
}
