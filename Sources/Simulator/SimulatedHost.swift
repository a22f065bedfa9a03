import Model
import PairLogic

/// A QEMU on some host.
struct SimulatedQEMU {
    enum Mode { case waiting, running, paused }
    let id: Int
    var mode: Mode
    /// The generation under which it may commit; nil: an ordinary domain, or a waiting QEMU.
    var generation: Generation?
    /// The last epoch that it knows of: the one it was loaded from or committed itself.
    var epoch = 0
    /// The segment that a waiting QEMU was made for: of another one it cannot load the state.
    var segment: Int?
}

/// One host: a failure domain.
final class SimulatedHost {
    let index: Int
    let name: HostName
    let kernel: Int
    var isUp = true
    /// Everything on it stands still until then.
    var pausedUntil: UInt64 = 0
    /// Everything on it takes that many times as long.
    var slowness: UInt64 = 1
    var isPoolVisible = true
    /// Its beats get into the pool.
    var beatsInPool = true
    /// Parts per million that its clock is fast, and what it began with, in nanoseconds.
    var clockRate: Int64 = 0
    var clockOffset: UInt64 = 0
    /// Wall clock ahead of the truth, in nanoseconds: nothing may depend on it.
    var wallOffset: Int64 = 0
    var incarnation: UInt64 = 0
    var agent: SimulatedAgent?
    var qemus: [SimulatedQEMU?]
    var isDomainDefined: [Bool]
    var hasGuestEnded: [Bool]
    /// When the watchdog was set back last; nil: not armed.
    var pettedAt: UInt64?
    /// A proof of its end was wrong for the QEMUs that ran then, or an operator has lied.
    var wasLiedAbout = false

    init(_ index: Int, kernel: Int, pairs: Int) {
        self.index = index
        self.kernel = kernel
        name = HostName("h\(index + 1)")
        qemus = Array(repeating: nil, count: pairs)
        isDomainDefined = Array(repeating: false, count: pairs)
        hasGuestEnded = Array(repeating: false, count: pairs)
    }

    /// Its own clock at the world's time `now`; goes on while it is paused.
    func clock(_ now: UInt64) -> MonotonicInstant {
        let drift = Int64(now / 1_000_000) * clockRate
        return MonotonicInstant(
            nanoseconds: drift < 0
                ? clockOffset + now - UInt64(-drift) : clockOffset + now + UInt64(drift))
    }
}

/// What an agent keeps about one pair.
struct SimulatedRuntime {
    var driver = DriverState.none
    /// The QEMU that `driver` is about.
    var drives: Int?
    var work: PairWork?
    var steps: [SimulatedStep] = []
    /// The segment that was there when the work began.
    var segment: Int?
    var retryAt: UInt64 = 0
    var failures: UInt64 = 0
    /// A store operation about the pair is under way.
    var isWriting = false
    /// That operation is a claim.
    var isClaiming = false
    var waitingToldAt: UInt64?
    /// Writes about the pair in the second that began then.
    var writes = 0
    var writesSince: UInt64 = 0
    /// The last generation under which this start of ftvmd has claimed.
    var claimed: Generation?
}

