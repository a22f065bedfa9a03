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
    /// waiting for a protected page. `connect` is called when that has been seen to.
    /// - Throws: `.failedPrecondition` when the QEMU does not carry what a primary carries: then it is not one.
    package static func adopt(
        process: QEMUProcess, segment: Segment, generation: Generation,
        connect: () throws -> any Monitor
    ) throws -> PrimaryDriver {
        guard let preparation = try Preparation.found(in: process),
            let memory = try process.memory(mappedFrom: segment),
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
                let driver = try PrimaryDriver(
                    process: process, memory: memory, segment: segment, monitor: connect(),
                    preparation: preparation, generation: generation, tracking: tracking)
                if segment.flags.contains(.pausedByCommit) { try driver.committer.resume() }
                return driver
            } catch {
                tracking.tracker.stop()
                throw error
            }
        } catch {
            preparation.closeAll()
            throw error
        }
    }
}
