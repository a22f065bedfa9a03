import CLinux
import Glibc
import Hypervisor
import Injection
import MemoryPool
import Model

/// What a promotion did and how long each part took, in nanoseconds.
package struct PromotionReport: Sendable, Hashable {
    package let rollback: RollbackReport
    /// Proof that the old primary is gone, and raising the segment's generation.
    package private(set) var lockNanoseconds: UInt64 = 0
    package var rollbackNanoseconds: UInt64 = 0
    package var injectionNanoseconds: UInt64 = 0
    package var protectionNanoseconds: UInt64 = 0
    package var loadNanoseconds: UInt64 = 0
    /// Switching the gate on, sending and replaying.
    package var gateNanoseconds: UInt64 = 0
    package var gate = GatePromotionReport()
    package var resumeNanoseconds: UInt64 = 0
    /// From the beginning of the promotion to the guest running.
    package var totalNanoseconds: UInt64 = 0
    package var firstCommitNanoseconds: UInt64 = 0

    /// What the caller needed before the promotion proper.
    package mutating func add(lockNanoseconds: UInt64) {
        self.lockNanoseconds = lockNanoseconds
        totalNanoseconds += lockNanoseconds
    }
}

extension PrimaryDriver {
    /// Makes a waiting secondary the primary (DESIGN section 4, steps 4 to 7). The caller has raised the generation in
    /// the store and in the segment and holds the primary lock, which is the proof that the old primary is gone.
    ///
    /// May be repeated on a fresh waiting QEMU after a death at any point: the undo log is only forgotten by the
    /// first commit under the new generation.
    /// - Parameter machine: the full name of the machine type.
    package static func promote(
        _ secondary: WaitingSecondary, segment: Segment, generation: Generation, lock: Int32,
        machine: String, injector: InjectorProcess
    ) throws -> (PrimaryDriver, PromotionReport) {
        precondition(segment.position.generation == generation, "the generation is raised first")
        var clock = StepClock()
        guard let record = try segment.latestCommit() else {
            throw FtvmError(
                .failedPrecondition, "the segment has no commit to go on from",
                cause: "the primary was lost before its first commit")
        }
        let rollback = try segment.rollBack()
        segment.cutOutput(to: record.logs)
        try CopiedBlocks.restore(
            secondary.memory.copied, of: secondary.process, from: segment)
        // Before a frame is written that nobody may see yet.
        try secondary.disks?.promote(record, generation)
        secondary.disks?.resume(from: record.logs, released: segment.releasedOutput)
        FaultPoint.reached("promotion.rolled-back")
        var report = PromotionReport(rollback: rollback)
        report.rollbackNanoseconds = clock.step()
        let stream = try segment.withDeviceState(of: record) {
            try DeviceStateStream.complete($0, machine: machine)
        }
        let preparation = try Preparation.install(
            in: secondary.process, lock: lock, injector: injector,
            savesInPassing: secondary.monitor.savesInPassing,
            mapping: secondary.memory.mapping(of: RAMFiles(segment), writable: true))
        segment.insertFlags(.grafted)
        FaultPoint.reached("promotion.writable")
        report.injectionNanoseconds = clock.step()
        let driver: PrimaryDriver
        do {
            driver = try PrimaryDriver(
                process: secondary.process, memory: secondary.memory, segment: segment,
                monitor: secondary.monitor, preparation: preparation, generation: generation,
                gate: secondary.gate(segment, generation), disks: secondary.disks)
        } catch {
            preparation.closeAll()
            throw error
        }
        do {
            try driver.goOn(stream: stream, monitor: secondary.monitor, &report, &clock)
        } catch {
            driver.close()
            throw error
        }
        return (driver, report)
    }

    private func goOn(
        stream: [UInt8], monitor: any Monitor, _ report: inout PromotionReport,
        _ clock: inout StepClock
    ) throws {
        // Tracked from before the first write of the new primary: loading may write guest memory already.
        tracker.withLock { tracker.copied?.areCommitted() }
        try tracker.protectAll()
        try tracker.start(epoch: report.rollback.commit.epoch.next)
        report.protectionNanoseconds = clock.step()
        try load(stream: stream, monitor: monitor)
        FaultPoint.reached("promotion.loaded")
        report.loadNanoseconds = clock.step()
        if let gate {
            // QEMU's announcement of the loaded guest has passed the gate while it was off.
            report.gate = try gate.open(
                after: report.rollback.commit.logs, upTo: disks?.releasable() ?? .max,
                monitor: monitor)
        }
        report.gateNanoseconds = clock.step()
        segment.removeFlags(.pausedByCommit)
        if !segment.flags.contains(.pausedByUser) {
            try monitor.cont(timeoutMilliseconds: Committer.commandTimeoutMilliseconds)
        }
        FaultPoint.reached("promotion.running")
        report.resumeNanoseconds = clock.step()
        report.totalNanoseconds = clock.total()
        _ = try committer.commit()
        FaultPoint.reached("promotion.committed")
        report.firstCommitNanoseconds = clock.step()
        markCold()
    }

    /// Feeds the device state to the waiting QEMU and waits until it has been loaded.
    private func load(stream: [UInt8], monitor: any Monitor) throws {
        let file = ftvm_memory_file("ftvm-incoming")
        guard file >= 0 else {
            throw FtvmError(
                .resourceExhausted, "cannot make a memory file for the device state",
                cause: String(cString: strerror(-file)))
        }
        defer { Glibc.close(file) }
        let written = stream.withUnsafeBytes { pwrite(file, $0.baseAddress, $0.count, 0) }
        guard written == stream.count else {
            throw FtvmError(
                .resourceExhausted, "cannot write the device state to a memory file",
                cause: String(cString: strerror(errno)))
        }
        try monitor.giveDescriptor(file, name: "ftvm-incoming")
        try monitor.loadIncoming(
            uri: "fd:ftvm-incoming", timeoutMilliseconds: Committer.commandTimeoutMilliseconds)
    }
}

/// Time of consecutive steps.
struct StepClock {
    private let began = MonotonicClock.nowNanoseconds()
    private var last = MonotonicClock.nowNanoseconds()

    mutating func step() -> UInt64 {
        let now = MonotonicClock.nowNanoseconds()
        defer { last = now }
        return now - last
    }

    func total() -> UInt64 { MonotonicClock.nowNanoseconds() - began }
}
