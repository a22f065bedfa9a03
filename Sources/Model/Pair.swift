/// The states of a pair that a user sees.
public enum PairState: String, Sendable, Codable, CaseIterable {
    /// Enabling is under way; the guest is not protected yet.
    case starting
    /// Primary commits, secondary waits ready on another host.
    case protected
    /// Primary commits, no secondary is ready: the segment alone is enough to go on from.
    case needSecondary = "need-secondary"
    /// The primary is lost; a promotion is due or under way.
    case failingOver = "failing-over"
    /// Wanted protected, but not so now (guest shut off, or enabling failed): see the reason.
    case unprotected
    /// Being given back to libvirt; the record goes away when that is done.
    case disabled
}

/// What a QEMU on some host is to a pair.
public enum Role: String, Sendable, Codable {
    case primary, secondary
}

/// What the user wants of a pair.
public enum DesiredState: String, Sendable, Codable {
    case protected, disabled
}

/// Where a pair's segment is.
public struct SegmentReference: Hashable, Sendable, Codable {
    public var pool: PoolName
    /// Name of the segment within its pool.
    public var name: String
    public init(pool: PoolName, name: String) {
        self.pool = pool
        self.name = name
    }
}

/// What a user may choose for a pair; defaults come from the daemon's configuration.
public struct PairOptions: Hashable, Sendable, Codable {
    /// The oldest an epoch gets before it is committed, in milliseconds (1...10,000).
    public var epochMaximumMilliseconds: Int
    /// The pool for the segment; nil: the first configured pool.
    public var pool: PoolName?
    /// NUMA nodes for the segment; empty: wherever the kernel puts it.
    public var numaNodes: [Int]
    /// Capacity of the undo log in bytes; nil: a quarter of the guest's RAM, at least 64 MiB.
    public var undoLogBytes: UInt64?
    /// The wished-for host of the secondary; nil: placement decides.
    public var secondaryHost: HostName?
    /// Room for written data in the disk log in bytes; nil: 256 MiB.
    public var diskLogBytes: UInt64?
    /// Disks (`vda`) whose flushes do not wait for stable storage: `durability = pool`. nil: none.
    public var poolDurableDisks: [String]?

    public static let defaultEpochMaximumMilliseconds = 50

    public init(
        epochMaximumMilliseconds: Int = PairOptions.defaultEpochMaximumMilliseconds,
        pool: PoolName? = nil, numaNodes: [Int] = [], undoLogBytes: UInt64? = nil,
        secondaryHost: HostName? = nil, diskLogBytes: UInt64? = nil,
        poolDurableDisks: [String]? = nil
    ) {
        self.diskLogBytes = diskLogBytes
        self.poolDurableDisks = poolDurableDisks
        self.epochMaximumMilliseconds = epochMaximumMilliseconds
        self.pool = pool
        self.numaNodes = numaNodes
        self.undoLogBytes = undoLogBytes
        self.secondaryHost = secondaryHost
    }
}

/// A pair's record in the cluster store: what is wanted and what was last seen. Every change is a
/// compare-and-swap on the whole record, so two hosts never both believe they changed it.
public struct PairRecord: Hashable, Sendable, Codable {
    public var name: PairName
    /// libvirt's UUID of the domain, lower case with dashes.
    public var uuid: String
    public var desired: DesiredState
    /// With `desired` disabled: when the guest cannot go on, its last state need not be kept
    /// (`ftvm disable --discard-state`). nil: it must.
    public var discardsState: Bool?
    public var state: PairState
    /// Why the pair is in this state, for a user to read; empty when there is nothing to say.
    public var reason: String
    public var generation: Generation
    /// The host whose QEMU is (or, while failing over, was) the primary.
    public var primary: HostName
    /// The host that has, or is making, the secondary.
    public var secondary: HostName?
    /// The waiting QEMU on `secondary` is ready to be promoted.
    public var secondaryReady: Bool
    /// The host that has claimed the promotion that is under way.
    public var promoting: HostName?
    /// The primary's own host says that its QEMU is gone without the guest having shut down.
    public var primaryLost: Bool
    /// How it became certain that the primary of the previous generation is gone; nil: it is not.
    public var primaryGone: FenceMethod?
    /// A user asked for this secondary to be promoted by hand (`ftvm promote`).
    public var promotionRequested: Bool
    /// The planned move that is under way; nil: none.
    public var switchover: Switchover?
    /// What became of the last planned move; nil: there was none.
    public var lastSwitchover: SwitchoverOutcome?
    public var segment: SegmentReference?
    public var options: PairOptions
    /// The domain's own XML (inactive form), as the user wrote it: what `disable` gives back.
    public var domainXML: String
    /// The running domain's XML (addresses and aliases assigned), from which a secondary is made.
    public var liveXML: String?
    /// Which of QEMU's RAM blocks are in the segment; nil: the main memory and nothing else.
    public var ramLayout: RAMLayout?
    /// The running guest's devices as the primary's host saw them first; nil: not yet.
    public var devices: SeenDevices?
    /// Whether libvirt kept the domain persistently before it was enabled.
    public var persistent: Bool
    /// libvirt starts the domain with its host; goes with the definition. nil: not looked at yet.
    public var autostart: Bool?
    /// Guest RAM in bytes.
    public var memoryBytes: UInt64
    /// What long work is doing now, for `ftvm enable` to show; nil when nothing is under way.
    public var progress: PairProgress?
    /// Why the last enabling, promotion or re-protection failed; nil after a success.
    public var lastError: FtvmError?

    public init(
        name: PairName, uuid: String, primary: HostName, options: PairOptions,
        domainXML: String, persistent: Bool, memoryBytes: UInt64
    ) {
        self.name = name
        self.uuid = uuid
        self.desired = .protected
        self.discardsState = nil
        self.state = .starting
        self.reason = ""
        self.generation = Generation(1)
        self.primary = primary
        self.secondary = nil
        self.secondaryReady = false
        self.promoting = nil
        self.primaryLost = false
        self.primaryGone = nil
        self.promotionRequested = false
        self.switchover = nil
        self.lastSwitchover = nil
        self.segment = nil
        self.options = options
        self.domainXML = domainXML
        self.liveXML = nil
        self.ramLayout = nil
        self.devices = nil
        self.persistent = persistent
        self.autostart = nil
        self.memoryBytes = memoryBytes
        self.progress = nil
        self.lastError = nil
    }
}

/// The devices of a running guest, under one generation. libvirt lets anybody change them and tells nobody.
public struct SeenDevices: Hashable, Sendable, Codable {
    public var generation: Generation
    /// A line for each: what it is, and a checksum of all that the XML says of it.
    public var lines: [String]
    public init(generation: Generation, lines: [String]) {
        self.generation = generation
        self.lines = lines
    }
}

/// One step of long work.
public struct PairProgress: Hashable, Sendable, Codable {
    public var step: String
    /// 0...100 where the step can tell.
    public var percent: Int?
    public init(step: String, percent: Int? = nil) {
        self.step = step
        self.percent = percent
    }
}