/// `ftvmd`: what dies with it.
final class SimulatedAgent {
    let number: Int
    /// This start's incarnation, and whether the store knows of it.
    var incarnation: UInt64
    var isRegistered = false
    var hasRead = false
    var detector: Detector
    var selfFence: SelfFence
    var failures = RecentFailures(keepNanoseconds: ms(20_000))
    var runtimes: [SimulatedRuntime]
    // The store as it was last seen.
    var records: [PairRecord?]
    var revision = 0
    var revisions: [Int]
    var fences: [FenceRecord?]
    var incarnations: [UInt64]
    var leases: [UInt64]
    var armed: [Bool]
    var hasPool: [Bool]
    var fencing: FencingView
    var ledger: PlacementLedger
    // Fences that this host carries out.
    var plans: [Int: FencePlan] = [:]
    var isWritingFence: [Bool]
    var needsFence: [Bool]
    /// Hosts, with their incarnation, whose heartbeat is not taken note of any more.
    var refuses: [Int: UInt64] = [:]
    // Heartbeats.
    var beats: UInt64 = 0
    var nextBeat: UInt64 = 0
    var udpSeen: [(incarnation: UInt64, counter: UInt64)]
    var inbox: [(at: UInt64, from: Int, incarnation: UInt64, counter: UInt64)] = []
    /// For each host: what was last seen of it in the pool, and of that what a store read that began
    /// later has not spoken against.
    var poolSeen: [(incarnation: UInt64, counter: UInt64)]
    var backed: [(incarnation: UInt64, counter: UInt64)]
    /// As `poolSeen` was when the read that is under way began.
    var poolSeenBeforeRead: [(incarnation: UInt64, counter: UInt64)]
    var nextSweep: UInt64 = 0
    var nextRead: UInt64 = 0
    var isReading = false
    var storeAnsweredAt: UInt64?
    /// The store's view was read since the last look.
    var hasFreshLeases = false
    var isDirty: [Bool]
    var dirty: [Int] = []
    var isPoked = false
    var isWatching = false

    init(
        number: Int, incarnation: UInt64, detector: Detector, selfFence: SelfFence, hosts: Int,
        pairs: Int, fencing: FencingView, ledger: PlacementLedger
    ) {
        self.number = number
        self.incarnation = incarnation
        self.detector = detector
        self.selfFence = selfFence
        self.fencing = fencing
        self.ledger = ledger
        runtimes = Array(repeating: SimulatedRuntime(), count: pairs)
        records = Array(repeating: nil, count: pairs)
        revisions = Array(repeating: 0, count: pairs)
        isDirty = Array(repeating: false, count: pairs)
        fences = Array(repeating: nil, count: hosts)
        incarnations = Array(repeating: 0, count: hosts)
        leases = Array(repeating: 0, count: hosts)
        armed = Array(repeating: false, count: hosts)
        hasPool = Array(repeating: true, count: hosts)
        isWritingFence = Array(repeating: false, count: hosts)
        needsFence = Array(repeating: false, count: hosts)
        udpSeen = Array(repeating: (0, 0), count: hosts)
        poolSeen = Array(repeating: (0, 0), count: hosts)
        backed = Array(repeating: (0, 0), count: hosts)
        poolSeenBeforeRead = backed
    }
}

/// One step of long work; atomic, and anything may happen between two of them.
enum SimulatedStep {
    case nameSegment, makeSegment, graft, firstCommit
    case checkPrimary, continuePrimary
    case startWaiting, checkWaiting
    case takeLock(Generation)
    case raiseSegment(Generation)
    case rollBack, load
    case lastLook(Generation)
    case go(Generation)
    case commitAfterPromotion
    case lastCommit, endQEMU
    /// The source of a switchover waits for the target's claim, so many times yet.
    case awaitClaim(Int)
    case arm, awaitLock
    case ungraft
    case removeSegmentUnlessNamed, removeSegment, deleteRecord
    case driver(DriverState)
}

/// The truth about one pair.
struct SimulatedPair {
    let name: PairName
    var record: PairRecord?
    var revision = 0
    var segment: SimulatedSegment?
    /// The QEMU that holds the primary lock, in each kernel.
    var locks: [Int: Int] = [:]
    /// Which QEMU ran the guest under which generation, since the record was made.
    var ran: [UInt64: Int] = [:]
    var highestGeneration: UInt64 = 0
    /// When its guest last committed.
    var committedAt: UInt64 = 0
}

struct SimulatedSegment {
    let id: Int
    var generation: Generation
    /// Whose commit each epoch is: the generation, and the QEMU.
    var commits: [(generation: UInt64, qemu: Int, isReleased: Bool)] = []
    var epoch: Int { commits.count }
}
