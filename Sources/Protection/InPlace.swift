import CLinux
import Glibc
import Hypervisor
import Injection
import MemoryPool
import Model

/// What a take-over did.
package struct TakeOverFigures: Sendable, Hashable {
    /// Where the guest's memory was.
    package enum Place: String, Sendable {
        /// In private memory of its QEMU, or in an object that the pool cannot keep: it was moved.
        case elsewhere
        /// The main memory was in the segment's memory object, and stayed there.
        case object
        /// All of it was in the segment, left there by an earlier try.
        case inSegment
    }

    /// From asking QEMU to stop the guest to the guest running again.
    package let stoppedNanoseconds: UInt64
    package let place: Place
}

/// Adopts a guest's main memory where it is: the segment's memory object is the very file that its QEMU has mapped, and is
/// tracked from before the guest is stopped. Only the other RAM blocks (video memory, ROMs) are moved, some MiB, while
/// it stands still.
struct InPlace {
    let tracking: PrimaryDriver.Tracking
    private let process: QEMUProcess
    private let memory: GuestMemory
    private let segment: Segment

    /// Those that are not in the segment yet: an earlier try may have got so far.
    private let others: [GuestMemory.Block]

    /// Tracks the main memory from here on. What is logged before the first commit is freed by it.
    init(
        process: QEMUProcess, memory: GuestMemory, segment: Segment, preparation: Preparation,
        generation: Generation
    ) throws {
        self.process = process
        self.memory = memory
        self.segment = segment
        let files = RAMFiles(segment)
        others = try memory.blocks.dropFirst().filter {
            try !process.isMapped($0, from: files, writable: true)
        }
        tracking = try PrimaryDriver.Tracking(
            process: process, memory: memory, segment: segment, preparation: preparation,
            generation: generation)
        // The others as well, where they are now: what is written to them from here on is known, and copied again.
        try tracking.tracker.protect(memory.blocks)
        try tracking.tracker.start(epoch: segment.position.epoch.next)
        FaultPoint.reached("takeover.protected")
    }

    /// Afterwards the guest stands still and all of its memory is the segment, and tracked.
    /// - Returns: when it was stopped.
    func join(
        monitor: any Monitor, injector: InjectorProcess, wasRunning: Bool,
        progress: @escaping @Sendable (PrimaryDriver.TakeOverStep) -> Void
    ) throws -> UInt64 {
        do {
            progress(.switching)
            for block in others { try copy(block.offset, block.lengthBytes) }
            let aside = try SetAside.operations(process, segment)
            defer { if let aside { close(aside.file) } }
            if wasRunning { segment.insertFlags(.pausedByCommit) }
            FaultPoint.reached("takeover.copied")
            let stopped = MonotonicClock.nowNanoseconds()
            try monitor.stop(timeoutMilliseconds: Committer.stopTimeoutMilliseconds)
            FaultPoint.reached("takeover.stopped")
            // Somebody may have resumed the guest. Whoever writes to a block from its last copy on waits, until it is mapped.
            try tracking.tracker.withLock {
                try copyTouchedLocked()
                _ = try injector.run(
                    in: process,
                    memory.mapping(of: RAMFiles(segment), writable: true, blocks: others)
                        + memory.advising(MADV_DONTFORK, blocks: others)
                        + (aside?.operations ?? []))
            }
            try tracking.tracker.protect(others)
            _ = ftvm_uffd_wake_all(tracking.tracker.uffd)
            try tracking.tracker.protectCopied()
            segment.insertFlags(.grafted)
            FaultPoint.reached("takeover.mapped")
            return stopped
        } catch {
            tracking.tracker.stop()
            throw error
        }
    }

    /// What was written to the other blocks since they were copied; it is protected again first.
    private func copyTouchedLocked() throws {
        let size = UInt64(segment.pageSizeBytes)
        for page in tracking.tracker.touchedLocked(from: segment.objectBytes / size) {
            try tracking.tracker.protectLocked(page)
            try copy(page * size, size)
        }
    }

    private func copy(_ offset: UInt64, _ length: UInt64) throws {
        for block in others where block.offset < offset + length && block.end > offset {
            let start = max(block.offset, offset)
            let count = Int(min(block.end, offset + length) - start)
            let read = ftvm_process_vm_read(
                process.processID, segment.ram + Int(start),
                block.hostAddress + (start - block.offset), count)
            guard read == count else {
                throw FtvmError(
                    .unavailable,
                    "cannot copy RAM blocks of QEMU (process \(process.processID))",
                    cause: read < 0 ? String(cString: strerror(Int32(-read))) : "it has ended")
            }
        }
    }
}
