import CLinux
import DiskLog
import Glibc
import Hypervisor
import MemoryPool
import Model

/// Makes commits: stop, save the device state, protect again, publish, resume (DESIGN section 3).
///
/// Whoever calls has the pair to itself: one thread, no other commit at the same time. If this process dies
/// between any two steps, the segment still holds the last published commit and all pre-images since, and its
/// flag `pausedByCommit` says that the guest stands still because of us, so that a successor resumes it.
///
/// A guest that a user has paused must not be resumed by anybody but him. So QEMU is asked whether the guest runs before
/// the flag is set, and once more before `stop`; a guest that stands still already is never stopped by us, but
/// committed as it stands. (A pause that comes between that last answer and the end of ours is not told from ours: QEMU
/// takes a second `stop` for nothing.)
package final class Committer: @unchecked Sendable {
    package enum Ending {
        case resume
        /// The guest stays stopped until `resume` is called.
        case standStill
        /// The guest does not run here again: the last commit before a hand-over.
        case stayStopped
    }

    package let monitor: any Monitor
    package let segment: Segment
    package let tracker: PageTracker
    package let generation: Generation
    private(set) var output: HeldOutput?
    /// nil for a guest without disks to protect.
    let disks: PairDisks?
    private let channel: DeviceStateChannel
    /// Where the monitor is one through which commits are made in one command, and QEMU has the pipe for it.
    private var pipe: StatePipe?

    /// Longer than this for `stop` means that QEMU hangs; the guest's own disk writes are waited for in it.
    static let stopTimeoutMilliseconds = 5_000
    static let commandTimeoutMilliseconds = 5_000
    /// How often a commit saves the devices before it gives up.
    private static let mostSaves = 8
    /// The network's time to take the last frames before a hand-over.
    private static let lastReleaseNanoseconds: UInt64 = 5_000_000

    init(
        monitor: any Monitor, segment: Segment, tracker: PageTracker, generation: Generation,
        channel: DeviceStateChannel, gate: (any PacketGate)? = nil, disks: PairDisks? = nil
    ) {
        self.monitor = monitor
        self.segment = segment
        self.tracker = tracker
        self.generation = generation
        self.channel = channel
        self.disks = disks
        pipe = monitor.savesInPassing ? channel.pipe : nil
        output = gate.map { HeldOutput($0, disks) }
    }

    /// Holds the guest's frames from here on. Only before epochs are started.
    package func attach(_ gate: any PacketGate) {
        precondition(output == nil, "a primary has one gate")
        output = HeldOutput(gate, disks)
    }

    /// Commits the running epoch; a guest that stands still already stays so.
    /// - Throws: `.conflict` when this generation has been fenced (the guest is left stopped, and must be ended);
    ///   `.unavailable` when QEMU is gone, `.timedOut` when it hangs; anything else: the guest runs on and the
    ///   epoch stays open.
    @discardableResult
    package func commit(_ ending: Ending = .resume) throws -> CommitReport {
        try commitRunning(ending) ?? commitStandingStill()
    }

    /// Commits the epoch of a guest that runs.
    /// - Returns: nil when it does not run; nothing was changed then.
    /// - Throws: as `commit` does.
    package func commitRunning(_ ending: Ending) throws -> CommitReport? {
        FaultPoint.reached("commit.begin")
        // A fenced guest waits at its next first touch, and could not be stopped.
        try requireOwnGeneration()
        if ending == .resume, let pipe { return try commitInPassing(pipe) }
        return try commitByStopping(ending)
    }

    /// QEMU, should it wait for us with a save, lets the guest go on.
    func giveUpPipe() {
        pipe = nil
        channel.giveUpPipe()
    }

    func commitByStopping(_ ending: Ending) throws -> CommitReport? {
        guard try monitor.isRunning(attending: output) else { return nil }
        if segment.flags.contains(.pausedByUser) { segment.removeFlags(.pausedByUser) }
        let early = try tracker.protectEarly()
        var steps = CommitSteps()
        segment.insertFlags(.pausedByCommit)
        FaultPoint.reached("commit.flagged")
        // Asked again behind the mark: a pause that was complete when the mark was not there yet is a user's.
        guard try monitor.isRunning(attending: output) else {
            segment.removeFlags(.pausedByCommit)
            return nil
        }
        let epoch = segment.position.epoch.next
        disks?.willStop()
        do {
            var closed = ClosedEpoch()
            let hasStopped = try monitor.stopAndSave(
                path: channel.pathInQEMU, timeoutMilliseconds: Self.stopTimeoutMilliseconds,
                attending: output
            ) { isSaved in
                FaultPoint.reached("commit.stopped")
                steps.stopped()
                closed = try closeEpoch()
                closed.dirtyPages += early
                if ending != .stayStopped { prepareAhead(until: isSaved) }
                steps.prepared()
            }
            guard hasStopped else {
                disks?.didNotCommit()
                segment.removeFlags(.pausedByCommit)
                return nil
            }
            steps.saved()
            return try finish(epoch, closed, ending, &steps)
        } catch {
            disks?.didNotCommit()
            tracker.withLock { tracker.stopLoggingAheadLocked() }
            if ending == .resume, Self.canGoOn(after: error) { try? resume() }
            throw error
        }
    }

    /// Commits a guest that stands still already, because of us.
    func commitStopped(began: UInt64, _ ending: Ending) throws -> CommitReport {
        do {
            return try saveAndFinish(ending)
        } catch {
            if ending == .resume, Self.canGoOn(after: error) { try? resume() }
            throw error
        }
    }

    /// Commits a guest that stands still because a user wants it to, and leaves it so.
    /// - Throws: `.failedPrecondition` when it was resumed meanwhile: then its epoch goes on.
    package func commitStandingStill() throws -> CommitReport {
        // Before the record: nobody who goes on from it may resume the guest.
        segment.insertFlags(.pausedByUser)
        do {
            return try saveAndFinish(.standStill)
        } catch let error as FtvmError where error.code == .failedPrecondition {
            segment.removeFlags(.pausedByUser)
            throw error
        }
    }

    private static func canGoOn(after error: any Error) -> Bool {
        switch (error as? FtvmError)?.code {
        case .conflict, .unavailable, .timedOut: false
        default: true
        }
    }

    private func saveAndFinish(_ ending: Ending) throws -> CommitReport {
        var steps = CommitSteps()
        steps.stopped()
        let closed = try closeEpoch()
        steps.prepared()
        try monitor.saveDeviceState(
            path: channel.pathInQEMU, timeoutMilliseconds: Self.commandTimeoutMilliseconds)
        steps.saved()
        return try finish(segment.position.epoch.next, closed, ending, &steps)
    }

    // MARK: - Steps

    struct ClosedEpoch {
        var dirtyPages: UInt64 = 0
        var logs = LogPositions()
        var disks: DiskSeal?
        /// Its output.
        var frames: UInt64 = 0
        var frameBytes: UInt64 = 0
    }

    /// The guest stands still; QEMU may be saving its state.
    ///
    /// Why pages may be protected before the state has been saved: from here to the change of epochs in `finish`
    /// a page changes only through a fault, and a fault is logged in this epoch and makes the page one of those
    /// that are protected once more. So what is published as this epoch's memory is the memory at the change of epochs,
    /// just as if everything had been protected then. That this is the memory which belongs to the saved state is
    /// seen to by `requireStillStopped`, where the guest itself could have changed it, and in `openEpoch`, should QEMU have:
    /// its devices leave the memory of a guest alone that stands still (its migrations rely on that as well), but a queue
    /// that is ahead of its device's state is one that no QEMU goes on with. Whether something was written before the state
    /// was saved or after cannot be told, so it is saved again.
    func closeEpoch() throws -> ClosedEpoch {
        // All that the guest has sent is in the sockets by now, and what is in them is of this epoch.
        try output?.collect()
        let dirtyPages = try tracker.withLock { try tracker.closeEpochLocked() }
        FaultPoint.reached("commit.protected")
        var closed = ClosedEpoch(
            dirtyPages: dirtyPages, logs: output?.positions ?? LogPositions(),
            frames: output?.epochFrames ?? 0, frameBytes: output?.epochBytes ?? 0)
        // QEMU has drained: every write that it has answered is below this.
        closed.disks = disks?.seal()
        if let seal = closed.disks { closed.logs.disk = seal.position }
        return closed
    }

    /// Uses the time that QEMU takes, and no more than that.
    private func prepareAhead(until isSaved: () -> Bool) {
        while !isSaved(), tracker.withLock({ tracker.prepareAheadLocked() }) {}
    }

    /// From the saved state to the end of the commit.
    private func finish(
        _ epoch: Epoch, _ closed: ClosedEpoch, _ ending: Ending, _ steps: inout CommitSteps
    ) throws -> CommitReport {
        FaultPoint.reached("commit.saved")
        // Before a slot is touched: under a later generation it may be the slot of the current commit.
        try requireOwnGeneration()
        let opened = try openEpoch(after: epoch)
        FaultPoint.reached("commit.opened")
        try requireStillStopped(epoch)
        output?.closeEpoch()
        try publish(
            epoch, closed, stateBytes: opened.stateBytes, undoStart: opened.undoStart)
        steps.published()
        switch ending {
        case .resume:
            // A little is done while QEMU goes on, and before the guest touches these pages again. More would be in QEMU's way.
            if tracker.hasLittleToLogAhead { tracker.startLoggingAhead() }
            try resume()
        case .standStill: try releaseCommitted()
        case .stayStopped: try releaseLast()
        }
        steps.ended()
        disks?.ring()
        FaultPoint.reached("commit.end")
        var all = closed
        all.dirtyPages += opened.latePages
        return report(epoch, all, stateBytes: opened.stateBytes, saves: opened.saves, steps)
    }

    /// The commit counts from here on.
    func publish(
        _ epoch: Epoch, _ closed: ClosedEpoch, stateBytes: Int, undoStart: UInt64
    ) throws {
        try tracker.withLock {
            _ = try segment.publish(
                epoch: epoch, generation: generation, stateLength: stateBytes,
                undoStart: undoStart, logs: closed.logs)
        }
        if let seal = closed.disks { disks?.published(seal, output: closed.logs.output) }
        output?.published(closed.logs)
        FaultPoint.reached("commit.published")
    }

    func report(
        _ epoch: Epoch, _ closed: ClosedEpoch, stateBytes: Int, saves: Int, _ steps: CommitSteps
    ) -> CommitReport {
        CommitReport(
            epoch: epoch, dirtyPages: closed.dirtyPages, stateBytes: stateBytes, saves: saves,
            frames: closed.frames, frameBytes: closed.frameBytes, steps: steps)
    }

    private struct OpenedEpoch {
        var stateBytes = 0
        var undoStart: UInt64 = 0
        var latePages: UInt64 = 0
        var saves = 1
    }

    /// Takes what QEMU has saved as the state of `epoch`, and lets the next one begin: what is logged from here on belongs
    /// to that. Where memory has changed since `closeEpoch` QEMU has to save once more.
    private func openEpoch(after epoch: Epoch) throws -> OpenedEpoch {
        var opened = OpenedEpoch()
        while true {
            opened.stateBytes = try channel.copy(into: segment.stateSlot(for: epoch))
            FaultPoint.reached("commit.copied")
            let (latePages, undoStart) = try tracker.withLock {
                try tracker.openEpochLocked(epoch.next)
            }
            opened.latePages += latePages
            if let undoStart {
                opened.undoStart = undoStart
                return opened
            }
            // It may have been the guest.
            try requireStillStopped(epoch)
            guard opened.saves < Self.mostSaves else { throw Self.writesWhileSaving(epoch) }
            try monitor.saveDeviceState(
                path: channel.pathInQEMU, timeoutMilliseconds: Self.commandTimeoutMilliseconds)
            opened.saves += 1
        }
    }

    private static func writesWhileSaving(_ epoch: Epoch) -> FtvmError {
        FtvmError(
            .unsupported, "epoch \(epoch) was not committed",
            cause:
                "QEMU wrote to the guest's memory while it saved its devices, \(mostSaves) times in succession",
            advice:
                "nothing is lost, and the next commit tries again; if it happens all the time, one of the domain's devices cannot be protected"
        )
    }

    /// Memory that the guest wrote after its state was saved and before the change of epochs would be ahead of that state,
    /// and what it wrote after `stop` and before the save would be missing from it or not, as it happens. While we
    /// have it stopped libvirt shows it paused, so anybody may have resumed it. QEMU reports that before the first CPU runs;
    /// so if nothing has been reported now, after the change of epochs, the guest has not written in all that time.
    /// (From now on a resumption does no harm: its writes fault, and are logged for the next epoch.) Without the tracker's
    /// lock: QEMU's main thread may be in a fault.
    private func requireStillStopped(_ epoch: Epoch) throws {
        guard try monitor.hasChangedSinceStop() else { return }
        // The epoch goes on. Its older entries stay in the log, and count first in a rollback.
        tracker.withLock { tracker.renumberEpochLocked(epoch) }
        throw FtvmError(
            .failedPrecondition, "epoch \(epoch) was not committed",
            cause: "somebody resumed or reset the guest while it stood still for the commit",
            advice: "nothing is lost; do not resume a guest that a commit has paused")
    }

    /// Lets the guest run, and takes the mark away that it stands still because of us. Frames leave meanwhile.
    package func resume() throws {
        try cont()
        tracker.startLoggingAhead()
    }

    private func cont() throws {
        var failure: (any Error)?
        try monitor.cont(
            timeoutMilliseconds: Self.commandTimeoutMilliseconds, attending: output
        ) {
            do { try releaseCommitted() } catch { failure = error }
        }
        FaultPoint.reached("commit.resumed")
        segment.removeFlags(.pausedByCommit)
        if let failure { throw failure }
    }

    func requireOwnGeneration() throws {
        let present = segment.position
        guard present.generation != generation else { return }
        throw FtvmError(
            .conflict, "generation \(generation) has been fenced",
            cause: "the segment is at \(present)",
            advice: "this primary must end and release nothing")
    }

    // MARK: - Frames

    /// Sends what is committed, unless this generation is no longer the segment's.
    /// - Throws: `.conflict` when it is not, and whatever the gate throws.
    func releaseCommitted() throws {
        guard let output, output.isReleasing else { return }
        try requireOwnGeneration()
        try output.release()
    }

    /// The guest's last frames here; what the network does not take in time the next primary sends.
    private func releaseLast() throws {
        let end = MonotonicClock.nowNanoseconds() + Self.lastReleaseNanoseconds
        try releaseCommitted()
        while output?.isReleasing ?? false, MonotonicClock.nowNanoseconds() < end {
            usleep(200)
            try releaseCommitted()
        }
    }
}
