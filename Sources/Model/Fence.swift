/// A way on which hosts hear each other; each fails by itself.
public enum HeartbeatWay: String, Sendable, Codable, CaseIterable, Comparable {
    /// A counter in the pool, which needs no network.
    case pool
    /// UDP between the hosts.
    case udp
    /// The renewals of the host's lease in the cluster store.
    case store

    public static func < (left: HeartbeatWay, right: HeartbeatWay) -> Bool {
        left.rawValue < right.rawValue
    }
}

/// How it became certain that an old primary can change nothing any more.
public enum FenceMethod: String, Sendable, Codable, CaseIterable {
    /// Its own host has seen its QEMU end.
    case ownHost = "own-host"
    /// The kernel that both hosts share says that nobody holds the primary lock.
    case primaryLock = "primary-lock"
    /// libvirt there was asked to end the domain, and it was seen to be gone.
    case libvirt
    /// A fence agent has switched the host off, and then it was seen to be off.
    case agent
    /// Its self-fence and its watchdog have had their time.
    case selfFence = "self-fence"
    /// A person says so (`ftvm hosts fence HOST --confirm-dead`).
    case manual
}

/// The fence of one incarnation of a host, in the cluster store. Its existence alone takes that
/// incarnation out of the cluster: its lease is no longer renewed, and it stops its guests when it
/// sees it. Every change of it is a compare-and-swap.
public struct FenceRecord: Hashable, Sendable, Codable {
    /// The host that is to be fenced.
    public var host: HostName
    /// The incarnation that is meant; a proof says nothing about a later one.
    public var incarnation: UInt64
    /// The host that carries out the fence.
    public var by: HostName
    /// Set once it is proven.
    public var method: FenceMethod?
    /// Which device or person, for people.
    public var detail: String
    /// Why there is no proof yet, and what comes next; completes "waiting for a fence of h1 (...)".
    public var status: String
    /// Rounds through all levels that came to nothing, by host: another is to try then.
    public var failedRounds: [String: Int]
    /// Hosts that have read this record and no longer take note of that incarnation's heartbeat in
    /// the pool; complete at `FenceQuorum.notesNeeded`.
    public var notedBy: [HostName]
    /// libvirt has proven what it can, and that is not enough: a promotion may be under way there,
    /// whose QEMU its ftvmd may still start.
    public var withoutLibvirt: Bool

    public init(host: HostName, incarnation: UInt64, by: HostName) {
        self.host = host
        self.incarnation = incarnation
        self.by = by
        self.method = nil
        self.detail = ""
        self.status = "just begun"
        self.failedRounds = [:]
        self.notedBy = [by]
        self.withoutLibvirt = false
    }
}

/// A host's membership of the cluster, in the store: which start of its ftvmd counts, its lease, and its fence. One
/// key, so that a renewal, a fence and a new start exclude each other by compare-and-swap: a host that renews is not
/// fenced, one that is fenced does not renew, and a proof counts for the incarnation beside it.
public struct HostMembership: Hashable, Sendable, Codable {
    public var name: HostName
    /// The registered incarnation.
    public var incarnation: UInt64
    /// Raised with every renewal of the lease.
    public var lease: UInt64
    /// This incarnation ends its guests by itself, and its watchdog ends the host where it cannot.
    public var hasSelfFence: Bool
    /// nil: nobody fences it.
    public var fence: FenceRecord?

    public init(name: HostName, incarnation: UInt64, hasSelfFence: Bool) {
        self.name = name
        self.incarnation = incarnation
        self.lease = 1
        self.hasSelfFence = hasSelfFence
        self.fence = nil
    }
}
