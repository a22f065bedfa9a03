import CLinux
import Dispatch
import Foundation
import Glibc
import Model
import Synchronization

/// A heartbeat that another host sent and that was found to be its own.
package struct HeartbeatArrival: Sendable, Hashable {
    package let host: HostName
    package let incarnation: UInt64
    package let sequence: UInt64
    /// This host's monotonic clock (`DispatchTime.uptimeNanoseconds`).
    package let arrivedNanoseconds: UInt64
    /// The sender's monotonic clock: only differences between two arrivals mean something. The
    /// spread of (arrived - sent) is the jitter.
    package let sentNanoseconds: UInt64
    /// What that host heard of us last, if of this incarnation of ours: whether we are heard, and
    /// how long ago.
    package let heardUs: Heard?
    /// What that host's daemon has to say to ours (`UDPHeartbeat.setNote`); 0: nothing.
    package let note: UInt64

    package struct Heard: Sendable, Hashable {
        package let sequence: UInt64
        /// Between its hearing us and its sending this, by its clock.
        package let ageNanoseconds: UInt64
        /// From our sending to our hearing the answer, less that age; nil when the one that it
        /// heard is too old to be remembered.
        package let roundTripNanoseconds: UInt64?
    }
}

/// What became of datagrams since the start. Never lowered.
package struct UDPHeartbeatCounters: Sendable, Hashable {
    package var sent: UInt64 = 0
    /// The kernel did not take it: no route, no buffer.
    package var sendFailures: UInt64 = 0
    package var received: UInt64 = 0
    /// Of another cluster or version, or no heartbeat at all.
    package var foreign: UInt64 = 0
    /// With a wrong authentication code.
    package var forged: UInt64 = 0
    /// Made for another host.
    package var misdirected: UInt64 = 0
    /// By a host that is no peer.
    package var unknown: UInt64 = 0
    /// Not newer than one that has arrived: sent again by somebody, or overtaken.
    package var replayed: UInt64 = 0
}

/// Another host that heartbeats are sent to and expected from.
package struct HeartbeatPeer: Sendable, Hashable {
    package var host: HostName
    package var endpoint: UDPEndpoint
    /// Heartbeats of an earlier start of its ftvmd are replays: the one that the cluster store
    /// knows; 0 when it knows none.
    package var incarnationMinimum: UInt64

    package init(host: HostName, endpoint: UDPEndpoint, incarnationMinimum: UInt64 = 0) {
        self.host = host
        self.endpoint = endpoint
        self.incarnationMinimum = incarnationMinimum
    }
}

