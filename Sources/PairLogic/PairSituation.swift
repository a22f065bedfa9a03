import Model

/// What runs under the pair's name on this host.
package enum QEMUState: String, Sendable, Hashable, CaseIterable {
    /// No QEMU.
    case none
    /// A waiting QEMU (`inmigrate`): it never ran the guest.
    case waiting
    case running
    /// Stopped, but not waiting: in the middle of a commit, of a promotion, or by a user.
    case paused
    /// libvirt does not answer: nothing may be concluded.
    case unknown
}

/// What this host's `ftvmd` does with that QEMU.
package enum DriverState: Sendable, Hashable {
    /// Nothing: not begun, or lost with a restart of `ftvmd`.
    case none
    /// It is being taken up.
    case enabling
    /// For a primary: epochs are committed. For a secondary: attached, checked and ready.
    case running
    /// The last try failed and the agent's back-off has not passed yet; after it: `none`.
    case failed(FtvmError)
}

/// Long work on the pair that is under way on this host; at most one at a time.
package enum PairWork: String, Sendable, Hashable, CaseIterable {
    case enabling, adopting, makingSecondary, promoting, handingOver, awaitingHandOver, disabling
    /// Giving a guest back whose devices were changed, to enable it anew.
    case adapting
    case cleaningUp
}

/// What this host's own agent sees of the pair, freshly looked at.
package struct LocalObservation: Sendable, Hashable {
    /// libvirt here knows a domain of the pair's name, running or not.
    package var domainPresent: Bool
    package var qemu: QEMUState
    /// The QEMU that was here ended because the guest shut down or a user ended it, and was not
    /// lost.
    package var guestEnded: Bool
    package var driver: DriverState
    package var work: PairWork?

    package init(
        domainPresent: Bool = false, qemu: QEMUState = .none, guestEnded: Bool = false,
        driver: DriverState = .none, work: PairWork? = nil
    ) {
        self.domainPresent = domainPresent
        self.qemu = qemu
        self.guestEnded = guestEnded
        self.driver = driver
        self.work = work
    }
}

/// What is known of the primary lock (the lock that the primary's QEMU holds on the segment).
package enum PrimaryLockState: String, Sendable, Hashable, CaseIterable {
    /// Nobody holds it: whoever was the primary is gone. Also when there is no segment yet.
    case free
    /// This host's QEMU of the pair holds it.
    case heldHere
    /// Some other process holds it.
    case held
    /// It cannot be asked for; never taken for free.
    case unknown
}

/// Everything that a decision about one pair on one host rests on. Values only, and no clock: the
/// same situation always leads to the same actions.
package struct PairSituation: Sendable, Hashable {
    package var pair: PairName
    /// The pair's record; nil: there is none.
    package var record: PairRecord?
    /// The host that decides.
    package var me: HostName
    /// All hosts known to the cluster, this one included (which takes itself for online).
    package var hosts: [HostName: HostView]
    package var local: LocalObservation
    package var primaryLock: PrimaryLockState
    /// This host sees the segment's directory.
    package var segmentPresent: Bool
    /// This host sees the pool, and the segment that the record names is not in it.
    package var segmentGone: Bool
    /// What the segment's compare-and-swap word says; nil when it cannot be read.
    package var segmentPosition: SegmentPosition?
    /// What is known, beside the lock, of who is proven gone.
    package var fencing: FencingView
    /// The claim that the record names this host for was made by an earlier start of its ftvmd: a
    /// proof of that one's end may be on its way to somebody else's claim.
    package var claimIsFromBefore: Bool

    package init(
        pair: PairName, record: PairRecord?, me: HostName, hosts: [HostName: HostView],
        local: LocalObservation, primaryLock: PrimaryLockState, segmentPresent: Bool,
        segmentGone: Bool = false, segmentPosition: SegmentPosition?,
        fencing: FencingView = FencingView(),
        claimIsFromBefore: Bool = false
    ) {
        self.pair = pair
        self.record = record
        self.me = me
        self.hosts = hosts
        self.local = local
        self.primaryLock = primaryLock
        self.segmentPresent = segmentPresent
        self.segmentGone = segmentGone
        self.segmentPosition = segmentPosition
        self.fencing = fencing
        self.claimIsFromBefore = claimIsFromBefore
    }
}
