import Model

/// A moment on the monotonic clock, in nanoseconds. Comes from outside: nothing here has a clock.
package struct MonotonicInstant: Sendable, Hashable, Comparable {
    package let nanoseconds: UInt64
    package init(nanoseconds: UInt64) { self.nanoseconds = nanoseconds }
    package static func < (left: MonotonicInstant, right: MonotonicInstant) -> Bool {
        left.nanoseconds < right.nanoseconds
    }
}

/// Says of the other hosts whether they are online, suspect or dead, from what is heard of them on
/// each way at each of our own looks. Silent on one way: suspect, and said on which. Silent on all:
/// dead. Deterministic: the same looks give the same answers.
///
/// Its own host's delays are not held against others: when more time than usual has passed since
/// the last look, this host (or this loop) was stopped or starved, nothing is known of that time,
/// and all deadlines are put off by it. A host that was frozen for an hour therefore accuses nobody
/// when it is thawed, and waits a whole time-out for the others again. A way that cannot be looked
/// at (`blind`) accuses nobody either.
///
/// Each way's own jitter widens its deadline (accrual; after Hayashibara's phi detector, with a
/// margin in mean deviations instead of a probability).
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
        /// The ways that are looked at.
        package var ways: [HeartbeatWay]
        /// How often a host renews its lease at least, in nanoseconds. It does so once a heartbeat
        /// period while it does not see its pool heartbeat taken note of.
        package var leasePeriodNanoseconds: UInt64

        package init(
            periodNanoseconds: UInt64 = 100_000_000, missesUntilSuspect: UInt64 = 2,
            missesUntilDead: UInt64 = 5, periodsUntilLate: UInt64 = 2, beatsUntilBack: UInt64 = 2,
            ways: [HeartbeatWay] = [.pool], leasePeriodNanoseconds: UInt64 = 1_000_000_000
        ) {
            precondition(periodNanoseconds > 0 && periodsUntilLate > 0 && beatsUntilBack > 0)
            precondition(missesUntilSuspect > 0 && missesUntilDead > missesUntilSuspect)
            precondition(Set(ways).count == ways.count && ways.contains { $0 != .store })
            self.periodNanoseconds = periodNanoseconds
            self.missesUntilSuspect = missesUntilSuspect
            self.missesUntilDead = missesUntilDead
            self.periodsUntilLate = periodsUntilLate
            self.beatsUntilBack = beatsUntilBack
            self.ways = ways.sorted()
            self.leasePeriodNanoseconds = leasePeriodNanoseconds
        }

        /// For networks and hosts that are known to be quick: dead after 150 ms.
        package static func fast(ways: [HeartbeatWay]) -> Configuration {
            Configuration(
                periodNanoseconds: 30_000_000, ways: ways, leasePeriodNanoseconds: 300_000_000)
        }
    }

    /// One host's heartbeat as it was read on one way.
    package struct Reading: Sendable, Hashable {
        package var host: HostName
        /// Which start of the host's ftvmd it is.
        package var incarnation: UInt64
        /// Only its changes mean something.
        package var counter: UInt64
        /// False proves that this incarnation's process is gone. Always true on ways that cannot
        /// tell.
        package var processHoldsSlot: Bool
        package var way: HeartbeatWay

        package init(
            host: HostName, incarnation: UInt64, counter: UInt64, processHoldsSlot: Bool,
            way: HeartbeatWay = .pool
        ) {
            self.host = host
            self.incarnation = incarnation
            self.counter = counter
            self.processHoldsSlot = processHoldsSlot
            self.way = way
        }
    }

    /// A host's state, or the ways on which it is heard, have changed.
    package struct Transition: Sendable, Hashable {
        package let host: HostName
        /// nil: the host was not known before.
        package let from: HostState?
        package let to: HostState
        /// For a person.
        package let reason: String
        package let why: EventReason
    }

    private struct Known: Sendable {
        /// nil: expected, never seen.
        var incarnation: UInt64?
        var state: HostState?
        /// One per way of the configuration, in its order.
        var tracks: [WayTrack]
        /// The slot of the newest incarnation is not held: its process is gone.
        var processIsGone = false
        /// Beats seen since it was dead.
        var beatsSinceDead: UInt64 = 0
    }

    package let configuration: Configuration
    /// This host; it is always online to itself.
    package let me: HostName
    private var known: [HostName: Known] = [:]
    private var lastLook: UInt64?
    /// How late our own looks have been of late, in nanoseconds: deadlines are that much longer.
    private var ownDelay: UInt64 = 0

    package init(me: HostName, configuration: Configuration = Configuration()) {
        self.me = me
        self.configuration = configuration
    }

    /// The hosts seen or expected so far and their states, without this one.
    package var states: [HostName: HostState] { known.compactMapValues(\.state) }

    package func state(of host: HostName) -> HostState? {
        host == me ? .online : known[host]?.state
    }

    /// Which start of the host's ftvmd the state is about; nil: it was never heard.
    package func incarnation(of host: HostName) -> UInt64? { known[host]?.incarnation }

    /// When the host was last seen to beat (put off by our own delays), for `ftvm hosts`.
    package func lastBeat(of host: HostName) -> MonotonicInstant? {
        known[host]?.tracks.map(\.lastBeat).max().map { MonotonicInstant(nanoseconds: $0) }
    }

    /// What each way says of the host, for `ftvm hosts`: age of the last beat and the mean deviation
    /// of the beats from their rhythm, in nanoseconds.
    package func ways(
        of host: HostName, at now: MonotonicInstant
    ) -> [(way: HeartbeatWay, age: UInt64, jitter: UInt64, heard: Bool)] {
        guard let host = known[host] else { return [] }
        return zip(configuration.ways, host.tracks).map { way, track in
            let age = now.nanoseconds - min(track.lastBeat, now.nanoseconds)
            return (way, age, track.jitter, missed(way, track, now.nanoseconds) == 0)
        }
    }

    /// Makes known that these hosts belong to the cluster: one that is never seen to beat is dead
    /// after the usual time from now. Hosts known already are left alone.
    package mutating func expect(_ hosts: some Sequence<HostName>, at now: MonotonicInstant) {
        for host in hosts where host != me && known[host] == nil {
            known[host] = newcomer(now.nanoseconds)
        }
        // A first look that comes late must not be held against them either.
        if lastLook == nil { lastLook = now.nanoseconds }
    }

    /// The host has been taken out of the cluster.
    package mutating func forget(_ host: HostName) {
        known[host] = nil
    }

    /// One look at all heartbeats. Times must not go backwards.
    /// - Parameters:
    ///   - readings: those of the store only when it was read since the last look.
    ///   - blind: ways that could not be looked at this time.
    /// - Returns: what has changed, by host name.
    package mutating func observe(
        _ readings: [Reading], blind: Set<HeartbeatWay> = [], at now: MonotonicInstant
    ) -> [Transition] {
        let time = now.nanoseconds
        putOff(time, blind)
        lastLook = time
        var transitions: [Transition] = []
        var heard: Set<HostName> = []
        for (index, way) in configuration.ways.enumerated() {
            for reading in newest(readings, on: way) {
                var host = known[reading.host] ?? newcomer(time)
                if take(reading, index, into: &host, time) { heard.insert(reading.host) }
                if host.state == nil || host.processIsGone || host.beatsSinceDead == .max {
                    transitions += announce(&host, reading.host)
                }
                known[reading.host] = host
            }
        }
        for name in known.keys.sorted() {
            guard var host = known[name] else { continue }
            let verdict = judge(host, blind, heard.contains(name), time)
            if let verdict { transitions += change(&host, name, verdict) }
            known[name] = host
        }
        return transitions.sorted { $0.host < $1.host }
    }

    private func newcomer(_ time: UInt64) -> Known {
        Known(tracks: configuration.ways.map { _ in WayTrack(lastBeat: time) })
    }

    /// Takes our own delay, and what we could not look at, out of everybody's account.
    private mutating func putOff(_ time: UInt64, _ blind: Set<HeartbeatWay>) {
        guard let lastLook else { return }
        precondition(time >= lastLook, "the monotonic clock went backwards")
        let gap = time - lastLook
        let period = configuration.periodNanoseconds
        let isLate = gap > configuration.periodsUntilLate * period
        // Lateness within bounds makes us more careful for a while.
        ownDelay -= ownDelay / 16
        if !isLate, gap > period { ownDelay = max(ownDelay, gap - period) }
        guard isLate || !blind.isEmpty else { return }
        for host in Array(known.keys) {
            for (index, way) in configuration.ways.enumerated()
            where isLate || blind.contains(way) {
                known[host]?.tracks[index].lastBeat += gap
            }
        }
    }

    /// One reading per host: one whose slot is held wins, then the higher incarnation.
    private func newest(_ readings: [Reading], on way: HeartbeatWay) -> [Reading] {
        var best: [HostName: Reading] = [:]
        for reading in readings where reading.way == way && reading.host != me {
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

    private struct Verdict {
        let state: HostState
        let reason: String
        let why: EventReason
        static let gone = Verdict(
            state: .suspect, reason: "the process of its ftvmd is gone", why: .processGone)
        static let started = Verdict(
            state: .online, reason: "its ftvmd has started", why: .heardAgain)
        static let back = Verdict(
            state: .online, reason: "its heartbeat is back", why: .heardAgain)
    }

    /// Takes note of a reading; true: the host has beaten.
    private func take(
        _ reading: Reading, _ index: Int, into host: inout Known, _ time: UInt64
    ) -> Bool {
        let isNew = host.incarnation != reading.incarnation
        if isNew, let incarnation = host.incarnation, reading.incarnation < incarnation {
            // An incarnation that is gone does not speak for a later one, and what was under way
            // when the later one began does not either. A held slot is the truth all the same: a
            // store that was begun anew counts from 1 again.
            guard reading.processHoldsSlot, reading.way == .pool else { return false }
        }
        let beats = host.tracks[index].beats(to: reading.counter, isNew: isNew)
        host.tracks[index].read(at: time, hasBeaten: beats > 0)
        host.incarnation = reading.incarnation
        guard reading.processHoldsSlot else {
            // Its ftvmd may be restarted within the time that a host has: no reason to call the
            // host dead. Who sees in addition that the primary lock is free need not wait
            // (`PairDecision.failoverIsDue`).
            host.tracks[index].counter = reading.counter
            host.beatsSinceDead = 0
            if !host.processIsGone { host.processIsGone = host.state != .dead }
            return false
        }
        if reading.way == .pool || isNew { host.processIsGone = false }
        guard beats > 0 else { return false }
        host.tracks[index].take(
            reading.counter, beats, isNew, at: time, period: configuration.periodNanoseconds)
        if isNew {
            // Its ways start afresh: the time in which it did not exist is not held against it.
            for other in host.tracks.indices { host.tracks[other].lastBeat = time }
            host.beatsSinceDead = .max
        } else if host.state == .dead, host.beatsSinceDead != .max {
            host.beatsSinceDead += 1
        }
        return true
    }

    /// What a reading alone decides: a process that has started or gone.
    private func announce(_ host: inout Known, _ name: HostName) -> [Transition] {
        if host.processIsGone {
            return host.state == .dead ? [] : change(&host, name, .gone)
        }
        guard host.incarnation != nil, host.beatsSinceDead == .max else { return [] }
        let transitions = change(&host, name, .started)
        host.beatsSinceDead = 0
        return transitions
    }

    /// Beats missed on a way, by its own rhythm: 0 while there is nothing to say.
    private func missed(_ way: HeartbeatWay, _ track: WayTrack, _ time: UInt64) -> UInt64 {
        let period =
            way == .store ? configuration.leasePeriodNanoseconds : configuration.periodNanoseconds
        let silence = time - min(track.lastBeat, time)
        let margin = track.margin(period: configuration.periodNanoseconds) + ownDelay
        // While it beats regularly and we look in time, the margin is 0.
        let missed = (silence - min(margin, silence)) / period
        return missed >= configuration.missesUntilSuspect ? missed : 0
    }

    /// A verdict from the time since the last beats.
    private func judge(
        _ host: Known, _ blind: Set<HeartbeatWay>, _ hasBeaten: Bool, _ time: UInt64
    ) -> Verdict? {
        var silent: [HeartbeatWay] = []
        var most: UInt64 = 0
        var least: UInt64 = .max
        var looked = 0
        var newest: UInt64 = 0
        for (way, track) in zip(configuration.ways, host.tracks)
        where way != .store && !blind.contains(way) {
            let missed = missed(way, track, time)
            looked += 1
            newest = max(newest, track.lastBeat)
            if missed > 0 { silent.append(way) }
            most = max(most, missed)
            least = min(least, missed)
        }
        let beatingWays = configuration.ways.count { $0 != .store }
        if looked > 0, least >= configuration.missesUntilDead, host.state != .dead {
            let isSure = looked == beatingWays
            if !leaseSpeaksForIt(host, blind, newest, isSure, time) {
                return Verdict(
                    state: .dead, reason: "\(least) heartbeats missed",
                    why: .allSilent(missed: least))
            }
        }
        if host.state == .dead {
            guard hasBeaten, host.beatsSinceDead >= configuration.beatsUntilBack else {
                return nil
            }
            return .back
        }
        guard silent.isEmpty else {
            let reason =
                beatingWays == 1
                ? "\(most) heartbeats missed"
                : "\(most) heartbeats missed on \(silent.map(\.rawValue).joined(separator: ", "))"
            return Verdict(
                state: .suspect, reason: reason, why: .silent(ways: silent, missed: most))
        }
        guard !host.processIsGone, hasBeaten else { return nil }
        return .back
    }

    /// The host is not heard, but renews its lease. It renews it once a period when it does not see
    /// its heartbeat in the pool taken note of, so a renewal after the last beat says that it lives.
    /// - Parameter isSure: every way of beating was looked at. Otherwise the host may not know that
    ///   we do not hear it, and the lease's ordinary rhythm counts.
    private func leaseSpeaksForIt(
        _ host: Known, _ blind: Set<HeartbeatWay>, _ newestBeat: UInt64, _ isSure: Bool,
        _ time: UInt64
    ) -> Bool {
        guard let index = configuration.ways.firstIndex(of: .store) else { return !isSure }
        if blind.contains(.store) { return !isSure }
        let lease = host.tracks[index].lastBeat
        let silence = time - min(lease, time)
        let misses = configuration.missesUntilDead
        if isSure {
            // What was renewed before the silence may only just have been read.
            let isAfterwards = host.tracks[index].beatenAfter > newestBeat
            return isAfterwards && silence < misses * configuration.periodNanoseconds
        }
        return silence < 3 * configuration.leasePeriodNanoseconds
    }

    private func change(
        _ host: inout Known, _ name: HostName, _ verdict: Verdict
    ) -> [Transition] {
        guard host.state != verdict.state else { return [] }
        let transition = Transition(
            host: name, from: host.state, to: verdict.state, reason: verdict.reason,
            why: verdict.why)
        host.state = verdict.state
        if verdict.state == .dead { host.beatsSinceDead = 0 }
        return [transition]
    }
}
