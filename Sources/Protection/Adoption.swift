import CLinux
import Glibc
import Hypervisor
import MemoryPool
import Model

extension PrimaryDriver {
    /// Takes over a primary whose ftvmd died: fetches the userfaultfd and the state file back from the QEMU, learns from
    /// the undo log which pages the dead tracker had logged (only those can be unprotected), wakes the vCPUs that wait,
    /// and resumes a guest that the dead one had stopped in the middle of a commit.
    ///
    /// The tracker comes first and without a word to QEMU: its main thread, which serves the monitor, may itself be
    /// waiting for a protected page, or for somebody to empty the gate's sockets. `connect` is called when that has been
    /// seen to.
    /// - Parameters:
    ///   - layout: which RAM blocks are in the segment; nil: the main memory and nothing else.
    ///   - nics: all NICs of the guest.
    /// - Throws: `.failedPrecondition` when the QEMU does not carry what a primary carries: then it is not one.
    package static func adopt(
        process: QEMUProcess, segment: Segment, layout: RAMLayout? = nil,
        generation: Generation, injector: InjectorProcess, nics: [GuestNIC] = [],
        disks: PairDisks? = nil, connect: () throws -> any Monitor
    ) throws -> PrimaryDriver {
        let lockFile = try segment.openLock()
        defer { Glibc.close(lockFile) }
        guard let preparation = try Preparation.found(in: process, lockFile: lockFile),
            let memory = try process.memory(mappedFrom: segment, layout: layout),
            segment.position.epoch.number > 0
        else {
            throw FtvmError(
                .failedPrecondition,
                "QEMU (process \(process.processID)) is not a primary that can be adopted",
                cause: "it does not run on the segment, or has no page tracker")
        }
        do {
            let tracking = try Tracking(
                process: process, memory: memory, segment: segment, preparation: preparation,
                generation: generation)
            tracking.tracker.adopt(touched: try segment.uncommittedPages())
            try tracking.tracker.start(epoch: segment.position.epoch.next)
            FaultPoint.reached("adoption.tracking")
            do {
                let found = try foundGate(process, segment, generation)
                // Until the successor is ready: QEMU's main thread may wait for it again at any time.
                let pump = try found.map { try GatePump($0) }
                defer { pump?.stop() }
                // QEMU's main thread waits for requests to its disks as well, while it stops the guest.
                try disks?.serve(generation)
                disks?.resume(
                    from: try segment.latestCommit()?.logs, released: segment.releasedOutput)
                let monitor = try connect()
                FaultPoint.reached("adoption.connected")
                try adoptCopied(layout, process, monitor, tracking.tracker)
                let gate = try NetworkGate.settled(
                    found, pump, process: process, monitor: monitor, segment: segment,
                    generation: generation, nics: nics, injector: injector)
                let driver = try PrimaryDriver(
                    process: process, memory: memory, segment: segment, monitor: monitor,
                    preparation: preparation, generation: generation, gate: gate, disks: disks,
                    tracking: tracking)
                if segment.flags.isSuperset(of: [.pausedByCommit, .pausedByUser]) {
                    // A hand-over that came to nothing, of a guest that its user had paused: it stays so.
                    segment.removeFlags(.pausedByCommit)
                } else if segment.flags.contains(.pausedByCommit) {
                    try driver.committer.resume()
                }
                FaultPoint.reached("adoption.resumed")
                pump?.stop()
                _ = try gate?.release(upTo: disks?.releasable() ?? .max)
                return driver
            } catch {
                disks?.close(endingPlugin: false)
                tracking.tracker.stop()
                throw error
            }
        } catch {
            preparation.closeAll()
            throw error
        }
    }

    /// Where copied blocks are only QEMU can say. Until then the tracker lets everybody through who writes to them.
    private static func adoptCopied(
        _ layout: RAMLayout?, _ process: QEMUProcess, _ monitor: any Monitor, _ tracker: PageTracker
    ) throws {
        guard let layout, layout.places.contains(where: \.isCopied) else { return }
        try tracker.adopt(
            copied: GuestMemory.copiedBlocks(process.ramBlocks(monitor: monitor), layout: layout))
    }

    /// The gate that a former ftvmd has put into the QEMU; nil when there is none.
    private static func foundGate(
        _ process: QEMUProcess, _ segment: Segment, _ generation: Generation
    ) throws -> NetworkGate? {
        // A segment of format 1.0 has no room for frames: its guest goes on as it was protected.
        guard segment.outputLog != nil, let attachment = try GateAttachment.found(in: process)
        else { return nil }
        return try NetworkGate(attachment, segment: segment, generation: generation)
    }
}
