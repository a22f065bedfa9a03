import ConfigurationFiles
import Heartbeat
import Model
import PairLogic
import Protection
import Synchronization

/// Heartbeats over the network, and the newest that has come from each host.
final class NetworkHeartbeat: Sendable {
    private struct Latest {
        var incarnation: UInt64
        var sequence: UInt64
    }
    private struct State {
        var latest: [HostName: Latest] = [:]
        /// When the daemon went round last, on the monotonic clock.
        var aliveAt: UInt64? = MonotonicClock.nowNanoseconds()
        var peers: [HeartbeatPeer] = []
    }
    private final class Shared: Sendable {
        let state = Mutex(State())
    }

    private let shared = Shared()
    private let heartbeat: UDPHeartbeat
    private let addresses: [HostName: UDPEndpoint]

    /// nil: the configuration wants none.
    init?(_ cluster: ClusterConfiguration, incarnation: UInt64) throws {
        guard let udp = cluster.heartbeat.udp else { return nil }
        var addresses: [HostName: UDPEndpoint] = [:]
        for host in cluster.hosts where host.name != cluster.daemon.host {
            guard let address = host.address else { continue }
            addresses[host.name] = try UDPEndpoint(address: address, port: udp.port)
        }
        self.addresses = addresses
        let shared = shared
        heartbeat = try UDPHeartbeat(
            UDPHeartbeat.Settings(
                cluster: cluster.cluster, key: try ClusterKey(path: udp.keyFile),
                host: cluster.daemon.host, incarnation: incarnation,
                local: try UDPEndpoint(address: udp.address, port: udp.port),
                periodNanoseconds: UInt64(cluster.daemon.heartbeatPeriodMilliseconds) * 1_000_000),
            permit: {
                shared.state.withLock { $0.aliveAt }.map {
                    MonotonicClock.nowNanoseconds() &- $0 < Agent.stuckNanoseconds
                } ?? false
            },
            onArrival: { arrival in
                shared.state.withLock {
                    $0.latest[arrival.host] = Latest(
                        incarnation: arrival.incarnation, sequence: arrival.sequence)
                }
            })
        setPeers([:])
    }

    /// Earlier incarnations than those registered are not heard any more.
    func setPeers(_ members: [HostName: UInt64]) {
        let peers = addresses.sorted { $0.key < $1.key }.map { host, endpoint in
            HeartbeatPeer(
                host: host, endpoint: endpoint, incarnationMinimum: members[host] ?? 0)
        }
        let isNew = shared.state.withLock { state in
            defer { state.peers = peers }
            return state.peers != peers
        }
        if isNew { heartbeat.setPeers(peers) }
    }

    /// The daemon goes round. One that is stuck must fall silent, although the thread here still runs.
    /// - Parameter nanoseconds: nil: from now on nothing is sent.
    func noteAlive(at nanoseconds: UInt64?) {
        shared.state.withLock { $0.aliveAt = nanoseconds }
    }

    func readings() -> [Detector.Reading] {
        shared.state.withLock { state in
            state.latest.map { host, latest in
                Detector.Reading(
                    host: host, incarnation: latest.incarnation, counter: latest.sequence,
                    processHoldsSlot: true, way: .udp)
            }
        }
    }
}
