import CLinux
import Dispatch
import Foundation
import Glibc
import Model
import Synchronization

/// What one slot of a pool's heartbeat file says at the moment of reading.
package struct HeartbeatReading: Sendable, Hashable {
    package let host: HostName
    /// Which start of that host's ftvmd it is.
    package let incarnation: UInt64
    /// Grows with every beat; only its changes mean something.
    package let counter: UInt64
    /// A living process holds the slot. False is a proof, on one kernel, that the ftvmd of this
    /// incarnation is gone; true says nothing about whether it works.
    package let processHoldsSlot: Bool
    /// The index of the slot, 0...63.
    package let slot: Int

    package init(
        host: HostName, incarnation: UInt64, counter: UInt64, processHoldsSlot: Bool, slot: Int = 0
    ) {
        self.slot = slot
        self.host = host
        self.incarnation = incarnation
        self.counter = counter
        self.processHoldsSlot = processHoldsSlot
    }
}

/// This host's heart in one pool: a slot of the pool's `heartbeats` file, a thread that raises its
/// counter, and eyes for the others'. Every host of the cluster maps the same file.
///
/// The cluster store says which slot is whose (`HeartbeatSlots`). A lock on the slot tells processes
/// under one kernel besides that it is in use; the kernel takes it away when the process is gone, so
/// a SIGKILL at any moment leaves a slot that the next one may claim.
package final class PoolHeartbeat: @unchecked Sendable {
    // @unchecked: `file` is used by the beating thread (one atomic word) and by callers under
    // `state`'s lock.
    private struct State {
        var beating: Beating?
        var started = false
        var released = false
    }

    private let file: HeartbeatFile
    private let state = Mutex(State())
    /// Who has taken note of whose heartbeat.
    package let notes: HeartbeatNotes
    package let host: HostName
    package let incarnation: UInt64
    /// The index of this host's slot, 0...63.
    package let slot: Int

    /// Opens the heartbeat file at `path` (making it when it does not exist) and claims a slot.
    /// - Parameters:
    ///   - path: `<pool directory>/heartbeats` for a pool on tmpfs; for other kinds a file on a
    ///     tmpfs that every host sees.
    ///   - incarnation: raised with every start of this host's ftvmd; not 0.
    ///   - assigned: the slot that is this host's, whatever the file says; nil: one that nobody
    ///     holds, which only locks under one kernel can tell.
    /// - Throws: `conflict` when another living ftvmd beats under the same host name, or in the
    ///   assigned slot; `resourceExhausted` when all slots are held; `invalidArgument` for a name
    ///   over 63 bytes.
    package static func claimSlot(
        path: String, host: HostName, incarnation: UInt64, assigned: Int? = nil
    ) throws(FtvmError) -> PoolHeartbeat {
        guard (1...HeartbeatLayout.nameBytesMaximum).contains(host.text.utf8.count) else {
            throw FtvmError(
                .invalidArgument, "the host name \(host) does not fit into a heartbeat slot",
                cause: "it has \(host.text.utf8.count) bytes, of at most "
                    + "\(HeartbeatLayout.nameBytesMaximum)",
                advice: "choose a shorter `host` in this host's configuration")
        }
        guard incarnation != 0 else {
            throw FtvmError(.invalidArgument, "a host's incarnation is not 0")
        }
        let file = try HeartbeatFile(path: path)
        let slot = try file.withHeaderLock { () throws(FtvmError) -> Int in
            let slot =
                if let assigned {
                    try take(assigned, file, host)
                } else {
                    try chooseSlot(file, host)
                }
            FaultPoint.reached("heartbeat.claimed")
            file.publish(slot: slot, host: host, incarnation: incarnation)
            return slot
        }
        let notes = try HeartbeatNotes(path: path + ".noted")
        notes.clear(row: slot)
        return PoolHeartbeat(file, notes, slot, host, incarnation)
    }

    private init(
        _ file: HeartbeatFile, _ notes: HeartbeatNotes, _ slot: Int, _ host: HostName,
        _ incarnation: UInt64
    ) {
        self.notes = notes
        self.file = file
        self.slot = slot
        self.host = host
        self.incarnation = incarnation
    }

    /// Whose names are in which slots of the file, which is made when it does not exist.
    package static func names(path: String) throws(FtvmError) -> [Int: HostName] {
        let file = try HeartbeatFile(path: path)
        var names: [Int: HostName] = [:]
        for index in 0..<HeartbeatLayout.slotCount { names[index] = file.read(slot: index)?.host }
        return names
    }

    /// How many hosts a pool serves.
    package static var slotCount: Int { HeartbeatLayout.slotCount }

    /// Locks the slot, and takes what an earlier ftvmd of this host has left in others out of sight.
    private static func take(
        _ slot: Int, _ file: HeartbeatFile, _ host: HostName
    ) throws(FtvmError) -> Int {
        guard try file.lock(slot: slot) else {
            let holder = file.read(slot: slot)?.host
            throw FtvmError(
                .conflict,
                holder == host
                    ? "another ftvmd beats as host \(host)"
                    : "another ftvmd beats in the slot of host \(host)",
                cause: "slot \(slot) of \(file.path) is held by a living process of host "
                    + "\(holder?.text ?? "unknown")",
                advice: "stop it, or give this host a name of its own; hosts with different "
                    + "stores cannot share a pool")
        }
        for index in 0..<HeartbeatLayout.slotCount
        where index != slot && file.read(slot: index)?.host == host {
            guard try file.lock(slot: index) else { continue }
            file.withdraw(slot: index)
            file.unlock(slot: index)
        }
        return slot
    }

    /// Locks and returns a slot: the one that this host had before, else one never used, else that
    /// of a host that is gone (its name is evidence that it is gone, so that is taken last).
    private static func chooseSlot(
        _ file: HeartbeatFile, _ host: HostName
    ) throws(FtvmError) -> Int {
        let slots = (0..<HeartbeatLayout.slotCount).map { ($0, file.read(slot: $0)?.host) }
        for (index, name) in slots where name == host {
            guard try file.lock(slot: index) else {
                throw FtvmError(
                    .conflict, "another ftvmd beats as host \(host)",
                    cause: "slot \(index) of \(file.path) is held by a living process",
                    advice: "stop it, or give this host a name of its own")
            }
            return index
        }
        for (index, name) in slots where name == nil {
            if try file.lock(slot: index) { return index }
        }
        for (index, _) in slots {
            if try file.lock(slot: index) { return index }
        }
        throw FtvmError(
            .resourceExhausted, "all \(HeartbeatLayout.slotCount) heartbeat slots are taken",
            cause: file.path, advice: "a pool serves at most that many hosts")
    }

    /// Raises the counter once.
    package func beat() {
        _ = ftvm_atomic_fetch_add_u64(file.counter(slot), 1)
    }

    /// Starts a thread that beats once per period until `release`.
    /// - Parameters:
    ///   - periodNanoseconds: at least 1 ms.
    ///   - permit: asked before each beat, must not block; false skips the beat. So a daemon that
    ///     is stuck falls silent although this thread still runs.
    package func startBeating(
        periodNanoseconds: UInt64, permit: @escaping @Sendable () -> Bool = { true }
    ) {
        precondition(periodNanoseconds >= 1_000_000, "a heartbeat's period is at least 1 ms")
        state.withLock { state in
            precondition(!state.started && !state.released, "beating is started once")
            state.started = true
            let beating = Beating(
                file: file, slot: slot, periodNanoseconds: periodNanoseconds, permit: permit)
            state.beating = beating
            UrgentThread.start("ftvm-heartbeat") { beating.run() }
        }
    }

    /// All published slots, this host's included.
    package func read() throws(FtvmError) -> [HeartbeatReading] {
        var readings: [HeartbeatReading] = []
        for index in 0..<HeartbeatLayout.slotCount {
            guard let found = file.read(slot: index) else { continue }
            // A lock of our own open file description is not seen by the question.
            let ours = index == slot && !state.withLock { $0.released }
            var held = true
            if !ours {
                held = try file.isHeldElsewhere(slot: index)
            }
            // Between the two looks the slot may have got a new owner: its lock proves nothing
            // about the incarnation that was read, so it is left out until the next reading.
            guard file.read(slot: index)?.incarnation == found.incarnation else { continue }
            readings.append(
                HeartbeatReading(
                    host: found.host, incarnation: found.incarnation, counter: found.counter,
                    processHoldsSlot: held, slot: index))
        }
        return readings
    }

    /// Stops beating and gives the slot back: an orderly end. The slot keeps this host's name, so
    /// the others see that its ftvmd is gone. May be called more than once.
    package func release() {
        let beating = state.withLock { state -> Beating? in
            defer { state.beating = nil }
            return state.beating
        }
        // Before the slot is free: a late beat must not land in the next owner's slot.
        beating?.stop()
        state.withLock { state in
            guard !state.released else { return }
            state.released = true
            file.unlock(slot: slot)
        }
    }

    deinit { release() }
}

