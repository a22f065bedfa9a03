import Model

/// Everything that a host's configuration says: `ftvmd.toml` and the files in `conf.d` beside it.
/// `Examples/ftvmd.toml` documents every key.
package struct ClusterConfiguration: Hashable, Sendable {
    /// What concerns this host alone.
    package var daemon: DaemonConfiguration
    /// The cluster's name: clusters that share a network or an etcd must have different ones.
    package var cluster = "ftvm"
    package var store = StoreConfiguration()
    package var heartbeat = HeartbeatConfiguration()
    /// The hosts of the cluster, this one included; empty on one machine, where they find each
    /// other through the store.
    package var hosts: [HostConfiguration] = []
    /// In the order of their levels, then of the files.
    package var fences: [FenceConfiguration] = []
    package var selfFence = SelfFenceConfiguration()
    package var api = APIConfiguration()
    package var limits = LimitsConfiguration()

    package init(daemon: DaemonConfiguration) {
        self.daemon = daemon
    }

    /// The hosts that share this host's kernel, so that the kernel's word about a lock is a proof; nil: all, as
    /// with the embedded store, which serves one machine only.
    package var kernelPeers: Set<HostName>? {
        let machine = hosts.first { $0.name == daemon.host }?.machine
        if store.kind == .sqlite, !hosts.contains(where: { $0.machine != nil }) { return nil }
        return Set(hosts.filter { machine != nil && $0.machine == machine }.map(\.name))
            .union([daemon.host])
    }

    /// The devices that fence `host`, by level, the lowest first; those of one level must all
    /// succeed.
    package func fenceLevels(of host: HostName) -> [[FenceConfiguration]] {
        let devices = fences.filter { $0.host == host }
        return Set(devices.map(\.level)).sorted().map { level in
            devices.filter { $0.level == level }
        }
    }
}

/// Which store, and where it is.
package struct StoreConfiguration: Hashable, Sendable {
    package enum Kind: String, Sendable, CaseIterable {
        /// The file at `DaemonConfiguration.storePath`, for the hosts of one machine.
        case sqlite
        /// For several machines.
        case etcd
    }
    package var kind = Kind.sqlite
    package var endpoints: [String] = []
    package var prefix = "/ftvm/"
    package var tls: TLSPaths?
    package var user: String?
    package var passwordFile: String?
    /// How long one etcd member may take to answer, in milliseconds.
    package var attemptMilliseconds = 1_500
    /// How long a call may take in all, in milliseconds.
    package var requestMilliseconds = 5_000
}

/// Paths of PEM files.
package struct TLSPaths: Hashable, Sendable {
    package var authority: String
    package var certificate: String
    package var key: String

    package init(authority: String, certificate: String, key: String) {
        self.authority = authority
        self.certificate = certificate
        self.key = key
    }
}

/// The period of the heartbeats and the misses until a host is dead are in `DaemonConfiguration`.
package struct HeartbeatConfiguration: Hashable, Sendable {
    package enum Profile: String, Sendable, CaseIterable {
        /// 100 ms, dead after 5.
        case standard = "default"
        /// 40 ms, dead after 4: for hosts whose processors are not overcommitted.
        case fast

        package var periodMilliseconds: Int { self == .standard ? 100 : 40 }
        package var missesUntilDead: Int { self == .standard ? 5 : 4 }
    }
    package var profile = Profile.standard
    package var udp: UDP?

    /// Heartbeats between hosts over the network.
    package struct UDP: Hashable, Sendable {
        /// Where this host listens.
        package var address: String
        package var port: UInt16
        package var keyFile: String

        package init(address: String, port: UInt16, keyFile: String) {
            self.address = address
            self.port = port
            self.keyFile = keyFile
        }
    }
}

package struct HostConfiguration: Hashable, Sendable {
    package var name: HostName
    /// For heartbeats: an IP address.
    package var address: String?
    /// libvirt's host UUID, so that a fence through libvirt knows that it speaks to the right one.
    package var libvirtUUID: String?
    /// The machine that the host is on: hosts of one machine share its kernel. nil: one of its own.
    package var machine: String?

    package init(
        name: HostName, address: String? = nil, libvirtUUID: String? = nil, machine: String? = nil
    ) {
        self.name = name
        self.address = address
        self.libvirtUUID = libvirtUUID
        self.machine = machine
    }
}

/// One device that can make certain that a host is off.
package struct FenceConfiguration: Hashable, Sendable {
    package enum Method: Hashable, Sendable {
        /// An agent's name or path, with the parameters that it is given. Secrets are among them.
        case agent(String, parameters: [String: String])
        /// The host's libvirt at this URI: ends its primaries only.
        case libvirt(uri: String)
    }
    package var host: HostName
    /// 1...9: the next level is tried when one has failed.
    package var level: Int
    package var method: Method
    /// For switching off, in milliseconds.
    package var offMilliseconds: Int
    /// For being told that it is off, in milliseconds.
    package var statusMilliseconds: Int
}

/// When a host ends its own guests, and from when on others count on that.
package struct SelfFenceConfiguration: Hashable, Sendable {
    package var enabled = false
    /// How often the lease in the store is renewed, in milliseconds.
    package var renewalMilliseconds = 1_000
    /// How long a host goes on that can neither reach the store nor see its heartbeats taken note
    /// of.
    package var deadlineMilliseconds = 4_000
    /// From the decision to the guests' end.
    package var stopMilliseconds = 1_000
    /// The watchdog's device; nil: none, and then others do not count on the self-fence.
    package var watchdogPath: String?
    package var watchdogSeconds = 5
    /// How far two hosts' clocks may go apart, in parts per million.
    package var driftPartsPerMillion = 1_000
    /// What others wait for, in milliseconds; nil: the shortest time that is safe.
    package var waitMilliseconds: Int?

    /// The shortest wait after which a silent host has certainly ended its guests, in milliseconds:
    /// the deadline, then the slower of stopping and watchdog, twice the drift, two heartbeats.
    package func shortestWaitMilliseconds(heartbeatMilliseconds: Int) -> Int {
        let watchdog = watchdogPath == nil ? 0 : watchdogSeconds * 1_000
        let end = deadlineMilliseconds + max(stopMilliseconds, watchdog)
        return end + 2 * (end + 1) * driftPartsPerMillion / 1_000_000 + 1
            + 2 * heartbeatMilliseconds
    }
}

/// Where the API is served. Its Unix socket's path is in `DaemonConfiguration`.
package struct APIConfiguration: Hashable, Sendable {
    /// Who may use the socket besides root; nil: nobody.
    package var socketGroup: String?
    package var socketMode: UInt32 = 0o600
    /// nil: nothing listens on the network.
    package var network: Network?

    package struct Network: Hashable, Sendable {
        package var address: String
        package var port: UInt16
        /// `authority` is the one that signs the clients' certificates.
        package var tls: TLSPaths
    }
}

/// Bounds of what runs at a time.
package struct LimitsConfiguration: Hashable, Sendable {
    /// Failovers that this host carries out at a time.
    package var failovers = 4
    /// Enablings and re-protections that this host carries out at a time.
    package var enablings = 2
    /// Connections to the API at a time.
    package var connections = 64
}
