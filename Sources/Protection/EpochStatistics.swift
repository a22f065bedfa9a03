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
    /// Pages that were logged before they were written, because they had been touched again and again, since the start.
    package var loggedAheadPages: UInt64 = 0
    /// Why the commits so far were made; the sum is `commits`.
    package var commitsByReason = CommitCounts()
    /// Frames of the guest that wait for their commit, or for the network to take them.
    package var heldFrames: UInt64 = 0
    /// Frames of the guest that have left since the driver started.
    package var releasedFrames: UInt64 = 0
    /// How long the first frame of an epoch waited, from its arrival in the gate until it left: the longest wait of that
    /// epoch. 0 when no frame has left yet.
    package var holdMedianMicroseconds: Double = 0
    package var holdP99Microseconds: Double = 0

    package init() {}
}

/// Why a commit is made.
package enum CommitReason: String, Sendable, Hashable, CaseIterable {
    /// The epoch has reached its greatest length.
    case timer
    /// Frames of the guest wait.
    case output
    /// The undo log, or a log of the gate, is half full.
    case highWater
    /// Somebody asked.
    case request
}

/// Commits by their reason.
package struct CommitCounts: Sendable, Hashable {
    package var timer: UInt64 = 0
    package var output: UInt64 = 0
    package var highWater: UInt64 = 0
    package var request: UInt64 = 0

    package init() {}

    package mutating func count(_ reason: CommitReason) {
        switch reason {
        case .timer: timer += 1
        case .output: output += 1
        case .highWater: highWater += 1
        case .request: request += 1
        }
    }
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
