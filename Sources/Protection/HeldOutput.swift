import Hypervisor
import MemoryPool
import Model

/// A primary's gate, with what is known of the frames of the running epoch. Whoever makes commits uses it, on one thread
/// at a time; while QEMU is waited for it empties the gate's sockets, for QEMU's main thread may be the one that waits.
final class HeldOutput: MonitorAttendant {
    private let gate: any PacketGate
    private let disks: PairDisks?
    /// How much the running epoch's frames want to leave.
    private(set) var demand = GateDemand.none
    /// Frames and bytes that the running epoch has made so far.
    private(set) var epochFrames: UInt64 = 0
    var epochBytes: UInt64 { gate.positions.output &- committedOutput }
    /// Frames that have left.
    private(set) var releasedFrames: UInt64 = 0
    /// Not everything that is committed has left yet.
    private(set) var isReleasing = false

    private var committedOutput: UInt64
    /// When the first frame of the running epoch came.
    private var firstArrival: UInt64?
    /// The same of an epoch that is closed and not yet published.
    private var closed: (frames: UInt64, demand: GateDemand, firstArrival: UInt64?) = (
        0, .none, nil
    )
    /// When the last frame came, of any epoch.
    private(set) var lastArrival: UInt64?
    /// When its last data came: more than acknowledgements.
    private(set) var lastData: UInt64?
    private static let leastDataBytes: UInt64 = 1 << 10
    /// The same of the oldest committed epoch of which nothing has left yet.
    private var firstWaiting: UInt64?
    /// How long that frame had to wait, until somebody takes it.
    private var hold: UInt64?
    private var failure: (any Error)?

    init(_ gate: any PacketGate, _ disks: PairDisks? = nil) {
        self.gate = gate
        self.disks = disks
        committedOutput = gate.positions.output
    }

    /// None once the gate has failed: it stays readable then.
    var descriptors: [Int32] { failure == nil ? gate.descriptors : [] }

    func attend() {
        do { try collect() } catch {}
    }

    /// Takes what waits, without blocking.
    /// - Throws: `.unavailable` when QEMU is gone, from then on.
    func collect() throws {
        if let failure { throw failure }
        let before = gate.heldFrames
        let start = gate.positions.output
        do {
            demand = max(demand, try gate.collect())
        } catch {
            failure = error
            throw error
        }
        let arrived = gate.heldFrames &- before
        guard arrived > 0 else { return }
        epochFrames += arrived
        let now = MonotonicClock.nowNanoseconds()
        if firstArrival == nil { firstArrival = now }
        lastArrival = now
        if gate.positions.output &- start >= Self.leastDataBytes { lastData = now }
    }

    var heldFrames: UInt64 { gate.heldFrames }

    /// The ends of the logs: with the guest stopped and everything collected, those of its epoch.
    var positions: LogPositions { gate.positions }

    /// What comes from here on is the next epoch's.
    func closeEpoch() {
        closed = (epochFrames, demand, firstArrival)
        (epochFrames, demand, firstArrival, lastData) = (0, .none, nil, nil)
    }

    /// It goes on after all.
    func reopenEpoch() {
        epochFrames += closed.frames
        demand = max(demand, closed.demand)
        firstArrival = closed.firstArrival ?? firstArrival
        closed = (0, .none, nil)
    }

    /// The closed epoch, which ended at these positions, has been published.
    func published(_ positions: LogPositions) {
        committedOutput = positions.output
        if firstWaiting == nil { firstWaiting = closed.firstArrival }
        isReleasing = true
    }

    /// Sends what is committed, as far as the network takes it and what the disks have promised is on stable storage.
    func release() throws {
        guard isReleasing else { return }
        let before = gate.heldFrames
        let limit = disks?.releasable()
        let isAllSent = try gate.release(upTo: limit ?? .max)
        isReleasing = !isAllSent || disks?.isHolding ?? false
        let left = before &- gate.heldFrames
        releasedFrames += left
        guard left > 0, let first = firstWaiting else { return }
        hold = MonotonicClock.nowNanoseconds() - first
        firstWaiting = nil
    }

    /// How long the first frame of an epoch had to wait, once for each epoch.
    func takeHold() -> UInt64? {
        defer { hold = nil }
        return hold
    }
}
