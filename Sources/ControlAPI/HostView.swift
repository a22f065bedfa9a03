import Model

/// Which `ftvmd` answers.
public struct VersionView: Hashable, Sendable, Codable {
    /// `ftvmd`'s version.
    public var version: String
    /// The host that it serves.
    public var host: HostName

    public init(version: String, host: HostName) {
        self.version = version
        self.host = host
    }
}

/// A host as the answering daemon sees it.
public struct HostView: Hashable, Sendable, Codable {
    public struct Versions: Hashable, Sendable, Codable {
        public var ftvmd: String
        public var libvirt: String
        public var qemu: String
        public init(ftvmd: String, libvirt: String, qemu: String) {
            self.ftvmd = ftvmd
            self.libvirt = libvirt
            self.qemu = qemu
        }
    }

    /// How a host is heard on one way.
    public struct Way: Hashable, Sendable, Codable {
        public var way: HeartbeatWay
        /// How long ago it was heard.
        public var ageMilliseconds: Double
        /// Mean deviation of its beats from their rhythm.
        public var jitterMilliseconds: Double
        /// No beat is missing.
        public var heard: Bool

        public init(
            way: HeartbeatWay, ageMilliseconds: Double, jitterMilliseconds: Double, heard: Bool
        ) {
            self.way = way
            self.ageMilliseconds = ageMilliseconds
            self.jitterMilliseconds = jitterMilliseconds
            self.heard = heard
        }
    }

    public var name: HostName
    public var state: HostState
    /// How it is heard, on each way that is configured; empty for the answering host itself.
    public var ways: [Way]?
    /// Its membership: lease and fence; nil: it never was one.
    public var membership: HostMembership?
    /// Why and since when it is out of service (`ftvm host drain`); nil: it is in service.
    public var maintenance: HostMaintenance?
    /// How long ago its heartbeat was seen to move; nil if never, and for the answering host itself.
    public var heartbeatAgeMilliseconds: Double?
    /// Raised each time `ftvmd` starts on the host.
    public var incarnation: UInt64
    public var versions: Versions
    /// Memory that the host's kernel calls available, in bytes, when it last reported.
    public var memoryAvailableBytes: UInt64
    /// Pools that the host can map.
    public var pools: [PoolName]
    /// Pairs whose primary is here.
    public var primaries: [PairName]
    /// Pairs whose secondary is, or is being made, here.
    public var secondaries: [PairName]
    /// libvirt domains of the host, waiting QEMUs included, when it last reported.
    public var domains: [DomainSummary]

    /// - Parameter pairs: all pairs of the cluster, from which those of this host are taken.
    public init(
        record: HostRecord, state: HostState, heartbeatAgeMilliseconds: Double?,
        pairs: [PairRecord], maintenance: HostMaintenance? = nil, ways: [Way]? = nil,
        membership: HostMembership? = nil
    ) {
        self.ways = ways
        self.membership = membership
        self.name = record.name
        self.maintenance = maintenance
        self.state = state
        self.heartbeatAgeMilliseconds = heartbeatAgeMilliseconds
        self.incarnation = record.incarnation
        self.versions = Versions(
            ftvmd: record.version, libvirt: record.libvirtVersion, qemu: record.qemuVersion)
        self.memoryAvailableBytes = record.memoryAvailableBytes
        self.pools = record.pools
        self.primaries = pairs.filter { $0.primary == record.name }.map(\.name).sorted()
        self.secondaries = pairs.filter { $0.secondary == record.name }.map(\.name).sorted()
        self.domains = record.domains
    }
}
