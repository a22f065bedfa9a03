import Model

/// Figures of a running pair, kept in fixed memory by the epoch thread.
package struct EpochFigures: Sendable, Hashable {
    /// Commits since the driver started.
    package var commits: UInt64 = 0
    package var epochRatePerSecond: Double = 0
    /// Guest pause of a commit, from before `stop` to after `cont`.
    package var pauseMedianMicroseconds: Double = 0
    package var pauseP99Microseconds: Double = 0
    package var pauseMaximumMicroseconds: Double = 0
    package var dirtyPagesMedian: Double = 0
    package var lastCommitAgeMilliseconds: Double = 0
    package var undoUsedEntries: UInt64 = 0
    package var undoCapacityEntries: UInt64 = 0
    package var faults: UInt64 = 0
    package var overflows: UInt64 = 0
    package var deviceStateBytes: Int = 0

    package init() {}
}

/// What one commit did.
package struct CommitReport: Sendable, Hashable {
    package let epoch: Epoch
    package let dirtyPages: UInt64
    package let pauseNanoseconds: UInt64
    package let stateBytes: Int
}

/// The last commits' pauses and dirty pages, for medians and percentiles.
struct CommitHistory {
    private static let capacity = 1024
    private var pauses: [UInt64] = []
    private var dirty: [UInt64] = []
    private var times: [UInt64] = []
    private var next = 0
    private(set) var commits: UInt64 = 0

    init() {
        pauses.reserveCapacity(Self.capacity)
        dirty.reserveCapacity(Self.capacity)
        times.reserveCapacity(Self.capacity)
    }

    mutating func add(_ report: CommitReport, at nowNanoseconds: UInt64) {
        commits += 1
        if pauses.count < Self.capacity {
            pauses.append(report.pauseNanoseconds)
            dirty.append(report.dirtyPages)
            times.append(nowNanoseconds)
        } else {
            pauses[next] = report.pauseNanoseconds
            dirty[next] = report.dirtyPages
            times[next] = nowNanoseconds
            next = (next + 1) % Self.capacity
        }
    }

    func figures(at nowNanoseconds: UInt64) -> EpochFigures {
        var figures = EpochFigures()
        figures.commits = commits
        guard let newest = times.max(), let oldest = times.min() else { return figures }
        let sorted = pauses.sorted()
        figures.pauseMedianMicroseconds = Double(sorted[sorted.count / 2]) / 1_000
        figures.pauseP99Microseconds = Double(sorted[sorted.count * 99 / 100]) / 1_000
        figures.pauseMaximumMicroseconds = Double(sorted[sorted.count - 1]) / 1_000
        figures.dirtyPagesMedian = Double(dirty.sorted()[dirty.count / 2])
        figures.lastCommitAgeMilliseconds = Double(nowNanoseconds &- newest) / 1_000_000
        if newest > oldest {
            figures.epochRatePerSecond =
                Double(times.count - 1) * 1_000_000_000 / Double(newest - oldest)
        }
        return figures
    }
}
