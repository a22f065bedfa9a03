import CLinux
import Hypervisor
import MemoryPool
import Model

/// Makes commits: stop, save the device state, protect again, publish, resume (DESIGN section 3).
///
/// Whoever calls has the pair to itself: one thread, no other commit at the same time. If this process dies
/// between any two steps, the segment still holds the last published commit and all pre-images since, and its
/// flag `pausedByCommit` says that the guest stands still because of us, so that a successor resumes it.
package final class Committer: @unchecked Sendable {
    package enum Ending {
        case resume
        /// The guest stays stopped: the last commit before a hand-over.
        case stayStopped
    }

    package let monitor: any Monitor
    package let segment: Segment
    package let tracker: PageTracker
    package let generation: Generation
    private let channel: DeviceStateChannel

    /// Longer than this for `stop` means that QEMU hangs; the guest's own disk writes are waited for in it.
    static let stopTimeoutMilliseconds = 5_000
    static let commandTimeoutMilliseconds = 5_000

    init(
        monitor: any Monitor, segment: Segment, tracker: PageTracker, generation: Generation,
        channel: DeviceStateChannel
    ) {
        self.monitor = monitor
        self.segment = segment
        self.tracker = tracker
        self.generation = generation
        self.channel = channel
    }

    /// Commits the running epoch.
    /// - Throws: `.conflict` when this generation has been fenced (the guest is left stopped, and must be ended);
    ///   `.unavailable` when QEMU is gone, `.timedOut` when it hangs; anything else: the guest runs on and the
    ///   epoch stays open.
    package func commit(_ ending: Ending = .resume) throws -> CommitReport {
        FaultPoint.reached("commit.begin")
        let began = MonotonicClock.nowNanoseconds()
        segment.insertFlags(.pausedByCommit)
        FaultPoint.reached("commit.flagged")
        try monitor.stop(timeoutMilliseconds: Self.stopTimeoutMilliseconds)
        FaultPoint.reached("commit.stopped")
        return try commitStopped(began: began, ending)
    }

    /// Commits a guest that stands still already, because of us.
    func commitStopped(began: UInt64, _ ending: Ending) throws -> CommitReport {
        let epoch = segment.position.epoch.next
        let stateBytes: Int
        let dirtyPages: UInt64
        do {
            (stateBytes, dirtyPages) = try saveAndPublish(epoch)
        } catch {
            if (error as? FtvmError)?.code != .conflict, ending == .resume { try? resume() }
            throw error
        }
        FaultPoint.reached("commit.published")
        if ending == .resume { try resume() }
        FaultPoint.reached("commit.end")
        return CommitReport(
            epoch: epoch, dirtyPages: dirtyPages,
            pauseNanoseconds: MonotonicClock.nowNanoseconds() - began, stateBytes: stateBytes)
    }

    private func saveAndPublish(_ epoch: Epoch) throws -> (stateBytes: Int, dirtyPages: UInt64) {
        try monitor.saveDeviceState(
            path: channel.pathInQEMU, timeoutMilliseconds: Self.commandTimeoutMilliseconds)
        FaultPoint.reached("commit.saved")
        // Before a slot is touched: under a later generation it may be the slot of the current commit.
        guard segment.position.generation == generation else {
            throw FtvmError(
                .conflict, "generation \(generation) has been fenced",
                cause: "the segment is at \(segment.position)",
                advice: "this primary must end and release nothing")
        }
        let stateBytes = try channel.copy(into: segment.stateSlot(for: epoch))
        FaultPoint.reached("commit.copied")
        let (dirtyPages, undoStart) = try tracker.withLock {
            let dirtyPages = try tracker.protectTouchedLocked()
            FaultPoint.reached("commit.protected")
            // What is logged from here on belongs to the next epoch.
            tracker.beginEpochLocked(epoch.next)
            return (dirtyPages, segment.undoHead)
        }
        try requireStillStopped(epoch)
        try tracker.withLock {
            _ = try segment.publish(
                epoch: epoch, generation: generation, stateLength: stateBytes,
                undoStart: undoStart)
        }
        return (stateBytes, dirtyPages)
    }

    /// Memory that the guest wrote between saving its state and protecting its pages would be ahead of that state. While
    /// we have it stopped libvirt shows it paused, so anybody may have resumed it. (From now on that does no harm: its
    /// writes fault, and are logged for the next epoch.) Without the tracker's lock: its main thread may be in a fault.
    private func requireStillStopped(_ epoch: Epoch) throws {
        guard try monitor.hasChangedSinceStop() else { return }
        // The epoch goes on. Its older entries stay in the log, and count first in a rollback.
        tracker.withLock { tracker.renumberEpochLocked(epoch) }
        throw FtvmError(
            .failedPrecondition, "epoch \(epoch) was not committed",
            cause: "somebody resumed or reset the guest while it stood still for the commit",
            advice: "nothing is lost; do not resume a guest that a commit has paused")
    }

    /// Lets the guest run, and takes the mark away that it stands still because of us.
    package func resume() throws {
        try monitor.cont(timeoutMilliseconds: Self.commandTimeoutMilliseconds)
        FaultPoint.reached("commit.resumed")
        segment.removeFlags(.pausedByCommit)
    }
}
