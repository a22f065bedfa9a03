import CLinux
import Glibc
import Hypervisor
import Injection
import MemoryPool
import Model

/// What a promotion did about the network.
package struct GatePromotionReport: Sendable, Hashable {
    /// Committed frames that were sent, since they were not known to have left.
    package var sentFrames: UInt64 = 0
    /// Frames of the lost epoch that were given to the guest again.
    package var replayedFrames: UInt64 = 0
    /// Frames that QEMU did not take back in time.
    package var refusedFrames: UInt64 = 0
}

// MARK: - Promotion

extension NetworkGate {
    /// How long a promotion waits for QEMU to take the lost epoch's frames.
    private static let replayTimeoutNanoseconds: UInt64 = 2_000_000_000

    /// A promoted guest, its state loaded and itself standing still, gets its gate: from here on frames are held. What
    /// was committed and not known to have left goes out; what reached the guest after the commit reaches it again.
    /// - Parameter limit: the end of the output log up to which frames may leave.
    func open(
        after committed: LogPositions, upTo limit: UInt64 = .max, monitor: any Monitor
    ) throws -> GatePromotionReport {
        try attachment.setFilters(on: true, monitor: monitor)
        FaultPoint.reached("gate.promotion-switched")
        var report = GatePromotionReport()
        begin()
        let before = figures().releasedFrames
        _ = try release(upTo: limit)
        report.sentFrames = figures().releasedFrames - before
        FaultPoint.reached("gate.promotion-sent")
        // The network knows by QEMU's announcement where the guest is.
        LastInput.close(segment, before: generation)
        replay(after: committed.input, &report)
        FaultPoint.reached("gate.promotion-replayed")
        return report
    }

    private func replay(after position: UInt64, _ report: inout GatePromotionReport) {
        let deadline = MonotonicClock.nowNanoseconds() + Self.replayTimeoutNanoseconds
        let limit = inputLog.head
        var position = position
        // A port that did not take a frame whole gets no more: it would be read as the rest of that one.
        var stuck: Set<Int> = []
        while case .frame(let frame) = inputLog.frame(at: position, before: limit) {
            position = frame.end
            let nic = Self.nic(of: frame)
            guard let port = attachment.ports.first(where: { $0.nic.index == nic }),
                !stuck.contains(nic), replay(frame, to: port, deadline: deadline)
            else {
                report.refusedFrames += 1
                stuck.insert(nic)
                continue
            }
            report.replayedFrames += 1
        }
        // All of it is QEMU's before the guest runs: what comes from the network then comes after it.
        for port in attachment.ports {
            while ftvm_gate_unread(port.replay) > 0,
                MonotonicClock.nowNanoseconds() < deadline
            {
                usleep(50)
            }
        }
    }
}

// MARK: - Adoption

extension NetworkGate {
    /// The gate of a primary whose ftvmd died, as it must be: complete and switched on; gone where the pair is being
    /// disabled. `found` is there already, and `pump` empties its sockets; where that gate goes, the pump is stopped.
    static func settled(
        _ found: NetworkGate?, _ pump: GatePump?, process: QEMUProcess, monitor: any Monitor,
        segment: Segment,
        generation: Generation, nics: [GuestNIC], injector: InjectorProcess
    ) throws -> NetworkGate? {
        guard segment.outputLog != nil else { return nil }
        if segment.flags.contains(.disabling) {
            pump?.stop()
            try found?.letOut(monitor: monitor)
            try GateAttachment.remove(from: process, monitor: monitor, injector: injector)
            found?.close()
            return nil
        }
        if let found, try found.attachment.isComplete(for: nics, monitor: monitor) {
            try found.attachment.setFilters(on: true, monitor: monitor)
            return found
        }
        guard !nics.isEmpty else {
            pump?.stop()
            found?.close()
            return nil
        }
        // Half a gate: an ftvmd died while it was made or taken away. The guest stands still while it is made anew.
        let wasRunning = try monitor.status().running
        segment.insertFlags(.pausedByCommit)
        FaultPoint.reached("gate.renewing")
        try monitor.stop(timeoutMilliseconds: Committer.stopTimeoutMilliseconds)
        pump?.stop()
        // One of its ends may be closed; what the others have is saved.
        _ = try? found?.collect()
        found?.close()
        let attachment = try GateAttachment.install(
            in: process, monitor: monitor, nics: nics, injector: injector)
        let gate = try NetworkGate(attachment, segment: segment, generation: generation)
        try attachment.setFilters(on: true, monitor: monitor)
        // A guest that stood still because of us is resumed with the rest of the adoption; one that a user paused is not.
        if !wasRunning { segment.removeFlags(.pausedByCommit) }
        return gate
    }
}