/// The beating thread's own things. It keeps the mapping alive until it has ended.
private final class Beating: @unchecked Sendable {
    // @unchecked: of `file` the thread touches one atomic word only.
    private let file: HeartbeatFile
    private let slot: Int
    private let periodNanoseconds: UInt64
    private let permit: @Sendable () -> Bool
    private let stopped = Atomic<Bool>(false)
    private let wake = DispatchSemaphore(value: 0)
    private let ended = DispatchSemaphore(value: 0)

    init(
        file: HeartbeatFile, slot: Int, periodNanoseconds: UInt64,
        permit: @escaping @Sendable () -> Bool
    ) {
        self.file = file
        self.slot = slot
        self.periodNanoseconds = periodNanoseconds
        self.permit = permit
    }

    /// Returns when the thread beats no more; called once.
    func stop() {
        stopped.store(true, ordering: .sequentiallyConsistent)
        wake.signal()
        ended.wait()
    }

    func run() {
        // On Linux this is CLOCK_MONOTONIC.
        var next = DispatchTime.now().uptimeNanoseconds
        while !stopped.load(ordering: .sequentiallyConsistent) {
            if permit() { _ = ftvm_atomic_fetch_add_u64(file.counter(slot), 1) }
            // After having been stopped for long, go on from now instead of beating in a burst.
            next = max(next + periodNanoseconds, DispatchTime.now().uptimeNanoseconds)
            _ = wake.wait(timeout: DispatchTime(uptimeNanoseconds: next))
        }
        ended.signal()
    }
}
