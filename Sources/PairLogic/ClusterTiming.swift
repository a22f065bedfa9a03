import Model

/// The times of a cluster that belong together, and the relation that makes a self-fence a proof:
/// whatever happens, a host's guests have ended *before* another may count on it.
///
///     host:    evidence --deadline--> stops its guests
///                                 \--watchdog--> machine reset (where ftvmd cannot)
///     fencer:  enough hosts have noted the fence ----------proof----------> promotion
///
/// The evidence is older than the notes (`SelfFence`), so
/// `proof > (deadline + stop, or deadline + watchdog) * (1 + drift) + margin` is enough. All times in
/// nanoseconds.
package struct ClusterTiming: Sendable, Hashable {
    /// Period of the heartbeats.
    package let heartbeatNanoseconds: UInt64
    /// How often a lease is renewed while the host is heard.
    package let renewalNanoseconds: UInt64
    /// How long a host goes on without evidence.
    package let deadlineNanoseconds: UInt64
    /// From "stop the guests" to their QEMUs being gone.
    package let stopNanoseconds: UInt64
    /// The watchdog's time; nil: none, and then a self-fence is no proof.
    package let watchdogNanoseconds: UInt64?
    /// How far two hosts' clocks may go apart, in parts per million.
    package let driftPartsPerMillion: UInt64
    /// What the fencer waits.
    package let proofNanoseconds: UInt64

    package static let maximumNanoseconds: UInt64 = 3_600_000_000_000

    /// Checks the relation with arithmetic that cannot overflow (every time is at most an hour).
    /// - Parameter proofNanoseconds: nil: the shortest that is safe.
    package init(
        heartbeatNanoseconds: UInt64 = 100_000_000, renewalNanoseconds: UInt64 = 1_000_000_000,
        deadlineNanoseconds: UInt64 = 4_000_000_000, stopNanoseconds: UInt64 = 1_000_000_000,
        watchdogNanoseconds: UInt64? = 5_000_000_000, driftPartsPerMillion: UInt64 = 1_000,
        proofNanoseconds: UInt64? = nil
    ) throws(FtvmError) {
        let named: [(String, UInt64)] = [
            ("the heartbeat period", heartbeatNanoseconds),
            ("the lease's renewal period", renewalNanoseconds),
            ("the self-fence deadline", deadlineNanoseconds),
            ("the time to stop guests", stopNanoseconds),
            ("the watchdog's time", watchdogNanoseconds ?? 1),
            ("the wait for a self-fence", proofNanoseconds ?? 1),
        ]
        for (name, time) in named where time == 0 || time > Self.maximumNanoseconds {
            throw Self.error("\(name) is \(time / 1_000_000) ms", "it must be 1 ms to 1 hour")
        }
        guard driftPartsPerMillion <= 100_000 else {
            throw Self.error(
                "a clock drift of \(driftPartsPerMillion) ppm", "it must be at most 100000")
        }
        guard deadlineNanoseconds >= 3 * renewalNanoseconds,
            deadlineNanoseconds >= 10 * heartbeatNanoseconds
        else {
            throw Self.error(
                "the self-fence deadline of \(deadlineNanoseconds / 1_000_000) ms is too short",
                "it must be at least 3 lease renewals and 10 heartbeats, so that a lost message or "
                    + "two do not end guests")
        }
        let end = deadlineNanoseconds + max(stopNanoseconds, watchdogNanoseconds ?? 0)
        // Both clocks may be off, one fast and one slow; and the host looks once a period.
        let drift = 2 * (end / 1_000_000 + 1) * driftPartsPerMillion
        let shortest = end + drift + 2 * heartbeatNanoseconds
        let proof = proofNanoseconds ?? shortest
        guard proof >= shortest else {
            throw Self.error(
                "others would take the self-fence for done after \(proof / 1_000_000) ms, but a "
                    + "host may run guests for up to \(shortest / 1_000_000) ms",
                "raise the wait, or lower the self-fence deadline or the watchdog's time")
        }
        self.heartbeatNanoseconds = heartbeatNanoseconds
        self.renewalNanoseconds = renewalNanoseconds
        self.deadlineNanoseconds = deadlineNanoseconds
        self.stopNanoseconds = stopNanoseconds
        self.watchdogNanoseconds = watchdogNanoseconds
        self.driftPartsPerMillion = driftPartsPerMillion
        self.proofNanoseconds = proof
    }

    private static func error(_ what: String, _ advice: String) -> FtvmError {
        FtvmError(.invalidArgument, "cluster times do not fit: \(what)", advice: advice)
    }
}
