import CLinux
import Glibc
import Hypervisor
import Injection
import MemoryPool
import Model

extension PrimaryDriver {
    /// What protecting a running guest is doing, for the user.
    package enum TakeOverStep: Sendable, Hashable {
        case copyingMemory(percent: Int)
        case switching
    }

    /// Makes a running domain's QEMU the primary: its memory moves into the segment while the guest runs, the
    /// rest while it stands still, then the segment's file is mapped over the old memory, and epoch 1 is committed.
    ///
    /// If anything fails before the file is mapped, the guest goes on as it was. If this process dies, a successor
    /// calls `abandonTakeOver` and then this again; it goes on from wherever things stand.
    /// - Parameters:
    ///   - lock: descriptor with the primary lock, taken by the caller; the QEMU keeps it from here on.
    ///   - nics: all NICs of the guest.
    ///   - object: the shared memory that is to be left empty when it has been moved out of it.
    ///   - disks: those that its log protects.
    package static func takeOver(
        process: QEMUProcess, memory: GuestMemory, monitor: any Monitor, segment: Segment,
        generation: Generation, lock: Int32, injector: InjectorProcess, nics: [GuestNIC] = [],
        object: MemoryObject? = nil, disks: PairDisks? = nil,
        progress: @escaping @Sendable (TakeOverStep) -> Void
    ) throws -> PrimaryDriver {
        let place = try whereMemoryIs(process, memory, segment)
        precondition(
            place != .elsewhere || segment.position.epoch.number == 0,
            "a segment of which nobody runs")
        try takeUp(segment, generation)
        // Slow, and nothing that the guest notices: before anything else.
        try disks?.takeUp(generation)
        let preparation = try Preparation.install(
            in: process, lock: lock, injector: injector, savesInPassing: monitor.savesInPassing)
        var attachment: GateAttachment?
        var started: PageTracker?
        do {
            // A guest that its user has paused stays so.
            let wasRunning = try monitor.status().running
            if !nics.isEmpty {
                attachment = try GateAttachment.install(
                    in: process, monitor: monitor, nics: nics, injector: injector)
            }
            var tracking: Tracking?
            let stopped: UInt64
            switch place {
            case .inSegment:
                if wasRunning { segment.insertFlags(.pausedByCommit) }
                stopped = MonotonicClock.nowNanoseconds()
                try monitor.stop(timeoutMilliseconds: Committer.stopTimeoutMilliseconds)
            case .object:
                let adoption = try InPlace(
                    process: process, memory: memory, segment: segment, preparation: preparation,
                    generation: generation)
                tracking = adoption.tracking
                started = tracking?.tracker
                stopped = try adoption.join(
                    monitor: monitor, injector: injector, wasRunning: wasRunning,
                    progress: progress)
            case .elsewhere:
                stopped = try moveIntoSegment(
                    process: process, memory: memory, monitor: monitor, segment: segment,
                    preparation: preparation, injector: injector, wasRunning: wasRunning,
                    object: object, progress: progress)
            }
            // The guest stands still: all frames of its first epoch are held, and none of before.
            try attachment?.setFilters(on: true, monitor: monitor)
            FaultPoint.reached("takeover.gated")
            // Not earlier: until the first commit only the images are there to start the guest from again.
            try disks?.attach(monitor)
            disks?.resume(from: nil, released: segment.releasedOutput)
            let gate = try attachment.map {
                try NetworkGate($0, segment: segment, generation: generation)
            }
            let driver = try PrimaryDriver(
                process: process, memory: memory, segment: segment, monitor: monitor,
                preparation: preparation, generation: generation, gate: gate, disks: disks,
                tracking: tracking)
            if tracking == nil {
                started = driver.tracker
                try driver.tracker.protectAll()
                try driver.tracker.start(epoch: segment.position.epoch.next)
            }
            FaultPoint.reached("takeover.tracking")
            try driver.firstCommit(wasRunning: wasRunning)
            driver.takeOver = TakeOverFigures(
                stoppedNanoseconds: MonotonicClock.nowNanoseconds() - stopped, place: place)
            return driver
        } catch {
            started?.stop()
            attachment?.closeAll()
            preparation.closeAll()
            try? abandonTakeOver(
                process: process, monitor: monitor, segment: segment, injector: injector,
                disks: disks)
            throw error
        }
    }

