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
    /// Pages touched in the epoch, or logged ahead for it.
    package let dirtyPages: UInt64
    package let stateBytes: Int
    /// How often QEMU saved its devices: once, unless it changed the guest's memory meanwhile.
    package let saves: Int
    /// Output of the epoch.
    package let frames: UInt64
    package let frameBytes: UInt64
    package let steps: CommitSteps

    /// From before `stop` to after `cont`.
    package var pauseNanoseconds: UInt64 { steps.pause }
}

/// How long the parts of a commit took, in nanoseconds.
package struct CommitSteps: Sendable, Hashable {
    /// `stop` sent to `stop` answered.
    package private(set) var stop: UInt64 = 0
    /// Protecting pages and taking images, while QEMU saves.
    package private(set) var prepare: UInt64 = 0
    /// Waiting until QEMU has saved.
    package private(set) var save: UInt64 = 0
    /// Copying the state, and publishing.
    package private(set) var publish: UInt64 = 0
    /// `cont`, with the release of frames.
    package private(set) var resume: UInt64 = 0
    package private(set) var total: UInt64 = 0
    /// From the beginning until the guest runs again.
    package private(set) var pause: UInt64 = 0
    private let began = MonotonicClock.nowNanoseconds()
    private var last: UInt64

    init() { last = began }

    mutating func stopped() { stop = step() }
    mutating func prepared() { prepare = step() }
    mutating func saved() { save = step() }
    /// QEMU has let the guest go on by itself; otherwise it is the end.
    mutating func resumed() { pause = last - began }
    mutating func published() { publish = step() }
    mutating func ended() {
        resume = step()
        total = last - began
        if pause == 0 { pause = total }
    }

    private mutating func step() -> UInt64 {
        let now = MonotonicClock.nowNanoseconds()
        defer { last = now }
        return now - last
    }
}

/// The last values of something, in fixed memory.
struct RecentValues {
    private static let capacity = 1024
    private(set) var values: [UInt64] = []
    private var next = 0

    init() { values.reserveCapacity(Self.capacity) }

    mutating func add(_ value: UInt64) {
        if values.count < Self.capacity {
            values.append(value)
        } else {
            values[next] = value
            next = (next + 1) % Self.capacity
        }
    }
}

/// The last commits' pauses, dirty pages and hold times, for medians and percentiles.
struct CommitHistory {
    private var pauses = RecentValues()
    private var dirty = RecentValues()
    private var times = RecentValues()
    private var holds = RecentValues()
    private(set) var commits: UInt64 = 0
    /// When the last one was made.
    private(set) var newest: UInt64?
    private var reasons = CommitCounts()
    private var stateBytes = 0

    mutating func add(_ report: CommitReport, _ reason: CommitReason, at nowNanoseconds: UInt64) {
        commits += 1
        reasons.count(reason)
        stateBytes = report.stateBytes
        pauses.add(report.pauseNanoseconds)
        dirty.add(report.dirtyPages)
        times.add(nowNanoseconds)
        newest = nowNanoseconds
    }

    mutating func add(holdNanoseconds: UInt64) { holds.add(holdNanoseconds) }

    func figures(at nowNanoseconds: UInt64) -> EpochFigures {
        var figures = EpochFigures()
        figures.commits = commits
        figures.commitsByReason = reasons
        figures.deviceStateBytes = stateBytes
        if !holds.values.isEmpty {
            let sorted = holds.values.sorted()
            figures.holdMedianMicroseconds = Double(sorted[sorted.count / 2]) / 1_000
            figures.holdP99Microseconds = Double(sorted[sorted.count * 99 / 100]) / 1_000
        }
        guard let newest, let oldest = times.values.min() else {
            return figures
        }
        let sorted = pauses.values.sorted()
        figures.pauseMedianMicroseconds = Double(sorted[sorted.count / 2]) / 1_000
        figures.pauseP99Microseconds = Double(sorted[sorted.count * 99 / 100]) / 1_000
        figures.pauseMaximumMicroseconds = Double(sorted[sorted.count - 1]) / 1_000
        figures.dirtyPagesMedian = Double(dirty.values.sorted()[dirty.values.count / 2])
        figures.lastCommitAgeMilliseconds = Double(nowNanoseconds &- newest) / 1_000_000
        if newest > oldest {
            figures.epochRatePerSecond =
                Double(times.values.count - 1) * 1_000_000_000 / Double(newest - oldest)
        }
        return figures
    }
}
