import Model

/// A host's own end: stops its guests when it can neither reach the store nor see its heartbeat in
/// the pool taken note of, before others may promote. It also says when to pet the watchdog, which
/// ends the whole host when this very loop does not run any more.
///
/// What keeps a host going ("evidence") is always a thing of which it is certain that it was not
/// fenced then, counted from the moment at which *it* began to ask:
/// * its lease was renewed (refused once there is a fence);
/// * a host took note of one of its heartbeats after having read in the store that there is no fence;
/// * when the store is gone for all: a majority of the hosts took note of its heartbeats, none of
///   which had seen a fence (`FenceQuorum`).
///
/// The clock must go on while the machine sleeps (CLOCK_BOOTTIME). Look every period.
package struct SelfFence: Sendable {
    package enum Action: Sendable, Hashable {
        /// Set the watchdog back.
        case pet
        /// Renew the lease now.
        case renew
        /// End every QEMU of a pair on this host.
        case stopGuests(String)
    }

    package let timing: ClusterTiming
    private let acknowledgementsNeeded: Int
    /// The latest moment of which it is certain that we were not fenced.
    private var evidence: UInt64
    /// When our last beats were made, oldest first; bounded.
    private var beats: [(counter: UInt64, at: UInt64)] = []
    /// The newest of our beats that each host took note of, by when it was made.
    private var acknowledged: [HostName: UInt64] = [:]
    private var renewedAt: UInt64?
    private var isFenced = false

    /// - Parameter hosts: all hosts of the cluster, this one included.
    package init(timing: ClusterTiming, hosts: Int, at now: MonotonicInstant) {
        precondition(hosts > 0)
        self.timing = timing
        acknowledgementsNeeded = FenceQuorum.acknowledgementsNeeded(hosts: hosts)
        evidence = now.nanoseconds
    }

    /// The beats whose acknowledgement may still come.
    private static let beatsKept = 64

    package mutating func beat(_ counter: UInt64, at now: MonotonicInstant) {
        beats.append((counter, now.nanoseconds))
        if beats.count > Self.beatsKept { beats.removeFirst() }
    }

    /// The lease was renewed; `sentAt` is when that was begun.
    package mutating func renewed(sentAt: MonotonicInstant) {
        evidence = max(evidence, sentAt.nanoseconds)
    }

    /// `host` has taken note of our heartbeat, up to `counter`.
    /// - Parameter backedByStore: after seeing it, it read in the store that we are not fenced.
    package mutating func acknowledged(
        by host: HostName, _ counter: UInt64, backedByStore: Bool
    ) {
        guard let beat = beats.last(where: { $0.counter <= counter }) else { return }
        acknowledged[host] = max(acknowledged[host] ?? 0, beat.at)
        if backedByStore { evidence = max(evidence, beat.at) }
    }

    /// There is a fence of this incarnation.
    package mutating func fenced() { isFenced = true }

    package var isFencedNow: Bool { isFenced }

    package func mayRunGuests(at now: MonotonicInstant) -> Bool {
        !isFenced && now.nanoseconds < deadline
    }

    private var deadline: UInt64 { saturating(latest, timing.deadlineNanoseconds) }

    /// With the acknowledgements of a majority.
    private var latest: UInt64 {
        guard acknowledgementsNeeded > 0, acknowledged.count >= acknowledgementsNeeded else {
            return evidence
        }
        let newest = acknowledged.values.sorted(by: >)
        return max(evidence, newest[acknowledgementsNeeded - 1])
    }

    package mutating func look(at now: MonotonicInstant) -> [Action] {
        let time = now.nanoseconds
        var actions: [Action] = []
        let isHeard = acknowledged.values.max().map {
            time - min($0, time) < 2 * timing.heartbeatNanoseconds
        }
        let rhythm =
            isHeard == true ? timing.renewalNanoseconds : timing.heartbeatNanoseconds
        if renewedAt.map({ time - min($0, time) >= rhythm }) ?? true {
            renewedAt = time
            actions.append(.renew)
        }
        if isFenced {
            actions.append(.stopGuests("this host has been fenced"))
        } else if time >= deadline {
            actions.append(
                .stopGuests(
                    "for \((time - latest) / 1_000_000) ms neither the store was reached nor was "
                        + "this host's heartbeat taken note of"))
        } else {
            actions.append(.pet)
        }
        return actions
    }
}
