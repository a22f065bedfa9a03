import Model

/// Remembers on which hosts a promotion or a secondary of a pair has failed lately, from how the
/// pair's record changes: every host comes to the same memory by itself. Without it a host that
/// always fails and is first in placement's order would be tried again and again while others wait.
package struct RecentFailures: Sendable {
    private struct Key: Hashable {
        let pair: PairName
        let host: HostName
    }
    private struct Failure {
        let reason: String
        let until: UInt64
    }

    private let keepNanoseconds: UInt64
    private var failures: [Key: Failure] = [:]

    /// - Parameter keepNanoseconds: for how long a failure counts.
    package init(keepNanoseconds: UInt64 = 60_000_000_000) {
        self.keepNanoseconds = keepNanoseconds
    }

    /// The record was `old` when last seen and is `new` now.
    package mutating func note(
        old: PairRecord, new: PairRecord, at now: MonotonicInstant
    ) {
        failures = failures.filter { $0.value.until > now.nanoseconds }
        // A success forgives.
        if new.secondaryReady, let host = new.secondary { forget(new.name, host) }
        if new.promoting == nil, new.primary != old.primary { forget(new.name, new.primary) }
        guard let error = new.lastError else { return }
        if let host = old.secondary, !old.secondaryReady, new.secondary == nil,
            new.promoting == nil, old.promoting == nil, new.primary != host
        {
            remember(new.name, host, error, now)
        }
        if let host = old.promoting, new.promoting == nil,
            new.primary != host
                || new.state == .failingOver
        {
            remember(new.name, host, error, now)
        }
    }

    /// Why `host` is to be taken last for `pair`, for `HostView.recentFailure`.
    package func reason(
        _ pair: PairName, _ host: HostName, at now: MonotonicInstant
    ) -> String? {
        guard let failure = failures[Key(pair: pair, host: host)],
            failure.until > now.nanoseconds
        else { return nil }
        return failure.reason
    }

    /// The hosts that are to be taken last for `pair`, and why.
    package func failing(_ pair: PairName, at now: MonotonicInstant) -> [HostName: String] {
        guard !failures.isEmpty else { return [:] }
        var reasons: [HostName: String] = [:]
        for (key, failure) in failures where key.pair == pair && failure.until > now.nanoseconds {
            reasons[key.host] = failure.reason
        }
        return reasons
    }

    /// The pair is gone.
    package mutating func forget(_ pair: PairName) {
        failures = failures.filter { $0.key.pair != pair }
    }

    private mutating func forget(_ pair: PairName, _ host: HostName) {
        failures[Key(pair: pair, host: host)] = nil
    }

    private mutating func remember(
        _ pair: PairName, _ host: HostName, _ error: FtvmError, _ now: MonotonicInstant
    ) {
        let (until, overflow) = now.nanoseconds.addingReportingOverflow(keepNanoseconds)
        failures[Key(pair: pair, host: host)] = Failure(
            reason: error.message, until: overflow ? .max : until)
    }
}
