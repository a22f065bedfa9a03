import Hypervisor
import MemoryPool
import Model

/// Commits through a monitor with a long way to QEMU, which is libvirt's: QEMU stops the guest, saves and lets it go on
/// in one command (`xen-save-devices-state` of a running guest). It saves into a pipe that holds it up until the epoch has
/// been changed (`StatePipe`).
///
/// The guest goes on before its epoch is published. What it writes then is logged for the next one, and whoever
/// goes on from the commit before takes that back as well; its frames are held for the next. If this process dies while the
/// guest stands still the pipe has no reader, and QEMU lets the guest go on by itself, so nobody has to be told that we
/// have paused it; a user's pause stays one.
///
/// Nobody can resume or reset the guest meanwhile: QEMU's main thread is busy, and libvirt's domain too, whose other callers
/// wait for the guest to run again.
///
/// Known: a guest that powers itself off between the question whether it runs and QEMU's save is committed as it stands
/// then. Its end is noticed as always; should its host die before that, the other one goes on with a guest that has halted.
extension Committer {
    /// - Returns: nil when the guest does not run; nothing was changed then.
    /// - Throws: as `commit` does; the guest goes on, its epoch too, and later commits do without the pipe.
    func commitInPassing(_ pipe: StatePipe) throws -> CommitReport? {
        guard try monitor.isRunning(attending: output) else { return nil }
        if segment.flags.contains(.pausedByUser) { segment.removeFlags(.pausedByUser) }
        do {
            if let report = try saveInPassing(pipe) { return report }
        } catch {
            giveUpPipe()
            throw error
        }
        // QEMU has written to memory while it saved, so it has to save again.
        return try commitByStopping(.resume)
    }

    /// - Returns: nil when nothing was committed, and the epoch goes on.
    private func saveInPassing(_ pipe: StatePipe) throws -> CommitReport? {
        let epoch = segment.position.epoch.next
        var closed: ClosedEpoch?
        var undoStart: UInt64?
        do {
            try pipe.begin()
            let early = try tracker.protectEarly()
            disks?.willStop()
            let attendant = PassingAttendant(output, pipe)
            var steps = CommitSteps()
            try monitor.saveInPassing(
                path: pipe.pathInQEMU, pipe: pipe.reader,
                timeoutMilliseconds: Self.stopTimeoutMilliseconds, attending: attendant
            ) {
                defer { pipe.open() }
                FaultPoint.reached("commit.passing")
                steps.stopped()
                var ended = try closeEpoch()
                ended.dirtyPages += early
                output?.closeEpoch()
                closed = ended
                while tracker.withLock({ tracker.prepareKeptLocked() }) {}
                undoStart = try tracker.withLock { try tracker.openEpochLocked(epoch.next) }
                    .undoStart
                FaultPoint.reached("commit.passed")
                steps.prepared()
            }
            steps.saved()
            steps.resumed()
            if let failure = attendant.failure { throw failure }
            FaultPoint.reached("commit.saved")
            guard let closed, let undoStart else {
                reopen(epoch, closed != nil)
                return nil
            }
            try requireOwnGeneration()
            let bytes = try pipe.copy(into: segment.stateSlot(for: epoch))
            FaultPoint.reached("commit.copied")
            try publish(epoch, closed, stateBytes: bytes, undoStart: undoStart)
            steps.published()
            tracker.startLoggingAhead()
            try releaseCommitted()
            steps.ended()
            disks?.ring()
            FaultPoint.reached("commit.end")
            return report(epoch, closed, stateBytes: bytes, saves: 1, steps)
        } catch {
            reopen(epoch, closed != nil)
            throw error
        }
    }

    /// The epoch goes on. What has been logged for the next one stays in the log, and counts in a rollback.
    private func reopen(_ epoch: Epoch, _ wasClosed: Bool) {
        disks?.didNotCommit()
        tracker.withLock {
            tracker.renumberEpochLocked(epoch)
            tracker.stopLoggingAheadLocked()
        }
        if wasClosed { output?.reopenEpoch() }
    }
}
