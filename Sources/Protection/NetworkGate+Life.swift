import CLinux
import Glibc
import Hypervisor
import Injection
import MemoryPool
import Model

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
        // One that stood still because of us already, in a commit that the dead one was at, is resumed with the rest of the
        // adoption; one that a user paused is not.
        if try monitor.status().running { segment.insertFlags(.pausedByCommit) }
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
    private var thread: OwnThread?

    init(_ gate: NetworkGate) throws {
        self.gate = gate
        ended = .allocate(capacity: 1)
        ended.initialize(to: 0)
        thread = try OwnThread("ftvm-gate") { self.run() }
    }

    deinit {
        precondition(thread == nil, "a pump is stopped before it goes away")
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
        guard let thread else { return }
        ftvm_atomic_store_u64(ended, 1)
        thread.join()
        self.thread = nil
    }
}
