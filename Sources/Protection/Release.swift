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
        disks?.drain(seconds: 10)
        stopEpochs()
        // From here on nothing is logged: a rollback is refused, whoever may ask for one.
        segment.markOverflow(epoch: segment.position.epoch.next)
        segment.insertFlags(.disabling)
        try giveBackOutside(injector: injector)
        tracker.stop()
        // What a release that was interrupted had made goes first. (One that dies between the injection and the note
        // leaves address space that nothing was written to.)
        forgetTarget(injector: injector)
        let own = try segment.objectBytes > 0 ? nil : process.emptyObject(of: memory.blocks[0])
        defer { if let own { Glibc.close(own) } }
        let target = try injector.run(
            in: process, [.mapAnonymous(length: memory.lengthBytes)])[0]
        segment.releaseAddress = target
        FaultPoint.reached("release.mapped")
        if let own {
            _ = try injector.run(
                in: process,
                [
                    .mapFile(
                        descriptor: own, address: target, length: memory.blocks[0].lengthBytes,
                        writable: true, offset: 0)
                ])
        }
        do {
            try moveOut(to: target, injector: injector, progress: progress)
        } catch {
            forgetTarget(injector: injector)
            throw error
        }
        preparation.closeAll()
        segment.releaseManagerLock()
    }

    /// No state of the guest is gone back to from here on, so nothing has to wait for a commit: what is written goes to the
    /// images, what is held goes out, and log and gate go, before the memory is moved (which may take long). The guest stands
    /// still for a moment, so that its frames keep their order.
    private func giveBackOutside(injector: InjectorProcess) throws {
        guard gate != nil || disks != nil else { return }
        let wasRunning = try monitor.status().running
        if wasRunning { segment.insertFlags(.pausedByCommit) }
        FaultPoint.reached("release.network")
        disks?.willStop()
        try monitor.stop(timeoutMilliseconds: Committer.stopTimeoutMilliseconds)
        do {
            // First: frames may tell of writes.
            try disks?.giveBack(process, monitor)
            disks?.didNotCommit()
            try gate?.letOut(monitor: monitor)
        } catch {
            disks?.didNotCommit()
            if wasRunning { try? committer.resume() }
            throw error
        }
        if wasRunning { try committer.resume() } else { segment.removeFlags(.pausedByCommit) }
        try disks?.end()
        guard let gate else { return }
        try GateAttachment.remove(from: process, monitor: monitor, injector: injector)
        gate.close()
    }

    /// Takes the private memory away again that was to become the guest's. Not once it has: its old place is QEMU's then,
    /// to use for something else.
    private func forgetTarget(injector: InjectorProcess) {
        let target = segment.releaseAddress
        guard target != 0,
            let present = try? process.isMapped(
                memory.blocks[0], from: RAMFiles(segment), writable: true),
            present
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
        // What is in an object of a QEMU's stays where it is: nothing holds the guest up there any more.
        let staying = segment.objectBytes
        dirty.firstTrackedOffset = staying
        for block in memory.blocks where block.offset < staying {
            _ = ftvm_uffd_unregister(preparation.uffd, block.hostAddress, block.lengthBytes)
        }
        // Whoever waited for the stopped tracker is woken by the start of this one.
        try dirty.start(epoch: Epoch(0))
        defer { dirty.stop() }
        // A device that was taken from the guest took its block along; who knows what is at that address now.
        let files = RAMFiles(segment)
        let present = try memory.blocks.filter {
            try $0.offset >= staying && process.isMapped($0, from: files, writable: true)
        }
        try dirty.protect(present)
        let move = LiveMove(
            process: process, memory: memory, segment: segment,
            direction: .outOfSegment(target: target), from: staying, progress: progress)
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
                moving: memory.moving(from: target, blocks: present)
                    + memory.advising(MADV_DONTFORK, blocks: present)
                    + memory.advising(MADV_HUGEPAGE, blocks: present)
                    + SetAside.undo(process, segment)
                    + (staying > 0 ? [.unmap(address: target, length: staying)] : []))
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
