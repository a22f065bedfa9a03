import ClusterStore
import ConfigurationFiles
import Foundation
import Glibc
import Model
import PairLogic
import Synchronization

/// The clock of leases and self-fences, which goes on while the machine sleeps.
enum BootClock {
    static func now() -> MonotonicInstant {
        var time = timespec()
        clock_gettime(CLOCK_BOOTTIME, &time)
        return MonotonicInstant(
            nanoseconds: UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec))
    }
}

/// What this host's agent knows of the cluster's membership, and of fences. Belongs to the agent actor.
struct ClusterState {
    /// A host's heartbeat as it was last read in the pool.
    struct Beat: Sendable, Hashable {
        var incarnation: UInt64
        var counter: UInt64
        var slot: Int
    }

    /// As the store had them last.
    var members: [HostName: Versioned<HostMembership>] = [:]
    /// Of the newest listing that was read.
    var revision: UInt64 = 0
    /// Leases were read since the detector last looked.
    var hasFreshLeases = false
    /// When the store answered last, on the monotonic clock.
    var answeredAt: UInt64?
    var fencing: FencingView
    var selfFence: SelfFence
    var isRegistered = false
    var isRenewing = false
    var renewedAt: UInt64 = 0
    var seen: [HostName: Beat] = [:]
    /// Seen before the store said that there is no fence of it.
    var backed: [HostName: Beat] = [:]
    /// Incarnations that this host takes no note of any more, because their fence counts on it.
    var refused: [HostName: UInt64] = [:]
    /// Our own newest beat, and when we looked before.
    var ownBeat: (counter: UInt64, lookedAt: MonotonicInstant)
    /// Hosts that pairs cannot go on without being fenced.
    var needs: [PairName: [HostName]] = [:]
    var plans: [HostName: FencePlan] = [:]
    /// The devices that the plans name.
    var devices: [HostName: [String: FenceConfiguration]] = [:]
    /// Fences of which a change is being written.
    var writing: Set<HostName> = []
    /// It has been told that the guests are stopped.
    var stopTold = false

    init(environment: HostEnvironment) {
        let now = BootClock.now()
        fencing = FencingView(kernelPeers: environment.cluster.kernelPeers)
        selfFence = SelfFence(
            timing: environment.timing, hosts: max(environment.cluster.hosts.count, 1), at: now)
        ownBeat = (0, now)
    }
}

/// When the watchdog was last found to be worth setting back; read by its own thread.
final class PetPermit: Sendable {
    private let at = Atomic<UInt64>(0)
    private let limit: UInt64

    /// - Parameter limit: after so many nanoseconds without a word from the agent it is not permitted any more.
    init(limit: UInt64) { self.limit = limit }

    func permit() {
        at.store(BootClock.now().nanoseconds, ordering: .relaxed)
    }

    var isPermitted: Bool {
        let permitted = at.load(ordering: .relaxed)
        return permitted > 0 && BootClock.now().nanoseconds - permitted < limit
    }
}