/// Heartbeats between hosts over UDP: one small authenticated datagram to every peer per period, on
/// a thread of its own, which also receives theirs.
package final class UDPHeartbeat: Sendable {
    package struct Settings: Sendable {
        package var cluster: String
        package var key: ClusterKey
        package var host: HostName
        package var incarnation: UInt64
        /// Where this host listens and sends from.
        package var local: UDPEndpoint
        package var periodNanoseconds: UInt64

        package init(
            cluster: String, key: ClusterKey, host: HostName, incarnation: UInt64,
            local: UDPEndpoint, periodNanoseconds: UInt64
        ) {
            self.cluster = cluster
            self.key = key
            self.host = host
            self.incarnation = incarnation
            self.local = local
            self.periodNanoseconds = periodNanoseconds
        }
    }

    private let loop: UDPHeartbeatLoop
    /// Where it listens: as configured, with the port that the kernel chose for port 0.
    package let local: UDPEndpoint

    /// Opens the socket and starts the thread.
    /// - Parameters:
    ///   - permit: asked before each beat, must not block; false skips the beat. So a daemon that is
    ///     stuck falls silent although this thread still runs.
    ///   - onArrival: called on the thread with each heartbeat that counts, must not block.
    /// - Throws: `invalidArgument` for a name over 63 bytes or incarnation 0; `unavailable` when
    /// the
    ///   address is not one of this host's or its port is taken.
    package init(
        _ settings: Settings, permit: @escaping @Sendable () -> Bool = { true },
        onArrival: @escaping @Sendable (HeartbeatArrival) -> Void
    ) throws(FtvmError) {
        guard UDPDatagram.fits(settings.host), settings.incarnation != 0 else {
            throw FtvmError(
                .invalidArgument, "host \(settings.host) cannot send heartbeats",
                cause: "its name has \(settings.host.text.utf8.count) bytes, its incarnation is "
                    + "\(settings.incarnation)", advice: "names have 1 to 63 bytes")
        }
        precondition(
            settings.periodNanoseconds >= 1_000_000, "a heartbeat's period is at least 1 ms")
        let socket = try Self.open(settings.local)
        do throws(FtvmError) {
            local = try UDPEndpoint(address: settings.local.address, port: Self.port(of: socket))
        } catch {
            close(socket)
            throw error
        }
        loop = UDPHeartbeatLoop(settings, socket: socket, permit: permit, onArrival: onArrival)
        UrgentThread.start("ftvm-udp-beat") { [loop] in loop.run() }
    }

    /// The hosts to send to and to hear, from now on. At most `peersMaximum`.
    package func setPeers(_ peers: [HeartbeatPeer]) {
        precondition(peers.count <= Self.peersMaximum)
        loop.setPeers(peers)
    }

    /// A number to go to `host` with every heartbeat from now on, such as the newest of its own
    /// heartbeats that was seen before the store was read. 0: none.
    package func setNote(_ note: UInt64, for host: HostName) { loop.setNote(note, for: host) }

    package static let peersMaximum = 256

    package var counters: UDPHeartbeatCounters { loop.counters }

    /// Stops sending and receiving; returns when the thread calls nobody any more. May be called
    /// more than once.
    package func stop() { loop.stop() }

    deinit { loop.stop() }

    private static func port(of socket: CInt) -> UInt16 {
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        return withUnsafeMutablePointer(to: &storage) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                _ = getsockname(socket, $0, &length)
            }
            // The port is at the same place in both families.
            return pointer.withMemoryRebound(to: sockaddr_in.self, capacity: 1) {
                UInt16(bigEndian: $0.pointee.sin_port)
            }
        }
    }

    private static func open(_ local: UDPEndpoint) throws(FtvmError) -> CInt {
        func failed(_ call: String) -> FtvmError {
            let failure = errno
            return FtvmError(
                .unavailable, "heartbeats cannot be sent from \(local)",
                cause: "\(call): \(String(cString: strerror(failure)))",
                advice: failure == EADDRNOTAVAIL
                    ? "the address must be one of this host's"
                    : failure == EADDRINUSE ? "another program, or another ftvmd, uses it" : nil)
        }
        let kind = CInt(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
        let descriptor = socket(local.storage.family, kind, 0)
        guard descriptor >= 0 else { throw failed("socket") }
        // Ahead of bulk traffic, here and (CS6) on switches that look; without it works as well.
        var priority: CInt = 6
        var class6: CInt = 0xC0
        let size = socklen_t(MemoryLayout<CInt>.size)
        setsockopt(descriptor, SOL_SOCKET, SO_PRIORITY, &priority, size)
        if local.storage.family == AF_INET6 {
            var only: CInt = 1
            setsockopt(descriptor, CInt(IPPROTO_IPV6), IPV6_V6ONLY, &only, size)
            setsockopt(descriptor, CInt(IPPROTO_IPV6), IPV6_TCLASS, &class6, size)
        } else {
            setsockopt(descriptor, CInt(IPPROTO_IP), IP_TOS, &class6, size)
        }
        guard local.with({ bind(descriptor, $0, $1) }) == 0 else {
            let error = failed("bind")
            close(descriptor)
            throw error
        }
        return descriptor
    }
}
