import Model
import PairLogic

/// The cluster of one run.
package struct Shape: Sendable {
    package enum Kernels: String, Sendable { case shared, own, mixed }
    /// A seed's faults may be of one sort only, to search where a defect would show.
    package enum Focus: String, Sendable, CaseIterable { case cutOff, pauses, lies, users }
    /// How a host may be fenced.
    package struct Fences: Sendable {
        package var libvirt = false
        package var agent = false
        package var selfFence = false
    }
    package var hosts = 3
    package var pairs = 1
    /// Index of the kernel of each host.
    package var kernels: [Int] = []
    package var fences: [Fences] = []
    package var isFast = false
    package var focus: Focus?
    package var timing: ClusterTiming
    package var budget = FailoverBudget()
    /// Length of the phase with faults, and the mean time between two faults, in nanoseconds.
    package var faultyNanoseconds: UInt64 = ms(20_000)
    package var meanFaultNanoseconds: UInt64 = ms(1_500)
    /// Within this time after everything is repaired all must be protected.
    package var healingNanoseconds: UInt64 = ms(60_000)

    package init(
        hosts: Int, pairs: Int, kernels: Kernels, isFast: Bool = false
    ) throws(FtvmError) {
        self.hosts = hosts
        self.pairs = pairs
        self.isFast = isFast
        self.kernels = (0..<hosts).map {
            switch kernels {
            case .shared: 0
            case .own: $0
            case .mixed: $0 / 2
            }
        }
        fences = Array(repeating: Fences(), count: hosts)
        timing = try Shape.timing(isFast: isFast)
    }

    static func timing(isFast: Bool) throws(FtvmError) -> ClusterTiming {
        isFast
            ? try ClusterTiming(
                heartbeatNanoseconds: ms(30), renewalNanoseconds: ms(300),
                deadlineNanoseconds: ms(1_500), stopNanoseconds: ms(500),
                watchdogNanoseconds: ms(2_000))
            : try ClusterTiming(
                deadlineNanoseconds: ms(3_500), watchdogNanoseconds: ms(3_000))
    }

    /// What a seed stands for: mostly small clusters, in which most things can go wrong, and now and
    /// then a large one.
    package static func random(_ seed: UInt64) throws(FtvmError) -> Shape {
        var random = SeededGenerator(seed: seed &* 0x2545_f491_4f6c_dd1d &+ 1)
        let size = random.below(1_000)
        let hosts =
            size < 950
            ? 3 + random.below(3) : size < 998 ? 6 + random.below(5) : 11 + random.below(40)
        let pairs = hosts > 10 ? hosts * (1 + random.below(10)) : 1 + random.below(5)
        let kernels: Kernels = [.shared, .own, .own, .own, .mixed][random.below(5)]
        var shape = try Shape(
            hosts: hosts, pairs: min(pairs, 500), kernels: kernels, isFast: random.chance(300))
        let isLikeAll = random.chance(600)
        let common = Fences(
            libvirt: random.chance(400), agent: random.chance(600), selfFence: random.chance(500))
        for host in 0..<hosts {
            shape.fences[host] =
                isLikeAll
                ? common
                : Fences(
                    libvirt: random.chance(400), agent: random.chance(600),
                    selfFence: random.chance(500))
        }
        if random.chance(200) { shape.focus = Focus.allCases[random.below(4)] }
        shape.meanFaultNanoseconds = ms([600, 1_500, 1_500, 4_000][random.below(4)])
        if shape.focus == .cutOff {
            // Nothing but the self-fence stands between two primaries.
            shape.meanFaultNanoseconds = ms(2_000)
            for host in 0..<hosts { shape.fences[host] = Fences(selfFence: true) }
        }
        if hosts > 10 {
            shape.faultyNanoseconds = ms(8_000)
            shape.healingNanoseconds = ms(120_000)
        }
        return shape
    }
}

extension Shape {
    /// The same with a fence agent for every host.
    package func fencedByAgents() -> Shape {
        var shape = self
        for host in 0..<hosts { shape.fences[host].agent = true }
        if hosts > 10 { shape.healingNanoseconds = ms(120_000) }
        return shape
    }
}

extension Shape {
    /// Faults of one sort only, in a cluster in which they matter.
    package mutating func focus(on focus: Focus) {
        self.focus = focus
        faultyNanoseconds = ms(25_000)
        meanFaultNanoseconds = ms(focus == .users ? 400 : 1_500)
        kernels = Array(0..<hosts)
        for host in 0..<hosts {
            switch focus {
            case .cutOff: fences[host] = Fences(selfFence: true)
            case .pauses: fences[host] = Fences(agent: true)
            case .lies, .users: fences[host] = Fences(agent: true)
            }
        }
    }
}
