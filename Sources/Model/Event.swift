/// Something that happened in the cluster, for people and monitoring: append-only, bounded in number.
public struct ClusterEvent: Hashable, Sendable, Codable {
    public enum Kind: String, Sendable, Codable, CaseIterable {
        case enabled, disabled, protected
        case unprotected
        case hostSuspected = "host-suspected"
        case hostDead = "host-dead"
        case hostOnline = "host-online"
        case primaryLost = "primary-lost"
        case secondaryLost = "secondary-lost"
        case fenced
        case waitingForFence = "waiting-for-fence"
        case promotionStarted = "promotion-started"
        /// The promoted guest runs, with figures of how long each step took.
        case guestRunning = "guest-running"
        case promoted
        case secondaryStarted = "secondary-started"
        case adopted
        /// A planned move was asked for.
        case switchoverRequested = "switchover-requested"
        /// The guest made its last commit on the old host and its QEMU was ended, with figures.
        case handedOver = "handed-over"
        /// A planned move is done.
        case switchedOver = "switched-over"
        /// A host is being emptied, is empty, or is in service again.
        case maintenance
        /// A drill began or ended.
        case drill
        /// What the guest writes does not reach its disk images, or does so again.
        case disks
        case refused
        case failed
    }

    /// Assigned by the store, rising without gaps being promised.
    public var number: UInt64
    /// Seconds since 1970, for people only: no decision uses it.
    public var time: Double
    public var kind: Kind
    /// The host that reports it.
    public var host: HostName
    public var pair: PairName?
    /// One sentence for a person.
    public var message: String
    /// Why, as a value; nil for what needs no reason, and for events of older versions.
    public var reason: EventReason?
    /// Figures of the event, such as `rollback-pages` or `promotion-milliseconds`.
    public var figures: [String: Double]

    public init(
        number: UInt64 = 0, time: Double, kind: Kind, host: HostName, pair: PairName? = nil,
        message: String, reason: EventReason? = nil, figures: [String: Double] = [:]
    ) {
        self.number = number
        self.time = time
        self.kind = kind
        self.host = host
        self.pair = pair
        self.message = message
        self.reason = reason
        self.figures = figures
    }
}
