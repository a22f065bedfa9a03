import CLinux
import Glibc
import Hypervisor
import Injection
import MemoryPool
import Model

/// Moves a running guest's memory without a migration: pre-copy with our own page tracker, between the QEMU's
/// mapping and the segment, while the same QEMU goes on. (QEMU before 9.0 under TCG hands over stale pages of a
/// busy guest in its own migration; and a move in place needs no second QEMU at all.)
package struct LiveMove {
    enum Direction {
        /// From the QEMU's private memory into the segment.
        case intoSegment
        /// From the segment into private memory of the QEMU at this address, laid out as the segment is.
        case outOfSegment(target: UInt64)
    }

    let process: QEMUProcess
    let memory: GuestMemory
    let segment: Segment
    let direction: Direction
    /// What is before it in the segment is not moved.
    var from: UInt64 = 0
    /// Called with 0...100 now and then.
    let progress: @Sendable (Int) -> Void

    /// Copied at a time; also how often progress is told.
    private static let chunkBytes: UInt64 = 4 << 20
    /// With this many pages left, the rest is copied while the guest stands still (about 1 ms).
    private static let fewPages: UInt64 = 512
    /// Passes after which a guest that writes faster than we copy is stopped all the same.
    private static let passLimit = 12

    /// Copies all memory while the guest runs, then again what it touched, until little is left or it gets no
    /// less. The tracker must be running for `.dirtyPages`, everything protected.
    func copyWhileRunning(tracker: PageTracker) throws {
        var done = from
        while done < memory.lengthBytes {
            let length = min(Self.chunkBytes, memory.lengthBytes - done)
            try copy(offset: done, length: length)
            done += length
            progress(Int(done * 100 / memory.lengthBytes))
        }
        var previous = UInt64.max
        for _ in 0..<Self.passLimit {
            let touched = tracker.touchedPages
            if touched <= Self.fewPages || touched >= previous { break }
            previous = touched
            try copyTouched(tracker: tracker)
        }
    }

    /// Copies the pages touched since the last call. Those pages are protected again first: what is written
    /// during the copy counts for the next call.
    private func copyTouched(tracker: PageTracker) throws {
        var pages: [UInt64] = []
        _ = try tracker.withLock {
            try tracker.protectTouchedLocked { page, _ in pages.append(page) }
        }
        try copy(pages: pages, sizeBytes: tracker.pageSizeBytes)
    }

    /// Copies the rest, while the guest stands still, and stops the tracker. The guest may have been resumed behind our
    /// back (libvirt lets anybody, since it shows it as paused). So the tracker ends first: with nobody to let a write
    /// through, the pages that are protected then stay as they are copied, and the guest waits at its first write until
    /// its memory has been moved and whoever is responsible for that wakes it.
    func copyRest(stopping tracker: PageTracker) throws {
        tracker.stop()
        try copyTouched(tracker: tracker)
    }

    private func copy(pages: [UInt64], sizeBytes size: UInt64) throws {
        var index = 0
        while index < pages.count {
            var end = index + 1
            while end < pages.count, pages[end] == pages[end - 1] + 1 { end += 1 }
            try copy(offset: pages[index] * size, length: UInt64(end - index) * size)
            index = end
        }
    }

    private func copy(offset: UInt64, length: UInt64) throws {
        let start = max(offset, from)
        guard offset + length > start else { return }
        try memory.forEachRange(offset: start, length: offset + length - start) {
            address, offset, length in
            switch direction {
            case .intoSegment: try copy(offset: offset, address: address, length: length)
            case .outOfSegment(let target):
                try copy(offset: offset, address: target + offset, length: length)
            }
        }
    }

    private func copy(offset: UInt64, address: UInt64, length: UInt64) throws {
        var done: UInt64 = 0
        while done < length {
            let local = segment.ram + Int(offset + done)
            let left = Int(length - done)
            let result =
                switch direction {
                case .intoSegment:
                    ftvm_process_vm_read(process.processID, local, address + done, left)
                case .outOfSegment:
                    ftvm_process_vm_write(process.processID, local, address + done, left)
                }
            guard result > 0 else {
                throw FtvmError(
                    .unavailable, "cannot copy memory of QEMU (process \(process.processID))",
                    cause: result < 0 ? String(cString: strerror(Int32(-result))) : "it has ended")
            }
            done += UInt64(result)
        }
    }
}
