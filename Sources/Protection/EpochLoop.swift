import CLinux
import Glibc
import Hypervisor
import MemoryPool
import Model

/// The thread that commits a primary's epochs, until it is told to end or something ends it. It
/// also empties the gate and releases frames, so that no other thread has to be woken for them.
package final class EpochLoop: @unchecked Sendable {
    /// Why the loop has ended.
    package enum End: Sendable {
        /// As asked.
        case stopped
        /// Another generation has taken over: this QEMU must be killed, and release nothing.
        case fenced(FtvmError)
        /// QEMU is gone.
        case lost(FtvmError)
        /// QEMU does not answer: it must be killed, then it is lost.
        case hung(FtvmError)
    }

    private let committer: Committer
    private let epochMaximumNanoseconds: UInt64
    private let isCold: Bool
    private let isQEMUEnding: () -> Bool
    private let findCPUs: () -> VirtualCPUs?
    private let onEnd: @Sendable (End) -> Void
    private let request: CommitRequest
    private var thread: OwnThread?

    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    // Under the lock:
    private var stopping = false
    private var history = CommitHistory()
    private var failure: FtvmError?
    private var heldFrames: UInt64 = 0
    private var releasedFrames: UInt64 = 0

    /// - Parameters:
    ///   - isCold: the guest was promoted just now.
    ///   - isQEMUEnding: whether QEMU runs nothing any more; asked when it has fallen silent.
    ///   - findCPUs: called once, on the loop's thread; nil: whether the guest rests is not to be seen.
    ///   - onEnd: called once, on the loop's thread, as its last act.
    package init(
        committer: Committer, request: CommitRequest, epochMaximumMilliseconds: Int,
        isCold: Bool = false, isQEMUEnding: @escaping () -> Bool = { false },
        findCPUs: @escaping () -> VirtualCPUs? = { nil },
        onEnd: @escaping @Sendable (End) -> Void
    ) {
        precondition(epochMaximumMilliseconds > 0, "an epoch has a length")
        self.committer = committer
        self.epochMaximumNanoseconds = UInt64(epochMaximumMilliseconds) * 1_000_000
        self.isCold = isCold
        self.isQEMUEnding = isQEMUEnding
        self.findCPUs = findCPUs
        self.request = request
        self.onEnd = onEnd
        mutex = .allocate(capacity: 1)
        mutex.initialize(to: pthread_mutex_t())
        pthread_mutex_init(mutex, nil)
    }

    deinit {
        precondition(thread == nil, "an epoch loop is joined before it goes away")
        pthread_mutex_destroy(mutex)
        mutex.deallocate()
    }

    package func start() throws {
        precondition(thread == nil, "an epoch loop is started once")
        thread = try OwnThread("ftvm-epochs") { self.onEnd(self.run()) }
    }

    /// Ends the loop between two commits and waits for it.
    package func stop() {
        guard let thread else { return }
        withLock { stopping = true }
        request.signal()
        thread.join()
        self.thread = nil
    }

    /// Figures of the last commits; `failure` is why the last commit could not be made, if so.
    package func figures() -> (figures: EpochFigures, failure: FtvmError?) {
        withLock {
            var figures = history.figures(at: MonotonicClock.nowNanoseconds())
            figures.heldFrames = heldFrames
            figures.releasedFrames = releasedFrames
            return (figures, failure)
        }
    }

    package var commits: UInt64 { withLock { history.commits } }

    /// In monotonic nanoseconds; nil: none yet.
    package var lastCommitNanoseconds: UInt64? { withLock { history.newest } }

    private func withLock<Result>(_ body: () -> Result) -> Result {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return body()
    }

    /// Frames that the network did not take are offered again after this.
    private static let releaseAgainNanoseconds: UInt64 = 500_000
    /// The disk log tells when something became durable; should that be lost, this is how long it
    /// takes.
    private static let durableAgainNanoseconds: UInt64 = 5_000_000

    /// Shorter than the ordinary one: some of our waits are.
    private static let timerSlackNanoseconds: UInt = 5_000

    private func run() -> End {
        ftvm_set_timer_slack(Self.timerSlackNanoseconds)
        let output = committer.output
        let wait = EpochWait(request: request, gate: output?.descriptors ?? [])
        defer { wait.release() }
        var pacing = CommitPacing(
            epochMaximumNanoseconds: epochMaximumNanoseconds, now: MonotonicClock.nowNanoseconds(),
            isCold: isCold,
            mayIdle: committer.segment.undoCapacity >= CommitPacing.idleLogEntries)
        var silence = Silence()
        let cpus = output == nil ? nil : findCPUs()
        var rest = GuestRest()
        var idle = IdleLook()
        while true {
            var wake = min(due(pacing, rest, idle), silence.looksAt, rest.looksAt)
            if pacing.isIdle { wake = min(wake, idle.looksAt) }
            if output?.isReleasing ?? false {
                let isHeld = committer.disks?.isHolding ?? false
                let pause = isHeld ? Self.durableAgainNanoseconds : Self.releaseAgainNanoseconds
                wake = min(wake, MonotonicClock.nowNanoseconds() + pause)
            }
            let connection = committer.disks?.connection
            let (isAsked, hasFrames) = wait.wait(
                untilNanoseconds: wake, disks: connection?.descriptor ?? -1)
            // One whose plugin has ended stays readable: its supervisor finds another, and until
            // then time goes on.
            if let connection, wait.hasDisks, !connection.drain() { usleep(1_000) }
            if withLock({ stopping }) { return .stopped }
            if committer.tracker.lost { return .lost(qemuGone) }
            if hasFrames { silence = Silence() }
            if silence.takeDue() || pacing.isIdle, isQEMUEnding() { return .lost(qemuGone) }
            look(atIdle: &idle, pacing)
            do {
                if hasFrames { try output?.collect() }
                if let cpus { look(at: cpus, &rest, hasFrames) }
                if let reason = reason(isAsked, pacing, rest, idle) {
                    rest = GuestRest()
                    try commit(reason, &pacing)
                    idle.committed(pages: committer.segment.undoUsed)
                } else {
                    try committer.releaseCommitted()
                }
                noteOutput()
            } catch {
                pacing.notCommitted(now: MonotonicClock.nowNanoseconds())
                if let end = end(after: error) { return end }
            }
        }
    }

    /// Only while something waits for the next commit.
    private func look(at cpus: VirtualCPUs, _ rest: inout GuestRest, _ hasFrames: Bool) {
        guard demand == .soon else {
            rest = GuestRest()
            return
        }
        let now = MonotonicClock.nowNanoseconds()
        if hasFrames {
            rest.stirred(now: now)
        } else if now >= rest.looksAt {
            rest.looked(
                now: now, areAsleep: cpus.areAsleep, touched: committer.segment.undoUsed)
        }
    }

    private var demand: GateDemand {
        max(committer.output?.demand ?? .none, committer.disks?.demand ?? .none)
    }

    /// Why to commit now, if so.
    private func reason(
        _ isAsked: Bool, _ pacing: CommitPacing, _ rest: GuestRest, _ idle: IdleLook
    ) -> CommitReason? {
        if isAsked, let asked = request.take() { return asked }
        guard due(pacing, rest, idle) <= MonotonicClock.nowNanoseconds() else { return nil }
        switch demand {
        case .none: return .timer
        case .soon: return .output
        case .now: return .highWater
        }
    }

    private func due(_ pacing: CommitPacing, _ rest: GuestRest, _ idle: IdleLook) -> UInt64 {
        pacing.due(
            demand, lastData: committer.output?.lastData,
            isWorking: idle.isWorking || committer.disks?.hasUnsealed ?? false,
            restingSince: rest.since, frames: committer.output?.epochFrames ?? 0)
    }

    /// As often as other guests are committed.
    private func look(atIdle idle: inout IdleLook, _ pacing: CommitPacing) {
        guard pacing.isIdle else {
            idle = IdleLook()
            return
        }
        idle.look(
            now: MonotonicClock.nowNanoseconds(), pages: committer.segment.undoUsed,
            epochMaximum: epochMaximumNanoseconds)
    }

    /// What an error means for the loop; nil: it goes on.
    private func end(after error: any Error) -> End? {
        let error = (error as? FtvmError) ?? FtvmError(wrapping: error, "a commit failed")
        switch error.code {
        case .conflict: return .fenced(error)
        case .unavailable: return .lost(error)
        case .timedOut: return .hung(error)
        default:
            withLock { failure = error }
            return nil
        }
    }

    private func commit(_ reason: CommitReason, _ pacing: inout CommitPacing) throws {
        let report: CommitReport
        var lastFrame: UInt64? { committer.output?.lastArrival }
        let hasWritten = committer.disks?.hasUnsealed ?? false
        if let running = try committer.commitRunning(.resume) {
            report = running
            pacing.committed(
                now: MonotonicClock.nowNanoseconds(), pause: report.pauseNanoseconds,
                frames: report.frames, bytes: report.frameBytes, pages: report.dirtyPages,
                hasWritten: hasWritten, lastFrame: lastFrame)
        } else {
            pacing.notCommitted(now: MonotonicClock.nowNanoseconds())
            guard let standing = try commitPaused() else { return }
            report = standing
        }
        let now = MonotonicClock.nowNanoseconds()
        withLock {
            history.add(report, reason, at: now)
            failure = nil
        }
    }

    /// A guest that a user has paused is committed once, if there is anything to commit, so that
    /// its last frames get out, and then left alone. One that stands still for other reasons (shut
    /// down, an I/O error) is not: whoever went on from there would stand still as well.
    private func commitPaused() throws -> CommitReport? {
        let frames = committer.output?.epochFrames ?? 0
        let logged = committer.tracker.withLock { committer.segment.undoUsed }
        guard frames > 0 || logged > 0 || committer.disks?.hasUnsealed ?? false,
            try committer.monitor.status().status == "paused"
        else { return nil }
        do {
            return try committer.commitStandingStill()
        } catch let error as FtvmError where error.code == .failedPrecondition {
            // He has resumed it meanwhile.
            return nil
        }
    }

    private func noteOutput() {
        guard let output = committer.output else { return }
        let hold = output.takeHold()
        withLock {
            heldFrames = output.heldFrames
            releasedFrames = output.releasedFrames
            if let hold { history.add(holdNanoseconds: hold) }
        }
    }

    private var qemuGone: FtvmError {
        FtvmError(
            .unavailable, "QEMU is gone",
            cause: "its userfaultfd can no longer be read, or its threads are ending")
    }
}

/// A guest that has fallen silent may have lost its QEMU, which the kernel tells only when it has
/// taken its memory apart. So it is looked for a few times, at growing distances, after each sign
/// of life.
private struct Silence {
    private var distance: UInt64 = 3_000_000
    private(set) var looksAt = MonotonicClock.nowNanoseconds() + 3_000_000
    private static let longest: UInt64 = 24_000_000

    /// Whether to look now; the next time is later.
    mutating func takeDue() -> Bool {
        let now = MonotonicClock.nowNanoseconds()
        guard now >= looksAt else { return false }
        distance *= 2
        looksAt = distance > Self.longest ? .max : now + distance
        return true
    }
}