    /// Writes for this generation from here on. Where the guest has run on the segment without a tracker, its last
    /// commit is nothing to go back to until the next one.
    private static func takeUp(_ segment: Segment, _ generation: Generation) throws {
        try segment.takeManagerLock()
        if segment.position.generation < generation {
            try segment.raiseGeneration(to: generation)
        } else {
            try segment.adopt(generation)
        }
        if segment.position.epoch.number > 0 {
            segment.markOverflow(epoch: segment.position.epoch.next)
        }
    }

    /// Takes a half-done take-over back, so that the guest runs: nothing waits for a tracker, and a guest that stood
    /// still because of us goes on. Its memory stays where it is, private or in the segment.
    package static func abandonTakeOver(
        process: QEMUProcess, monitor: any Monitor, segment: Segment, injector: InjectorProcess,
        disks: PairDisks? = nil
    ) throws {
        let lockFile = try segment.openLock()
        defer { Glibc.close(lockFile) }
        try process.releaseFaults()
        try disks?.abandon(process, monitor, segment)
        try NetworkGate.giveBack(
            process: process, monitor: monitor, segment: segment, injector: injector)
        try Preparation.remove(
            from: process, lockFile: lockFile, injector: injector)
        let undoing = SetAside.undo(process, segment)
        if !undoing.isEmpty { _ = try injector.run(in: process, undoing) }
        guard segment.flags.contains(.pausedByCommit) else { return }
        try monitor.cont(timeoutMilliseconds: Committer.commandTimeoutMilliseconds)
        segment.removeFlags(.pausedByCommit)
    }

    private static func whereMemoryIs(
        _ process: QEMUProcess, _ memory: GuestMemory, _ segment: Segment
    ) throws -> TakeOverFigures.Place {
        if try process.isMapped(memory, from: segment, writable: true) { return .inSegment }
        guard segment.objectBytes > 0,
            try process.isMapped(memory.blocks[0], from: RAMFiles(segment), writable: true)
        else { return .elsewhere }
        return .object
    }

    /// Afterwards the guest stands still and its memory is the segment.
    /// - Returns: when it was stopped.
    private static func moveIntoSegment(
        process: QEMUProcess, memory: GuestMemory, monitor: any Monitor, segment: Segment,
        preparation: Preparation, injector: InjectorProcess, wasRunning: Bool,
        object: MemoryObject?, progress: @escaping @Sendable (TakeOverStep) -> Void
    ) throws -> UInt64 {
        if let object {
            let same =
                try FileIdentity(descriptor: object.descriptor)
                == FileIdentity(descriptor: segment.ramDescriptor)
            precondition(!same, "memory is not moved out of its own segment")
        }
        let tracker = try PageTracker(
            process: process, memory: memory, uffd: preparation.uffd,
            pageSizeBytes: object?.pageSizeBytes ?? 4096, purpose: .dirtyPages)
        try tracker.protectAll()
        try tracker.start(epoch: Epoch(0))
        defer { tracker.stop() }
        let move = LiveMove(
            process: process, memory: memory, segment: segment, direction: .intoSegment,
            progress: { progress(.copyingMemory(percent: $0)) })
        FaultPoint.reached("takeover.protected")
        try move.copyWhileRunning(tracker: tracker)
        progress(.switching)
        if wasRunning { segment.insertFlags(.pausedByCommit) }
        FaultPoint.reached("takeover.copied")
        let stopped = MonotonicClock.nowNanoseconds()
        try monitor.stop(timeoutMilliseconds: Committer.stopTimeoutMilliseconds)
        FaultPoint.reached("takeover.stopped")
        try move.copyRest(stopping: tracker)
        _ = try injector.run(
            in: process,
            memory.mapping(of: RAMFiles(segment), writable: true)
                + memory.advising(MADV_DONTFORK))
        segment.insertFlags(.grafted)
        FaultPoint.reached("takeover.mapped")
        object?.discard()
        return stopped
    }

    /// Publishes the state in which the guest stands, and resumes it if it ran.
    private func firstCommit(wasRunning: Bool) throws {
        if wasRunning {
            _ = try committer.commitStopped(began: MonotonicClock.nowNanoseconds(), .resume)
        } else {
            _ = try committer.commitStandingStill()
        }
    }
}
