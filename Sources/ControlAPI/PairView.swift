import Model

/// A pair as the API shows it: the record in the cluster store plus what the daemon could see of the
/// segment. The answer is the same whichever host's daemon is asked, apart from `statistics`.
public struct PairView: Hashable, Sendable, Codable {
    /// The libvirt domain's name.
    public var name: PairName
    /// libvirt's UUID of the domain, lower case with dashes.
    public var uuid: String
    public var desired: DesiredState
    public var state: PairState
    /// Why the pair is in this state; empty when there is nothing to say.
    public var reason: String
    public var generation: Generation
    /// The epoch that was committed last; nil while nothing is committed or the segment is out of reach.
    public var epoch: Epoch?
    /// The host whose QEMU is (or, while failing over, was) the primary.
    public var primary: HostName
    /// The host that has, or is making, the secondary.
    public var secondary: HostName?
    /// The waiting QEMU on `secondary` can be promoted.
    public var secondaryReady: Bool
    /// The host that has claimed the promotion that is under way.
    public var promoting: HostName?
    /// A user asked for a promotion that has neither been done nor refused yet.
    public var promotionRequested: Bool
    /// The planned move that is under way.
    public var switchover: Switchover?
    /// What became of the last planned move.
    public var lastSwitchover: SwitchoverOutcome?
    public var segment: SegmentReference?
    /// libvirt is to start the domain with its host; nil: not looked at yet.
    public var autostart: Bool?
    /// Guest RAM in bytes.
    public var memoryBytes: UInt64
    /// Page size of the segment in bytes; nil while there is no segment.
    public var pageSizeBytes: UInt64?
    /// The oldest an epoch gets before it is committed, in milliseconds.
    public var epochMaximumMilliseconds: Int
    /// What long work is doing now; nil when nothing is under way.
    public var progress: PairProgress?
    /// Why the last enabling, promotion or re-protection failed; nil after a success.
    public var lastError: FtvmError?
    /// Nil when the primary's daemon could not tell.
    public var statistics: EpochStatistics?

    /// Parameters not in the record: what was read from the segment, and by the primary's daemon.
    public init(
        record: PairRecord, epoch: Epoch? = nil, pageSizeBytes: UInt64? = nil,
        statistics: EpochStatistics? = nil
    ) {
        self.name = record.name
        self.uuid = record.uuid
        self.desired = record.desired
        self.state = record.state
        self.reason = record.reason
        self.generation = record.generation
        self.epoch = epoch
        self.primary = record.primary
        self.secondary = record.secondary
        self.secondaryReady = record.secondaryReady
        self.promoting = record.promoting
        self.promotionRequested = record.promotionRequested
        self.switchover = record.switchover
        self.lastSwitchover = record.lastSwitchover
        self.segment = record.segment
        self.autostart = record.autostart
        self.memoryBytes = record.memoryBytes
        self.pageSizeBytes = pageSizeBytes
        self.epochMaximumMilliseconds = record.options.epochMaximumMilliseconds
        self.progress = record.progress
        self.lastError = record.lastError
        self.statistics = statistics
    }
}

/// How a pair's epochs went lately, measured on the primary's host.
///
/// Rate and medians are over the last few seconds; the counters count from the moment at which the
/// present `ftvmd` took the primary over (a promotion, an enabling, an adoption).
public struct EpochStatistics: Hashable, Sendable, Codable {
    public var commits: UInt64
    public var epochRatePerSecond: Double
    /// Time for which a commit stopped the guest, from `stop` sent to `cont` answered.
    public var pauseMedianMicroseconds: Double
    public var pauseP99Microseconds: Double
    /// Pages first touched in an epoch.
    public var dirtyPagesMedian: UInt64
    /// How long ago the last commit was published.
    public var lastCommitAgeMilliseconds: Double
    /// Pages logged in the epoch that is not yet committed.
    public var undoUsedEntries: UInt64
    public var undoCapacityEntries: UInt64
    /// First touches that came as a fault.
    public var faults: UInt64
    /// Commits that were made early because the undo log passed its high-water mark.
    public var overflows: UInt64
    /// Frames of the guest that wait for their commit; nil: the pair has no network gate.
    public var heldFrames: UInt64?
    public var releasedFrames: UInt64?
    /// How long the first frame of an epoch waited.
    public var holdMedianMicroseconds: Double?
    public var holdP99Microseconds: Double?
    /// The disks' redo log; nil: the pair has no disks to protect.
    public var disks: DiskStatistics?

    public init(
        commits: UInt64, epochRatePerSecond: Double, pauseMedianMicroseconds: Double,
        pauseP99Microseconds: Double, dirtyPagesMedian: UInt64, lastCommitAgeMilliseconds: Double,
        undoUsedEntries: UInt64, undoCapacityEntries: UInt64, faults: UInt64, overflows: UInt64
    ) {
        self.commits = commits
        self.epochRatePerSecond = epochRatePerSecond
        self.pauseMedianMicroseconds = pauseMedianMicroseconds
        self.pauseP99Microseconds = pauseP99Microseconds
        self.dirtyPagesMedian = dirtyPagesMedian
        self.lastCommitAgeMilliseconds = lastCommitAgeMilliseconds
        self.undoUsedEntries = undoUsedEntries
        self.undoCapacityEntries = undoCapacityEntries
        self.faults = faults
        self.overflows = overflows
    }
}
