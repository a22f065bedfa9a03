/// What kind of file system a pool stands on.
public enum PoolKind: String, Sendable, Codable, CaseIterable {
    /// A directory on tmpfs: base pages.
    case tmpfs
    /// A directory on hugetlbfs: huge pages of the mount's size.
    case hugetlbfs
    /// Anonymous memory files held by a keeper process on every host of one machine.
    case memfd
}

/// A pool as a host's configuration names it.
public struct PoolConfiguration: Hashable, Sendable, Codable {
    public var name: PoolName
    public var kind: PoolKind
    /// The pool's directory, the same pool on every host (the path may differ).
    public var path: String
    public init(name: PoolName, kind: PoolKind, path: String) {
        self.name = name
        self.kind = kind
        self.path = path
    }
}

/// `ftvmd`'s configuration, read from `/etc/ftvm/ftvmd.toml`; see `Examples/ftvmd.toml`.
public struct DaemonConfiguration: Hashable, Sendable, Codable {
    /// This host's name in the cluster.
    public var host: HostName
    /// libvirt's URI, with its socket where there is more than one daemon.
    public var libvirtURI: String
    /// The Unix socket that `ftvmd` serves its API on.
    public var socketPath: String
    /// Where QEMU's own QMP sockets and scratch files of this host are made; on tmpfs.
    public var runtimeDirectory: String
    /// The embedded store's file, on storage that every host of the cluster reaches.
    public var storePath: String
    public var pools: [PoolConfiguration]
    /// Period of the heartbeat counter, in milliseconds.
    public var heartbeatPeriodMilliseconds: Int
    /// Missed heartbeats after which a host is dead.
    public var heartbeatMissesUntilDead: Int
    /// Defaults of a pair's options.
    public var epochMaximumMilliseconds: Int
    /// A primary whose QEMU answers nothing for so long hangs, and is ended if a secondary is ready
    /// to go on; in milliseconds.
    public var hangTimeoutMilliseconds: Int
    /// Where reports of drills are kept; on storage that outlives a reboot.
    public var stateDirectory: String
    /// The command that kills a whole host in a drill, `{host}` standing for its name; empty: none.
    public var drillKillHostCommand: [String]
    /// Run that command where `ftvm` runs, instead of on another host.
    public var drillKillHostFromClient: Bool
    /// The injector's path; nil: beside `ftvmd`'s own executable.
    public var injectorPath: String?
    /// trace, debug, info, notice, warning, error.
    public var logLevel: String

    public init(host: HostName) {
        self.host = host
        self.libvirtURI = "qemu:///system"
        self.socketPath = "/run/ftvm/ftvmd.sock"
        self.runtimeDirectory = "/run/ftvm"
        self.storePath = "/var/lib/ftvm/store.sqlite"
        self.pools = []
        self.heartbeatPeriodMilliseconds = 100
        self.heartbeatMissesUntilDead = 5
        self.epochMaximumMilliseconds = PairOptions.defaultEpochMaximumMilliseconds
        self.hangTimeoutMilliseconds = 2_000
        self.stateDirectory = "/var/lib/ftvm"
        self.drillKillHostCommand = []
        self.drillKillHostFromClient = false
        self.injectorPath = nil
        self.logLevel = "info"
    }
}
