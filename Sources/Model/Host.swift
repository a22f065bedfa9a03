/// How a host looks to the others.
public enum HostState: String, Sendable, Codable {
    case online
    /// Some heartbeats are missing; nothing is done yet.
    case suspect
    case dead
}

/// A libvirt domain as its host reports it.
public struct DomainSummary: Hashable, Sendable, Codable {
    public var name: String
    public var uuid: String
    /// libvirt's word: running, paused, shut off, ...
    public var state: String
    public init(name: String, uuid: String, state: String) {
        self.name = name
        self.uuid = uuid
        self.state = state
    }
}

/// What a host says of itself in the cluster store; renewed when it changes and every few seconds.
public struct HostRecord: Hashable, Sendable, Codable {
    public var name: HostName
    /// Raised each time `ftvmd` starts on the host.
    public var incarnation: UInt64
    /// The host's slot in each pool's heartbeat file.
    public var heartbeatSlot: Int
    /// `ftvmd`'s version.
    public var version: String
    /// libvirt's and QEMU's versions, as text.
    public var libvirtVersion: String
    public var qemuVersion: String
    /// Memory that the kernel calls available, in bytes.
    public var memoryAvailableBytes: UInt64
    /// Names of the pools that the host can map.
    public var pools: [PoolName]
    public var domains: [DomainSummary]

    public init(
        name: HostName, incarnation: UInt64, heartbeatSlot: Int, version: String,
        libvirtVersion: String, qemuVersion: String, memoryAvailableBytes: UInt64,
        pools: [PoolName], domains: [DomainSummary]
    ) {
        self.name = name
        self.incarnation = incarnation
        self.heartbeatSlot = heartbeatSlot
        self.version = version
        self.libvirtVersion = libvirtVersion
        self.qemuVersion = qemuVersion
        self.memoryAvailableBytes = memoryAvailableBytes
        self.pools = pools
        self.domains = domains
    }
}

/// A host that a user has taken out of service (`ftvm host drain`): placement gives it nothing, and
/// what is on it moves away. Stands in the cluster store until `ftvm host undrain`.
public struct HostMaintenance: Hashable, Sendable, Codable {
    public var name: HostName
    /// Seconds since 1970, for people only.
    public var since: Double
    /// Why, in the user's words; may be empty.
    public var reason: String
    /// The most pairs that are moved at a time.
    public var parallel: Int

    public static let parallelDefault = 2
    public static let parallelRange = 1...32

    public init(name: HostName, since: Double, reason: String, parallel: Int) {
        self.name = name
        self.since = since
        self.reason = reason
        self.parallel = parallel
    }
}
