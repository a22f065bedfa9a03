import Model

/// A moment on the monotonic clock, in nanoseconds. Comes from outside: nothing here has a clock.
package struct MonotonicInstant: Sendable, Hashable, Comparable {
    package let nanoseconds: UInt64
    package init(nanoseconds: UInt64) { self.nanoseconds = nanoseconds }
    package static func < (left: MonotonicInstant, right: MonotonicInstant) -> Bool {
        left.nanoseconds < right.nanoseconds
    }
}

/// Says of the other hosts whether they are online, suspect or dead, from what their heartbeats
/// look like at each of our own looks. Deterministic: the same looks give the same answers.
///
/// Its own host's delays are not held against others: when more time than usual has passed since
/// the last look, this host (or this loop) was stopped or starved, nothing is known of that time,
/// and all deadlines are put off by it. A host that was frozen for an hour therefore accuses nobody
/// when it is thawed, and waits a whole time-out for the others again.
///
/// Look at least once per period; twice is better.
package struct Detector: Sendable {
    package struct Configuration: Sendable, Hashable {
        /// Period of the heartbeats, in nanoseconds.
        package var periodNanoseconds: UInt64
        /// Periods without a beat after which a host is suspect.
        package var missesUntilSuspect: UInt64
        /// Periods without a beat after which a host is dead.
        package var missesUntilDead: UInt64
        /// A gap of more than this many periods between two looks is our own delay.
        package var periodsUntilLate: UInt64
        /// Beats that a dead host of the same incarnation must be seen to make before it is online.
        package var beatsUntilBack: UInt64

        package init(
            periodNanoseconds: UInt64 = 100_000_000, missesUntilSuspect: UInt64 = 2,
            missesUntilDead: UInt64 = 5, periodsUntilLate: UInt64 = 2, beatsUntilBack: UInt64 = 2
        ) {
            precondition(periodNanoseconds > 0 && periodsUntilLate > 0 && beatsUntilBack > 0)
            precondition(missesUntilSuspect > 0 && missesUntilDead > missesUntilSuspect)
            self.periodNanoseconds = periodNanoseconds
            self.missesUntilSuspect = missesUntilSuspect
            self.missesUntilDead = missesUntilDead
            self.periodsUntilLate = periodsUntilLate
            self.beatsUntilBack = beatsUntilBack
        }
    }

    /// One host's heartbeat as it was read.
    package struct Reading: Sendable, Hashable {
        package var host: HostName
        /// Which start of the host's ftvmd it is.
        package var incarnation: UInt64
        /// Only its changes mean something.
        package var counter: UInt64
        /// False proves that this incarnation's process is gone.
        package var processHoldsSlot: Bool

        package init(
            host: HostName, incarnation: UInt64, counter: UInt64, processHoldsSlot: Bool
        ) {
            self.host = host
            self.incarnation = incarnation
            self.counter = counter
            self.processHoldsSlot = processHoldsSlot
        }
    }

    /// A host's state has changed.
    package struct Transition: Sendable, Hashable {
        package let host: HostName
        /// nil: the host was not known before.
        package let from: HostState?
        package let to: HostState
        /// For a person.
        package let reason: String
    }

    private struct Known: Sendable {
        /// nil: expected, never seen.
        var incarnation: UInt64?
        var counter: UInt64 = 0
        /// When its counter was last seen to have changed, put off by our own delays.
        var lastBeat: UInt64
        var state: HostState?
        /// Beats seen since it was dead.
        var beatsSinceDead: UInt64 = 0
    }

    package let configuration: Configuration
    /// This host; it is always online to itself.
    package let me: HostName
    private var known: [HostName: Known] = [:]
    private var lastLook: UInt64?

    package init(me: HostName, configuration: Configuration = Configuration()) {
        self.me = me
        self.configuration = configuration
    }

    /// The hosts seen or expected so far and their states, without this one.
    package var states: [HostName: HostState] { known.compactMapValues(\.state) }

    /// When the host was last seen to beat (put off by our own delays), for `ftvm hosts`.
    package func lastBeat(of host: HostName) -> MonotonicInstant? {
        known[host].map { MonotonicInstant(nanoseconds: $0.lastBeat) }
    }

    /// Makes known that these hosts belong to the cluster: one that is never seen to beat is dead
    /// after the usual time from now. Hosts known already are left alone.
    package mutating func expect(_ hosts: some Sequence<HostName>, at now: MonotonicInstant) {
        for host in hosts where host != me && known[host] == nil {
            known[host] = Known(incarnation: nil, lastBeat: now.nanoseconds, state: nil)
        }
        // A first look that comes late must not be held against them either.
        if lastLook == nil { lastLook = now.nanoseconds }
    }

    /// The host has been taken out of the cluster.
    package mutating func forget(_ host: HostName) {
        known[host] = nil
    }

    /// One look at all heartbeats. Times must not go backwards.
    /// - Returns: what has changed, by host name.
    package mutating func observe(
        _ readings: [Reading], at now: MonotonicInstant
    ) -> [Transition] {
        let time = now.nanoseconds
        if let lastLook {
            precondition(time >= lastLook, "the monotonic clock went backwards")
            let gap = time - lastLook
            if gap > configuration.periodsUntilLate * configuration.periodNanoseconds {
                for host in known.keys { known[host]?.lastBeat += gap }
            }
        }
        lastLook = time

        var transitions: [Transition] = []
        for reading in newest(readings) {
            var host = known[reading.host] ?? Known(incarnation: nil, lastBeat: time, state: nil)
            if let verdict = take(reading, into: &host, time) {
                transitions += change(&host, reading.host, verdict)
            }
            known[reading.host] = host
        }
        for name in known.keys.sorted() {
            guard var host = known[name] else { continue }
            if let verdict = judge(host, time) { transitions += change(&host, name, verdict) }
            known[name] = host
        }
        return transitions.sorted { $0.host < $1.host }
    }

    /// One reading per host: one whose slot is held wins, then the higher incarnation.
    private func newest(_ readings: [Reading]) -> [Reading] {
        var best: [HostName: Reading] = [:]
        for reading in readings where reading.host != me {
            guard let other = best[reading.host] else {
                best[reading.host] = reading
                continue
            }
            let rank = (reading.processHoldsSlot ? 1 : 0, reading.incarnation)
            if rank > (other.processHoldsSlot ? 1 : 0, other.incarnation) {
                best[reading.host] = reading
            }
        }
        return best.values.sorted { $0.host < $1.host }
    }

    private typealias Verdict = (state: HostState, reason: String)

    /// Takes note of a reading; a verdict when it alone decides.
    private func take(
        _ reading: Reading, into host: inout Known, _ time: UInt64
    ) -> Verdict? {
        let isNew = host.incarnation != reading.incarnation
        // An incarnation that is gone does not speak for a later one.
        if isNew, let incarnation = host.incarnation, !reading.processHoldsSlot,
            reading.incarnation < incarnation
        {
            return nil
        }
        let hasBeaten = isNew || host.counter != reading.counter
        host.incarnation = reading.incarnation
        host.counter = reading.counter
        guard reading.processHoldsSlot else {
            // Its ftvmd may be restarted within the time that a host has: no reason to call the
            // host dead. Who sees in addition that the primary lock is free need not wait
            // (`PairDecision.failoverIsDue`).
            host.beatsSinceDead = 0
            return host.state == .dead ? nil : (.suspect, "the process of its ftvmd is gone")
        }
        guard hasBeaten else { return nil }
        host.lastBeat = time
        if isNew { return (.online, "its ftvmd has started") }
        if host.state == .dead {
            host.beatsSinceDead += 1
            guard host.beatsSinceDead >= configuration.beatsUntilBack else { return nil }
        }
        return (.online, "its heartbeat is back")
    }

    /// A verdict from the time since the last beat; nil while that is short.
    private func judge(_ host: Known, _ time: UInt64) -> Verdict? {
        guard host.state != .dead else { return nil }
        let missed = (time - min(host.lastBeat, time)) / configuration.periodNanoseconds
        if missed >= configuration.missesUntilDead {
            return (.dead, "\(missed) heartbeats missed")
        }
        if missed >= configuration.missesUntilSuspect {
            return (.suspect, "\(missed) heartbeats missed")
        }
        return nil
    }

    private func change(
        _ host: inout Known, _ name: HostName, _ verdict: Verdict
    ) -> [Transition] {
        guard host.state != verdict.state else { return [] }
        let transition = Transition(
            host: name, from: host.state, to: verdict.state, reason: verdict.reason)
        host.state = verdict.state
        if verdict.state == .dead { host.beatsSinceDead = 0 }
        return [transition]
    }
}
