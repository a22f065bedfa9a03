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
