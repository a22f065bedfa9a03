import Model
import PairLogic

/// A world in which the real decision code runs: hosts with an agent each, one store with
/// compare-and-swap, one segment with its lock, one guest. Everything happens in single steps, and
/// a host or an ftvmd may die between any two of them. Every rule that must always hold is checked
/// after every step; `violations` says which were broken.
struct World {
    struct QEMU: Equatable {
        enum Mode: String { case waiting, running, paused }
        let id: Int
        var mode: Mode
        /// The generation under which it may commit; nil: an ordinary domain with private memory.
        var generation: Generation?
        /// The last epoch that it knows of: the one it was loaded from or committed itself.
        var epoch: UInt64 = 0
    }

    struct Segment: Equatable {
        let id: Int
        var generation: Generation
        /// 0: nothing committed yet.
        var epoch: UInt64 = 0
        /// The guest stands still since the last commit, because of us.
        var pausedByCommit = false
    }

    struct Host {
        var isUp = true
        var isFrozen = false
        var agent: Agent?
        var qemu: QEMU?
        var domainDefined = false
        var guestEnded = false
        /// No waiting QEMU starts here.
        var isBroken = false
        /// `ftvm host drain`.
        var isDrained = false
        /// How this host sees the others.
        var sees: [HostName: HostState] = [:]
    }

    /// What dies with ftvmd.
    struct Agent {
        var driver = DriverState.none
        /// The QEMU that `driver` is about.
        var drives: Int?
        var work: PairWork?
        /// Steps of the work that are still to do.
        var steps: [Step] = []
        /// The record as this agent saw it last; nil inside: there was none.
        var view: PairRecord??
        /// Decided, not carried out yet.
        var decided: [PairAction] = []
        var failures = RecentFailures(keepNanoseconds: .max)
        /// It has said that it waits for a fence, and does not say so again for a while.
        var hasSaidItWaits = false
    }

    enum Step: Equatable {
        case nameSegment, makeSegment, graft, firstCommit
        case checkPrimary, continuePrimary
        case startWaiting, checkWaiting
        case takeLock(Generation)
        case raiseSegment(Generation)
        case rollBack, load
        case go(Generation)
        case commitAfterPromotion
        case lastCommit, endQEMU
        /// The source waits for the target's claim, so many looks.
        case awaitClaim(Int)
        /// The target says that it waits, then looks at the lock.
        case arm, awaitLock
        case ungraft
        case removeSegmentUnlessNamed, removeSegment, deleteRecord
        case driver(DriverState)
    }

    /// Defects of an agent or of the layers below it.
    enum Bug: String, CaseIterable {
        /// A lock that is held looks free, and is taken all the same.
        case lockIgnored
        /// A claim does not raise the generation.
        case claimKeepsGeneration
        /// A promoted primary does not write its generation into the segment.
        case segmentNotRaised
        /// A promotion goes on without rolling back.
        case noRollBack
        /// The lock goes away when ftvmd ends: it was kept in ftvmd instead of QEMU.
        case lockInAgent
        /// Records are written without compare-and-swap.
        case noCompareAndSwap
        /// A QEMU that should be ended is not.
        case staleIsLeft
        /// The target of a switchover claims as soon as the lock is free, and does not look whether
        /// the guest had made its last commit.
        case claimsWithoutHandOver
        /// ftvmd tells of a lost primary whatever libvirt says.
        case silenceIsLoss
    }

    let pair: PairName
    let pool = PoolName("ram0")
    let names: [HostName]
    var hosts: [HostName: Host] = [:]
    var record: PairRecord?
    /// Grows with every change of the record.
    var revision = 0
    var segment: Segment?
    /// Somebody has taken it away under a pair that needs it.
    var isSegmentLost = false
    /// The QEMU that holds the primary lock.
    var lock: Int?
    var nextQEMU = 1
    /// Which QEMU ran the guest under which generation, since the record was made.
    var ran: [UInt64: Int] = [:]
    var highestGeneration: UInt64 = 0
    var violations: [String] = []
    var log: [String] = []
    var keepsLog = false
    /// How often each kind of action was begun.
    var actions: [String: Int] = [:]
    /// A defect planted on purpose: the rules must notice it.
    var bug: Bug?
    /// Each step of work fails with this probability, in per mille.
    var failuresPerMille = 0
    /// libvirt or the lock gives no answer with this probability, in per mille.
    var silencePerMille = 0
    var random: SeededGenerator
    private var switchovers = 0
    /// Records of other pairs, where several worlds share their hosts.
    var others: [PairRecord] = []
    var parallelMoves = 1

    init(hosts count: Int, seed: UInt64, pair: String = "demo") {
        self.pair = PairName(pair)
        names = (1...count).map { HostName("h\($0)") }
        random = SeededGenerator(seed: seed)
        for name in names {
            hosts[name] = Host(agent: Agent())
            for other in names where other != name { hosts[name]?.sees[other] = .online }
        }
    }

    subscript(_ name: HostName) -> Host {
        get { hosts[name] ?? Host() }
        set { hosts[name] = newValue }
    }

    mutating func say(_ text: @autoclosure () -> String) {
        if keepsLog { log.append(text()) }
    }

    // MARK: What happens to hosts

