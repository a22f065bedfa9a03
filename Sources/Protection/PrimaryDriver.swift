import CLinux
import Glibc
import Hypervisor
import Injection
import MemoryPool
import Model

/// Runs one protected primary on this host: its tracker, its commits, its figures. Made by one of the ways a
/// QEMU becomes a primary (`takeOver`, `adopt`, `promote`). All calls block; one at a time.
package final class PrimaryDriver: @unchecked Sendable {
    package let process: QEMUProcess
    package let memory: GuestMemory
    package let segment: Segment
    package let monitor: any Monitor
    package let committer: Committer
    let tracker: PageTracker
    let preparation: Preparation
    /// nil for a guest without NICs.
    package let gate: NetworkGate?
    /// nil for a guest without disks to protect.
    package let disks: PairDisks?
    /// NICs without a gate, and when they were looked for last.
    private var ungated: (names: [String], atNanoseconds: UInt64) = ([], 0)
    private static let ungatedPeriodNanoseconds: UInt64 = 1_000_000_000
    private var loop: EpochLoop?
    /// How it became the primary, if by a take-over.
    package internal(set) var takeOver: TakeOverFigures?
    /// It was promoted, and has not begun its epochs yet.
    private var isCold = false
    private let request: CommitRequest

    /// The tracker and who it reports to, before there need be a monitor.
    struct Tracking {
        let tracker: PageTracker
        let request: CommitRequest

        /// Nothing is registered or protected yet, and no thread runs. The segment's manager lock is taken: an ftvmd
        /// that still writes this segment is an error here, not a race.
        init(
            process: QEMUProcess, memory: GuestMemory, segment: Segment, preparation: Preparation,
            generation: Generation
        ) throws {
            try segment.takeManagerLock()
            try segment.adopt(generation)
            let request = try CommitRequest()
            self.request = request
            tracker = try PageTracker(
                process: process, memory: memory, uffd: preparation.uffd,
                pageSizeBytes: UInt64(segment.pageSizeBytes), purpose: .undoLog(segment),
                onHighWater: { request.signal(.highWater) })
        }
    }

    init(
        process: QEMUProcess, memory: GuestMemory, segment: Segment, monitor: any Monitor,
        preparation: Preparation, generation: Generation, gate: NetworkGate?,
        disks: PairDisks? = nil, tracking: Tracking? = nil
    ) throws {
        self.process = process
        self.memory = memory
        self.segment = segment
        self.monitor = monitor
        (monitor as? QMPConnection)?.setPeerEnding { process.isEnding }
        self.preparation = preparation
        self.gate = gate
        self.disks = disks
        let tracking =
            try tracking
            ?? Tracking(
                process: process, memory: memory, segment: segment, preparation: preparation,
                generation: generation)
        request = tracking.request
        tracker = tracking.tracker
        committer = Committer(
            monitor: monitor, segment: segment, tracker: tracker, generation: generation,
            channel: preparation.channel, gate: gate, disks: disks)
    }

    // MARK: - Running

    /// Begins to commit, an epoch at most so long.
    package func startEpochs(
        maximumMilliseconds: Int, onEnd: @escaping @Sendable (EpochLoop.End) -> Void
    ) throws {
        precondition(loop == nil, "epochs are started once")
        let loop = EpochLoop(
            committer: committer, request: request, epochMaximumMilliseconds: maximumMilliseconds,
            isCold: isCold, isQEMUEnding: { [process] in process.isEnding },
            findCPUs: { [process, monitor] in VirtualCPUs(of: process, monitor) }, onEnd: onEnd)
        isCold = false
        self.loop = loop
        try loop.start()
    }

    /// The guest has been promoted just now.
    func markCold() { isCold = true }

    /// Ends committing, between two commits. The guest runs on, and blocks at its next first touch once the
    /// tracker has stopped too.
    package func stopEpochs() {
        loop?.stop()
        loop = nil
    }

    /// Ends everything on our side and lets go of the QEMU. What was put into it stays there.
    /// - Parameter isHarmless: QEMU is known to run nothing any more, even if it has not quite ended.
    package func close(isHarmless: Bool = false) {
        stopEpochs()
        tracker.stop()
        // Before the manager's lock is given back: after that the logs are the next primary's.
        if isHarmless || !process.isRunning {
            if let gate { LastInput.start(gate) }
        } else {
            gate?.close()
        }
        if isHarmless {
            // Whoever goes on need not wait until the kernel has taken a large memory apart.
            _ = ftvm_lock_clear(preparation.lock, 0, 1)
        }
        preparation.closeAll()
        // The plugin goes on: should the guest have ended by itself, its last writes are in the log only.
        disks?.close(endingPlugin: false)
        segment.releaseManagerLock()
    }

    /// Whether pages that are touched in every epoch are logged before they are touched; they are, unless somebody wants
    /// to know what that is worth.
    package var logsAhead: Bool {
        get { tracker.withLock { tracker.logsAhead } }
        set { tracker.withLock { tracker.logsAhead = newValue } }
    }

    /// So many have been made since epochs were started.
    package var commits: UInt64 { loop?.commits ?? 0 }

    /// When the last commit was made, in monotonic nanoseconds; nil: none by this loop yet.
    package var lastCommitNanoseconds: UInt64? { loop?.lastCommitNanoseconds }

    package func figures() -> (figures: EpochFigures, failure: FtvmError?) {
        var (figures, failure) = loop?.figures() ?? (EpochFigures(), nil)
        figures.undoUsedEntries = segment.undoUsed
        figures.undoCapacityEntries = segment.undoCapacity
        figures.faults = tracker.faultCount
        figures.loggedAheadPages = tracker.loggedAheadCount
        figures.overflows = tracker.overflowCount
        return (figures, failure ?? ungatedFailure())
    }

    /// Figures of the network gate; nil for a guest without NICs.
    package func gateFigures() -> GateFigures? { gate?.figures() }

    /// A NIC that somebody has added to the running guest has no gate: clients of it may see what a failover rolls back.
    /// A look into /proc tells, at most once a second.
    private func ungatedFailure() -> FtvmError? {
        let now = MonotonicClock.nowNanoseconds()
        if now &- ungated.atNanoseconds >= Self.ungatedPeriodNanoseconds {
            ungated = (process.taps(besides: gate?.attachment.ports.map(\.nic) ?? []), now)
        }
        guard !ungated.names.isEmpty else { return nil }
        return FtvmError(
            .failedPrecondition,
            "packets of interface \(ungated.names.joined(separator: ", ")) are not held back",
            cause:
                "it was added while the domain was protected, and a waiting QEMU does not have it",
            advice: "detach it; or disable the domain and enable it again")
    }

    /// The last commit before a hand-over: the guest does not run again here. The caller kills the QEMU. Its last frames
    /// have left when this returns; what a slow network has not taken by then the next primary sends.
    package func commitAndStayStopped() throws {
        stopEpochs()
        _ = try committer.commit(.stayStopped)
        guard let gate else { return }
        try gate.releaseWaiting(upTo: disks?.releasable() ?? .max)
        // What has come for the guest meanwhile it gets from the next primary.
        _ = try gate.collect()
        FaultPoint.reached("gate.handed-over")
    }
}
