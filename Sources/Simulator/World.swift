import Model
import PairLogic

/// A cluster in virtual time: hosts with an agent each that run the real decision code, a network, a
/// pool, a store with compare-and-swap, fence devices, guests that commit and release packets.
/// Everything follows from the seed. Every rule that must always hold is checked after every step;
/// `violations` says which were broken.
package final class World {
    enum Event {
        case look(host: Int, agent: Int)
        case poke(host: Int, agent: Int)
        case step(host: Int, agent: Int, pair: Int)
        case epoch(host: Int, qemu: Int, pair: Int)
        case release(host: Int, qemu: Int, pair: Int, epoch: Int, generation: UInt64)
        case arrival(StoreOperation)
        case reply(StoreOperation, StoreAnswer)
        case watch(host: Int, agent: Int)
        case device(host: Int, agent: Int, target: Int, token: UInt64, FencePlan.Device)
        case powerOff(target: Int)
        case watchdog(host: Int)
        case start(host: Int)
        case startAgent(host: Int)
        case fault(Fault)
        case repair(Fault)
    }

    enum DeviceMode: String { case works, fails, hangs, lies }

    let shape: Shape
    let bug: PlantedBug?
    var random: SeededGenerator
    package internal(set) var now: UInt64 = 0
    var queue = EventQueue<Event>()
    let pool = PoolName("ram0")
    var hosts: [SimulatedHost] = []
    var pairs: [SimulatedPair] = []
    var pairIndex: [PairName: Int] = [:]
    var hostIndex: [HostName: Int] = [:]
    var nextQEMU = 1
    var nextAgent = 1
    /// Random lateness and faults of single steps; off in scenarios.
    var isNoisy = true

    // The network: how many faults cut the way from one host to another (row: sender).
    var cuts: [Int]
    var lossPerMille = 0
    var extraDelay: UInt64 = 0

    // The store.
    var isStoreUp = true
    var storeDelay: UInt64 = 0
    var storeCuts: [Int]
    var storedFences: [FenceRecord?]
    var storedIncarnations: [UInt64]
    var storedLeases: [UInt64]
    var storedArmed: [Bool]
    var storedHasPool: [Bool]
    /// The pair that each revision changed.
    var changes: [Int] = []

    // The pool: heartbeat slots, and who has taken note of which beat (row: who).
    var slots: [(incarnation: UInt64, counter: UInt64)]
    var notes: [(incarnation: UInt64, counter: UInt64)]
    /// The same, after a look into the store.
    var backedNotes: [(incarnation: UInt64, counter: UInt64)]

    var deviceModes: [DeviceMode]
    /// QEMUs that run on although something said that they are gone.
    var liedAbout: Set<Int> = []
    var liedIncarnation: [UInt64]

    // For the rule that nobody healthy is called dead.
    var troubles: [Int]
    var troubledUntil: [UInt64]
    var poolTroubledUntil: [UInt64]
    var networkTroubles = 0
    var networkTroubledUntil: UInt64 = 0

    package internal(set) var violations: [String] = []
    package internal(set) var log: [String] = []
    package var keepsLog = false
    /// FNV-1a over every line that is or would be logged, when `keepsLog`.
    package private(set) var logHash: UInt64 = 0xcbf2_9ce4_8422_2325
    package internal(set) var steps: UInt64 = 0
    /// How often things happened, for the report.
    package internal(set) var counts: [String: Int] = [:]
    /// When a host was killed, and how long after that promotions of its pairs were claimed.
    var killedAt: [UInt64?]
    var decisionTimes: [UInt64] = []
    /// Fence agents answer at once.
    var instantProof = false

    package init(shape: Shape, seed: UInt64, bug: PlantedBug? = nil) {
        self.shape = shape
        self.bug = bug
        random = SeededGenerator(seed: seed)
        let count = shape.hosts
        cuts = Array(repeating: 0, count: count * count)
        storeCuts = Array(repeating: 0, count: count)
        storedFences = Array(repeating: nil, count: count)
        storedIncarnations = Array(repeating: 0, count: count)
        storedLeases = Array(repeating: 0, count: count)
        storedArmed = Array(repeating: false, count: count)
        storedHasPool = Array(repeating: true, count: count)
        slots = Array(repeating: (0, 0), count: count)
        notes = Array(repeating: (0, 0), count: count * count)
        backedNotes = notes
        deviceModes = Array(repeating: .works, count: count)
        liedIncarnation = Array(repeating: 0, count: count)
        troubles = Array(repeating: 0, count: count)
        troubledUntil = troubles.map { _ in 0 }
        poolTroubledUntil = troubledUntil
        killedAt = Array(repeating: nil, count: count)
        for index in 0..<shape.pairs {
            let name = PairName(shape.pairs == 1 ? "demo" : "vm\(index + 1)")
            pairs.append(SimulatedPair(name: name))
            pairIndex[name] = index
        }
        for index in 0..<count {
            let host = SimulatedHost(index, kernel: shape.kernels[index], pairs: shape.pairs)
            host.clockOffset = random.time(1, ms(1_000_000_000))
            host.clockRate = Int64(random.below(801)) - 400
            hosts.append(host)
            hostIndex[host.name] = index
        }
        for host in hosts { startAgent(host.index) }
    }

    // MARK: Time

    /// Runs until this time, or until a rule is broken.
    package func run(until end: UInt64) {
        while violations.isEmpty, let next = queue.nextTime, next <= end {
            guard let (time, event) = queue.pop() else { break }
            now = time
            steps += 1
            handle(event, time)
        }
        if violations.isEmpty { now = max(now, end) }
    }

    private func handle(_ event: Event, _ time: UInt64) {
        switch event {
        case .look(let host, let agent):
            if let agent = present(host, agent, event) { look(hosts[host], agent) }
        case .poke(let host, let agent):
            if let agent = present(host, agent, event) {
                agent.isPoked = false
                sweep(hosts[host], agent)
            }
        case .step(let host, let agent, let pair):
            if let agent = present(host, agent, event) { nextStep(hosts[host], agent, pair) }
        case .epoch(let host, let qemu, let pair):
            guard isAwake(host, event) else { return }
            epochEnds(hosts[host], qemu, pair)
        case .release(let host, let qemu, let pair, let epoch, let generation):
            guard isAwake(host, event), hosts[host].qemus[pair]?.id == qemu else { return }
            release(hosts[host], qemu, pair, epoch, generation)
        case .arrival(let operation): arrive(operation)
        case .reply(let operation, let answer):
            if let agent = present(operation.host, operation.agent, event) {
                answered(hosts[operation.host], agent, operation, answer)
            }
        case .watch(let host, let agent):
            if let agent = present(host, agent, event) { watched(hosts[host], agent) }
        case .device(let host, let agent, let target, let token, let device):
            if let agent = present(host, agent, event) {
                deviceFinished(hosts[host], agent, target, token, device)
            }
        case .powerOff(let target): powerOff(target)
        case .watchdog(let host): watchdog(hosts[host])
        case .start(let host): startHost(host)
        case .startAgent(let host): startAgent(host)
        case .fault(let fault): begin(fault)
        case .repair(let fault): repair(fault)
        }
    }

    /// The agent that an event is for; what happens to a paused host happens when it goes on.
    private func present(_ host: Int, _ agent: Int, _ event: Event) -> SimulatedAgent? {
        guard let there = hosts[host].agent, there.number == agent, isAwake(host, event) else {
            return nil
        }
        return there
    }

    private func isAwake(_ host: Int, _ event: Event) -> Bool {
        guard hosts[host].isUp else { return false }
        guard hosts[host].pausedUntil <= now else {
            queue.push(event, at: hosts[host].pausedUntil)
            return false
        }
        return true
    }

    // MARK: Telling

    func say(_ host: SimulatedHost?, _ text: @autoclosure () -> String) {
        guard keepsLog else { return }
        let microseconds = String(now / 1_000 % 1_000_000)
        let time = "\(now / 1_000_000_000)." + String(repeating: "0", count: 6 - microseconds.count)
        let line = "[\(time)\(microseconds)] \(host.map { "\($0.name): " } ?? "")\(text())"
        log.append(line)
        for byte in line.utf8 { logHash = (logHash ^ UInt64(byte)) &* 0x100_0000_01b3 }
    }

    func check(_ rule: Bool, _ text: @autoclosure () -> String) {
        guard !rule else { return }
        let broken = text()
        say(nil, "!! \(broken)")
        violations.append(broken)
    }

    func count(_ what: @autoclosure () -> String) {
        counts[what(), default: 0] += 1
    }

    // MARK: Hosts

    func killHost(_ index: Int) {
        let host = hosts[index]
        guard host.isUp else { return }
        for pair in pairs.indices { killQEMU(host, pair) }
        host.isUp = false
        host.agent = nil
        host.pausedUntil = 0
        host.pettedAt = nil
        for pair in pairs.indices { host.hasGuestEnded[pair] = false }
    }

    func startHost(_ index: Int) {
        guard !hosts[index].isUp else { return }
        hosts[index].isUp = true
        troubledUntil[index] = max(troubledUntil[index], now)
        say(hosts[index], "-- starts")
        startAgent(index)
    }

    func killAgent(_ index: Int) { hosts[index].agent = nil }

    /// Switched off by a fence device; somebody switches it on again some time later.
    func powerOff(_ target: Int) {
        guard hosts[target].isUp else { return }
        say(hosts[target], "-- is switched off")
        killHost(target)
        queue.push(.start(host: target), at: now + random.time(ms(3_000), ms(8_000)))
    }

    func startAgent(_ index: Int) {
        let host = hosts[index]
        guard host.isUp, host.agent == nil else { return }
        host.incarnation = max(host.incarnation, storedIncarnations[index]) + 1
        let ways: [HeartbeatWay] = [.pool, .udp, .store]
        var configuration =
            shape.isFast
            ? Detector.Configuration.fast(ways: ways)
            : Detector.Configuration(
                ways: ways, leasePeriodNanoseconds: shape.timing.renewalNanoseconds)
        if bug == .oneWayIsDeath { configuration.ways = [.store, .udp] }
        if bug == .ownDelayAccuses { configuration.periodsUntilLate = 1_000_000 }
        let clock = host.clock(now)
        let peers = Set(hosts.filter { $0.kernel == host.kernel }.map(\.name))
        let views = Dictionary(
            uniqueKeysWithValues: hosts.map { other in
                (
                    other.name,
                    HostView(
                        state: other === host ? .online : .suspect, pools: [pool],
                        memoryAvailableBytes: 64 << 30)
                )
            })
        let agent = SimulatedAgent(
            number: nextAgent, incarnation: host.incarnation,
            detector: Detector(me: host.name, configuration: configuration),
            selfFence: SelfFence(timing: selfFenceTiming, hosts: hosts.count, at: clock),
            hosts: hosts.count, pairs: pairs.count,
            fencing: FencingView(kernelPeers: peers.count == hosts.count ? nil : peers),
            ledger: PlacementLedger(hosts: views, records: []))
        nextAgent += 1
        host.agent = agent
        agent.detector.expect(hosts.map(\.name), at: clock)
        queue.push(
            .look(host: index, agent: agent.number), at: now + random.time(1, period / 2))
    }

    /// Times of a host's own end, which one planted bug gets wrong.
    private var selfFenceTiming: ClusterTiming {
        guard bug == .selfFenceLate else { return shape.timing }
        let late = try? ClusterTiming(
            heartbeatNanoseconds: shape.timing.heartbeatNanoseconds,
            renewalNanoseconds: shape.timing.renewalNanoseconds,
            deadlineNanoseconds: shape.timing.deadlineNanoseconds * 4)
        return late ?? shape.timing
    }

    var period: UInt64 { shape.timing.heartbeatNanoseconds }

    func killQEMU(_ host: SimulatedHost, _ pair: Int) {
        guard let qemu = host.qemus[pair] else { return }
        if pairs[pair].locks[host.kernel] == qemu.id { pairs[pair].locks[host.kernel] = nil }
        host.qemus[pair] = nil
    }

    /// The guest shuts itself down, if it runs here.
    func endGuest(_ host: SimulatedHost, _ pair: Int) {
        guard host.isUp, host.pausedUntil <= now, let qemu = host.qemus[pair],
            qemu.mode == .running
        else { return }
        killQEMU(host, pair)
        host.hasGuestEnded[pair] = true
    }

    func newQEMU(_ host: SimulatedHost, _ pair: Int, _ mode: SimulatedQEMU.Mode) {
        if let agent = host.agent, agent.incarnation <= liedIncarnation[host.index] {
            liedAbout.insert(nextQEMU)
        }
        host.qemus[pair] = SimulatedQEMU(id: nextQEMU, mode: mode)
        nextQEMU += 1
    }

    // MARK: Users

    /// A user starts the domain, if the guest runs nowhere, and libvirt's hook lets him.
    func startDomain(_ pair: Int, on index: Int) {
        let host = hosts[index]
        if let record = pairs[pair].record {
            guard host.agent != nil, isStoreReachable(host), record.primary == host.name,
                record.promoting == nil, !record.isUnderProtection
            else { return }
        }
        guard host.isUp, host.qemus[pair] == nil,
            !hosts.contains(where: { $0.qemus[pair].map { $0.mode != .waiting } ?? false })
        else { return }
        newQEMU(host, pair, .running)
        host.isDomainDefined[pair] = true
        host.hasGuestEnded[pair] = false
    }

    func enable(_ pair: Int, on index: Int) {
        guard pairs[pair].record == nil else { return }
        let record = PairRecord(
            name: pairs[pair].name, uuid: "u\(pair)", primary: hosts[index].name,
            options: PairOptions(), domainXML: "", persistent: true, memoryBytes: 1 << 30)
        pairs[pair].ran = [:]
        pairs[pair].highestGeneration = 1
        write(pair, record)
    }

    func ask(_ pair: Int, _ change: (inout PairRecord) -> Void) {
        guard var record = pairs[pair].record else { return }
        change(&record)
        if record != pairs[pair].record { write(pair, record) }
    }
}
