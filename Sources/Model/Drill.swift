/// What a drill does to a pair.
public enum DrillKind: String, Sendable, Codable, CaseIterable {
    /// The primary's QEMU gets SIGKILL.
    case killQEMU = "kill-qemu"
    /// The primary's whole host is killed, by the command that the configuration names.
    case killHost = "kill-host"
    /// The primary's QEMU gets SIGSTOP: it hangs.
    case freezeQEMU = "freeze-qemu"
    /// A planned move to the secondary.
    case switchover
    /// The waiting QEMU gets SIGKILL.
    case killSecondary = "kill-secondary"

    /// The guest goes on on another host afterwards.
    public var movesGuest: Bool { self != .killSecondary }
}

/// A drill from outside: what was done, what was measured, and the verdict. Durations are in milliseconds
/// and nil where they could not be measured. Durations between hosts are differences of their clocks' times.
public struct DrillReport: Hashable, Sendable, Codable {
    public enum Verdict: String, Sendable, Codable, CaseIterable {
        /// It began, and whoever ran it has not come back with its end.
        case unfinished
        case passed
        case failed
    }

    /// What the client's probes saw.
    public struct Probe: Hashable, Sendable, Codable {
        /// `10.77.0.10` (echo requests) or `10.77.0.10:7777` (TCP connections).
        public var target: String
        public var sent: Int
        public var answered: Int
        /// The longest time without an answer while nothing was wrong yet.
        public var longestGapBeforeMilliseconds: Double
        /// The longest time without an answer from the drill on.
        public var longestGapMilliseconds: Double

        public init(
            target: String, sent: Int, answered: Int, longestGapBeforeMilliseconds: Double,
            longestGapMilliseconds: Double
        ) {
            self.target = target
            self.sent = sent
            self.answered = answered
            self.longestGapBeforeMilliseconds = longestGapBeforeMilliseconds
            self.longestGapMilliseconds = longestGapMilliseconds
        }
    }

    /// Tells this drill from every other; also its name in the store.
    public var id: String
    public var pair: PairName
    public var kind: DrillKind
    /// Seconds since 1970.
    public var startedAt: Double
    /// Primary and secondary before.
    public var from: HostName
    public var secondary: HostName?
    /// The primary afterwards.
    public var to: HostName?
    public var generation: Generation
    public var verdict: Verdict
    /// Every reason against it; empty when passed.
    public var problems: [String]
    /// From the fault to the first word of anybody in the cluster about it.
    public var detectionMilliseconds: Double?
    /// From there to the proof that the old primary is gone, and the claim.
    public var fenceMilliseconds: Double?
    /// From the claim to the guest running.
    public var promotionMilliseconds: Double?
    /// From the fault (a switchover: from the guest's stop) to the guest running, as the daemons saw it.
    public var daemonBlackoutMilliseconds: Double?
    /// The blackout: the probe's where there is one, otherwise the daemons'.
    public var blackoutMilliseconds: Double?
    /// `probe` or `daemons`.
    public var blackoutSource: String
    /// From the fault to being protected again.
    public var reprotectionMilliseconds: Double?
    /// Whether it is protected again, and commits.
    public var endsProtected: Bool
    /// The last epoch known to be committed before the fault, and the one that the guest went on from.
    public var epochBefore: Epoch?
    public var epochResumed: Epoch?
    /// Committed epochs that were lost: must be 0.
    public var committedEpochsLost: UInt64?
    /// Packets that clients were given and the guest no longer knows of: must be 0 (more: at least so many). nil:
    /// the guest has no network gate, or did not move.
    public var releasedPacketsLost: UInt64?
    public var probe: Probe?
    /// Further figures of the promotion, as in `ftvm events`.
    public var figures: [String: Double]

    public init(
        id: String, pair: PairName, kind: DrillKind, startedAt: Double, from: HostName,
        secondary: HostName?, generation: Generation, epochBefore: Epoch?
    ) {
        self.id = id
        self.pair = pair
        self.kind = kind
        self.startedAt = startedAt
        self.from = from
        self.secondary = secondary
        self.generation = generation
        self.epochBefore = epochBefore
        self.verdict = .unfinished
        self.problems = []
        self.blackoutSource = "daemons"
        self.endsProtected = false
        self.figures = [:]
    }
}
