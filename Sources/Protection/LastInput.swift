import CLinux
import Glibc
import MemoryPool
import Model

/// Goes on reading what the network sends to a primary whose QEMU runs nothing any more, and keeps it for the next one.
///
/// A client that was answered last thing asks its next question a moment later, and until the next primary has told the
/// network where it is, that question goes to the dead one's tap (which lives as long as we have it open). Kept, it is
/// answered as soon as the guest goes on; lost, the client repeats it after TCP's retransmission time, 200 ms at the
/// soonest.
///
/// The next primary says when to end (`close`), and waits until the lock is free: then the log is its own. When this
/// `ftvmd` dies the lock is free as well. After `limit` it ends by itself: with nobody to go on the pair has other sorrows.
package final class LastInput: @unchecked Sendable {
    private static let limitNanoseconds: UInt64 = 2_000_000_000
    /// The next primary waits for no longer than this; the reader looks every millisecond.
    private static let patienceNanoseconds: UInt64 = 50_000_000

    private let gate: NetworkGate
    private var lock: SegmentLock?

    private init(_ gate: NetworkGate, _ lock: SegmentLock) {
        self.gate = gate
        self.lock = lock
    }

    /// Takes the gate over, and closes it in the end. Before the manager's lock is given back: whoever takes that one must
    /// find this one taken.
    package static func start(_ gate: NetworkGate) {
        gate.collectFromTaps()
        FaultPoint.reached("gate.collected-last")
        guard let lock = try? gate.segment.takeInputLock() else { return gate.close() }
        let input = LastInput(gate, lock)
        guard let thread = try? OwnThread("ftvm-input", { input.run() }) else {
            return gate.close()
        }
        thread.detach()
    }

    private func run() {
        let taps = gate.attachment.ports.map(\.tap)
        let end = MonotonicClock.nowNanoseconds() + Self.limitNanoseconds
        while !gate.segment.isInputClosed(gate.generation), MonotonicClock.nowNanoseconds() < end {
            gate.collectFromTaps()
            _ = ftvm_gate_poll(taps, Int32(min(64, taps.count)), 1)
        }
        lock = nil
        // The last one to close a tap waits for the kernel to take the interface away: 20 ms.
        gate.close()
    }

    /// The next primary's side: nobody else adds to the input log when this returns. (One that is stopped in the
    /// middle of it for longer than our patience may add one more frame; should that damage the log, frames are lost with
    /// it, as by a network.)
    package static func close(_ segment: Segment, before generation: Generation) {
        guard generation.number > 0 else { return }
        segment.closeInput(upTo: Generation(generation.number - 1))
        FaultPoint.reached("gate.input-closed")
        let end = MonotonicClock.nowNanoseconds() + patienceNanoseconds
        while (try? segment.isLocked(.input)) == true, MonotonicClock.nowNanoseconds() < end {
            usleep(100)
        }
    }
}