    mutating func killQEMU(on name: HostName) {
        guard let qemu = self[name].qemu else { return }
        if lock == qemu.id { lock = nil }
        self[name].qemu = nil
    }

    mutating func killHost(_ name: HostName) {
        killQEMU(on: name)
        self[name].isUp = false
        self[name].isFrozen = false
        self[name].agent = nil
        self[name].guestEnded = false
    }

    mutating func startHost(_ name: HostName) {
        guard !self[name].isUp else { return }
        self[name].isUp = true
        self[name].agent = Agent()
    }

    mutating func killAgent(_ name: HostName) {
        self[name].agent = nil
        if bug == .lockInAgent, lock == self[name].qemu?.id { lock = nil }
    }

    mutating func startAgent(_ name: HostName) {
        guard self[name].isUp, self[name].agent == nil else { return }
        self[name].agent = Agent()
    }

    mutating func shutGuestDown() {
        for name in names where self[name].qemu?.mode == .running && !self[name].isFrozen {
            killQEMU(on: name)
            self[name].guestEnded = true
        }
    }

    /// A user starts the domain where its definition is, if nothing runs anywhere.
    mutating func startDomain(on name: HostName) {
        guard self[name].isUp, !self[name].isFrozen, self[name].qemu == nil,
            !names.contains(where: { self[$0].qemu?.mode == .running })
        else { return }
        self[name].qemu = QEMU(id: nextQEMU, mode: .running)
        nextQEMU += 1
        self[name].domainDefined = true
        self[name].guestEnded = false
    }

    /// How things are, to whoever looks rightly.
    func truth(of name: HostName) -> HostState {
        self[name].agent == nil || self[name].isFrozen ? .dead : .online
    }

    mutating func look(_ name: HostName) {
        for other in names where other != name {
            let truth = truth(of: other)
            let isFirstDoubt = truth == .dead && self[name].sees[other] == .online
            // A host is suspect before it is dead, unless nobody looked meanwhile.
            self[name].sees[other] = isFirstDoubt && random.chance(700) ? .suspect : truth
        }
    }

    // MARK: Users

    mutating func enable() {
        guard record == nil, let host = names.first(where: { self[$0].qemu?.mode == .running })
        else { return }
        record = PairRecord(
            name: pair, uuid: "u", primary: host, options: PairOptions(), domainXML: "<domain/>",
            persistent: true, memoryBytes: 1 << 30)
        revision += 1
        ran = [:]
        highestGeneration = 1
    }

    mutating func ask(_ change: (inout PairRecord) -> Void) {
        guard var asked = record else { return }
        change(&asked)
        if asked != record {
            record = asked
            revision += 1
        }
    }

    /// A user gives the guest's state up; ftvmd refuses that while the guest may run.
    mutating func discard() {
        guard record?.state == .failingOver else { return }
        ask {
            $0.desired = .disabled
            $0.discardsState = true
        }
    }

    /// A user asks for a switchover; nil: to the secondary.
    mutating func askForSwitchover(to wish: HostName? = nil, by: String = "ftvm switchover") {
        guard let present = record, present.refusal(ofSwitchoverTo: wish) == nil,
            let target = wish ?? present.secondary
        else { return }
        switchovers += 1
        let id = "s\(switchovers)"
        ask { $0.switchover = Switchover(id: id, target: target, requestedBy: by) }
    }

    mutating func cancelSwitchover() { ask { _ = $0.cancelSwitchover("by hand") } }

    // MARK: Rules

    mutating func check(_ rule: Bool, _ text: @autoclosure () -> String) {
        if !rule { violations.append(text()) }
    }

    mutating func checkRules() {
        let running = names.filter { self[$0].qemu?.mode == .running }
        check(running.count <= 1, "the guest runs on \(running)")
        for name in running {
            guard let qemu = self[name].qemu, let generation = qemu.generation else { continue }
            check(lock == qemu.id, "the primary on \(name) runs without the lock")
            let before = ran[generation.number]
            check(
                before == nil || before == qemu.id,
                "generation \(generation) had QEMU \(before ?? 0) and has QEMU \(qemu.id)")
            ran[generation.number] = qemu.id
        }
        checkMoves()
        if let record {
            check(record.generation.number >= highestGeneration, "the generation went back")
            highestGeneration = record.generation.number
            if let segment {
                check(segment.generation <= record.generation, "the segment is ahead")
            }
            if record.promoting == nil {
                check(record.secondary != record.primary, "secondary on the primary's host")
            }
            if record.state == .protected || record.state == .needSecondary {
                check(
                    (segment?.epoch ?? 0) > 0 || isSegmentLost,
                    "\(record.state) without a committed segment")
            }
        }
    }
}

extension World {
    /// A planned move never ends with less than it began: nobody is left waiting for nothing.
    fileprivate mutating func checkMoves() {
        guard let record, let switchover = record.switchover else { return }
        check(record.state != .disabled && record.state != .unprotected, "a move of nothing")
        check(switchover.target != record.primary || record.promoting != nil, "a move to itself")
        if switchover.armed, record.promoting == nil {
            check(record.secondary == switchover.target, "armed where the secondary is not")
        }
    }
}

/// SplitMix64: small, and the same everywhere for a seed.
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64
    init(seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }
    mutating func chance(_ perMille: Int) -> Bool { Int(next() % 1_000) < perMille }
    mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }
}
