import CLinux
import Glibc
import Hypervisor
import Injection
import MemoryPool
import Model

extension PrimaryDriver {
    /// Gives a running guest back: its memory moves out of the segment into private memory of its own QEMU while it
    /// runs, the tracker goes, and an ordinary domain is left. The driver is used up.
    ///
    /// The move is the take-over in reverse, and as safe: until the private memory is moved into place (one
    /// mremap(2)) the guest runs on the segment.
    package func release(
        injector: InjectorProcess, progress: @escaping @Sendable (Int) -> Void
    ) throws {
        stopEpochs()
        // From here on nothing is logged: a rollback is refused, whoever may ask for one.
        segment.markOverflow(epoch: segment.position.epoch.next)
        segment.insertFlags(.disabling)
        try giveBackNetwork(injector: injector)
        tracker.stop()
        // What a release that was interrupted had made goes first. (One that dies between the injection and the note
        // leaves address space that nothing was written to.)
        forgetTarget(injector: injector)
        let target = try injector.run(
            in: process, [.mapAnonymous(length: memory.lengthBytes)])[0]
        segment.releaseAddress = target
        FaultPoint.reached("release.mapped")
        do {
            try moveOut(to: target, injector: injector, progress: progress)
        } catch {
            forgetTarget(injector: injector)
            throw error
        }
        preparation.closeAll()
        segment.releaseManagerLock()
    }

    /// No state of the guest is gone back to from here on, so nothing has to wait for a commit: what is held goes out,
    /// and the gate goes, before the memory is moved (which may take long). The guest stands still for a moment, so that
    /// its frames keep their order.
    private func giveBackNetwork(injector: InjectorProcess) throws {
        guard let gate else { return }
        let wasRunning = try monitor.status().running
        if wasRunning { segment.insertFlags(.pausedByCommit) }
        FaultPoint.reached("release.network")
        try monitor.stop(timeoutMilliseconds: Committer.stopTimeoutMilliseconds)
        do {
            try gate.letOut(monitor: monitor)
        } catch {
            if wasRunning { try? committer.resume() }
            throw error
        }
        if wasRunning { try committer.resume() }
        try GateAttachment.remove(from: process, monitor: monitor, injector: injector)
        gate.close()
    }

    /// Takes the private memory away again that was to become the guest's. Not once it has: its old place is QEMU's then,
    /// to use for something else.
    private func forgetTarget(injector: InjectorProcess) {
        let target = segment.releaseAddress
        guard target != 0, let present = try? process.mapping(of: memory),
            let file = try? FileIdentity(descriptor: segment.ramDescriptor),
            present == .file(file, writable: true)
        else { return }
        _ = try? injector.run(
            in: process, [.unmap(address: target, length: memory.lengthBytes)])
        segment.releaseAddress = 0
    }

    private func moveOut(
        to target: UInt64, injector: InjectorProcess, progress: @escaping @Sendable (Int) -> Void
    ) throws {
        let dirty = try PageTracker(
            process: process, memory: memory, uffd: preparation.uffd,
            pageSizeBytes: UInt64(segment.pageSizeBytes), purpose: .dirtyPages)
        // Whoever waited for the stopped tracker is woken by the start of this one.
        try dirty.start(epoch: Epoch(0))
        defer { dirty.stop() }
        try dirty.protectAll()
        let move = LiveMove(
            process: process, memory: memory, segment: segment,
            direction: .outOfSegment(target: target), progress: progress)
        try move.copyWhileRunning(tracker: dirty)
        let wasRunning = try monitor.status().running
        if wasRunning { segment.insertFlags(.pausedByCommit) }
        FaultPoint.reached("release.copied")
        try monitor.stop(timeoutMilliseconds: Committer.stopTimeoutMilliseconds)
        do {
            try move.copyRest(stopping: dirty)
            let lockFile = try segment.openLock()
            defer { Glibc.close(lockFile) }
            try Preparation.remove(
                from: process, lockFile: lockFile, injector: injector,
                moving: memory.moving(from: target) + memory.advising(MADV_DONTFORK)
                    + memory.advising(MADV_HUGEPAGE))
            segment.removeFlags(.grafted)
            // A guest that somebody has resumed meanwhile, and that waits at a write: it finds its own memory now.
            _ = ftvm_uffd_wake_all(preparation.uffd)
            FaultPoint.reached("release.moved")
        } catch {
            if wasRunning { try? committer.resume() }
            throw error
        }
        if wasRunning { try committer.resume() } else { segment.removeFlags(.pausedByCommit) }
    }
}