// MARK: - Giving back

extension NetworkGate {
    /// How long a network that takes nothing is waited for; then the rest is lost, as on a wire that is cut.
    private static let sendTimeoutNanoseconds: UInt64 = 1_000_000_000

    /// Everything that is held goes out, and nothing is held from here on. The guest stands still (or its frames may
    /// overtake each other), and its state is not rolled back any more.
    func letOut(monitor: any Monitor) throws {
        _ = try collect()
        FaultPoint.reached("gate.giving-back")
        sendWaiting { releaseUncommitted() }
        try attachment.setFilters(on: false, monitor: monitor)
        FaultPoint.reached("gate.switched-off")
        _ = try collect()
        sendWaiting { releaseUncommitted() }
    }

    /// Sends what is committed, and waits for a slow network, but not for ever.
    func releaseWaiting(upTo limit: UInt64 = .max) throws {
        var failure: (any Error)?
        sendWaiting {
            do { return try release(upTo: limit) } catch {
                failure = error
                return true
            }
        }
        if let failure { throw failure }
    }

    private func sendWaiting(_ send: () -> Bool) {
        let deadline = MonotonicClock.nowNanoseconds() + Self.sendTimeoutNanoseconds
        while !send(), MonotonicClock.nowNanoseconds() < deadline { usleep(200) }
    }

    /// Takes the gate out of a QEMU whose guest is not, or no longer, protected, whoever made it; what it held goes
    /// out first.
    static func giveBack(
        process: QEMUProcess, monitor: any Monitor, segment: Segment, injector: InjectorProcess
    ) throws {
        if let attachment = try GateAttachment.found(in: process), !attachment.ports.isEmpty,
            segment.outputLog != nil
        {
            let gate = try NetworkGate(
                attachment, segment: segment, generation: segment.position.generation)
            defer { gate.close() }
            do {
                try gate.letOut(monitor: monitor)
            } catch let error as FtvmError where error.code == .unavailable {
                // Half a gate, whose other ends QEMU never got: it holds nothing. Were QEMU itself gone, what follows
                // would say so.
            }
        }
        try GateAttachment.remove(from: process, monitor: monitor, injector: injector)
    }
}

// MARK: - Collecting on a thread of its own

/// Empties a gate's sockets until it is told to end: while QEMU's monitor is waited for, and QEMU may wait for us.
final class GatePump: @unchecked Sendable {
    private let gate: NetworkGate
    private let ended: UnsafeMutablePointer<UInt64>
    private var thread = pthread_t()
    private var started = false

    init(_ gate: NetworkGate) throws {
        self.gate = gate
        ended = .allocate(capacity: 1)
        ended.initialize(to: 0)
        let context = Unmanaged.passRetained(self)
        let result = pthread_create(
            &thread, nil,
            { context in
                guard let context else { return nil }
                let pump = Unmanaged<GatePump>.fromOpaque(context).takeRetainedValue()
                ftvm_name_thread("ftvm-gate")
                pump.run()
                return nil
            }, context.toOpaque())
        guard result == 0 else {
            context.release()
            throw FtvmError(
                .resourceExhausted, "cannot start the thread of the network gate",
                cause: String(cString: strerror(result)))
        }
        started = true
    }

    deinit {
        precondition(!started, "a pump is stopped before it goes away")
        ended.deallocate()
    }

    private func run() {
        while ftvm_atomic_load_u64(ended) == 0 {
            // That QEMU is gone is found out by whoever waits for its monitor.
            guard (try? gate.collect()) != nil else { return }
            _ = ftvm_gate_poll(gate.descriptors, Int32(min(64, gate.descriptors.count)), 5)
        }
    }

    /// Afterwards the gate is the caller's alone.
    func stop() {
        guard started else { return }
        ftvm_atomic_store_u64(ended, 1)
        pthread_join(thread, nil)
        started = false
    }
}
