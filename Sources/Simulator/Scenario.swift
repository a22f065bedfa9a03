import Model
import PairLogic

/// A story as text: lines that begin with `>` are what happens, all others what the hosts do about
/// it, with the time since the scenario's last `protected`. Nothing is random: delays are fixed.
///
///     > hosts 3 kernels own        a cluster (kernels shared | own | mixed; `fast` for that profile)
///     > fence h1 agent self-fence  how a host is fenced (libvirt, agent, self-fence)
///     > protected 2                that many pairs, until all are protected; not told
///     > kill h1                    see `happen` for the rest
///     > run 700ms                  lets time pass and tells what was done in it
package struct Scenario {
    private var shape: Shape?
    private var world: World?
    private var begin: UInt64 = 0
    private var lines: [String] = []

    /// Plays the happenings of `text`; the whole transcript, to be compared with `text`.
    package static func play(_ text: String) throws(FtvmError) -> String {
        var scenario = Scenario()
        for line in text.split(separator: "\n", omittingEmptySubsequences: true) {
            if line.hasPrefix("#") { scenario.lines.append(String(line)) }
            guard line.hasPrefix(">") else { continue }
            scenario.lines.append(String(line))
            try scenario.happen(line.dropFirst().split(separator: " ").map(String.init))
        }
        return scenario.lines.joined(separator: "\n") + "\n"
    }

    private mutating func happen(_ words: [String]) throws(FtvmError) {
        func bad() -> FtvmError {
            FtvmError(
                .invalidArgument, "scenario: cannot read '\(words.joined(separator: " "))'",
                advice: "see Sources/Simulator/Scenario.swift for what there is")
        }
        switch words.first {
        case "hosts":
            guard words.count >= 2, let hosts = Int(words[1]), (2...50).contains(hosts) else {
                throw bad()
            }
            let kernels = words.compactMap { Shape.Kernels(rawValue: $0) }.first ?? .shared
            shape = try Shape(
                hosts: hosts, pairs: 1, kernels: kernels, isFast: words.contains("fast"))
        case "fence":
            guard words.count >= 2, let host = Int(words[1].dropFirst()), shape != nil,
                host <= shape?.hosts ?? 0
            else { throw bad() }
            shape?.fences[host - 1] = .init(
                libvirt: words.contains("libvirt"), agent: words.contains("agent"),
                selfFence: words.contains("self-fence"))
        case "protected":
            guard var shape, words.count == 2, let pairs = Int(words[1]), pairs > 0 else {
                throw bad()
            }
            shape.pairs = pairs
            let world = World(shape: shape, seed: 0)
            world.isNoisy = false
            world.stopClockDrift()
            for pair in 0..<pairs {
                world.startDomain(pair, on: 0)
                world.enable(pair, on: 0)
            }
            world.settle(within: ms(60_000), "not protected")
            world.keepsLog = true
            begin = world.now
            self.world = world
            tell()
        case "run":
            guard let world, words.count == 2, let time = Self.time(words[1]) else { throw bad() }
            world.run(until: world.now + time)
            tell()
        default:
            guard let world, try world.happen(words) else { throw bad() }
        }
    }

    static func time(_ word: String) -> UInt64? {
        if word.hasSuffix("ms") { return UInt64(word.dropLast(2)).map { ms($0) } }
        return word.hasSuffix("s") ? UInt64(word.dropLast()).map { ms($0 * 1_000) } : nil
    }

    private mutating func tell() {
        guard let world else { return }
        lines += world.log(since: begin)
        world.log = []
        for pair in world.pairs {
            guard let record = pair.record else {
                lines.append("= \(pair.name): no record")
                continue
            }
            var line = "= \(pair.name): \(record.state.rawValue), generation \(record.generation)"
            line += ", primary \(record.primary)"
            if let secondary = record.secondary { line += ", secondary \(secondary)" }
            if !record.reason.isEmpty { line += ": \(record.reason)" }
            lines.append(line)
        }
        lines += world.violations.map { "!! \($0)" }
    }
}

extension World {
    func stopClockDrift() {
        for host in hosts { host.clockRate = 0 }
    }

    /// The log with times since `begin`, in milliseconds.
    func log(since begin: UInt64) -> [String] {
        log.map { line in
            guard let end = line.firstIndex(of: "]") else { return line }
            let number = line[line.index(after: line.startIndex)..<end]
            let parts = number.split(separator: ".").compactMap { UInt64($0) }
            guard parts.count == 2 else { return line }
            let at = parts[0] * 1_000_000 + parts[1]
            let shown = String((at - min(at, begin / 1_000)) / 1_000)
            let padding = String(repeating: " ", count: max(0, 6 - shown.count))
            return "\(padding)\(shown)\(line[line.index(after: end)...])"
        }
    }

    /// False: not understood.
    func happen(_ words: [String]) throws(FtvmError) -> Bool {
        let host = words.count > 1 ? hostIndex[HostName(words[1])] : nil
        let time = words.count > 2 ? Scenario.time(words[2]) : nil
        switch (words.first, host) {
        case ("kill", .some(let host)):
            killedAt[host] = now
            begin(.crash(host))
        case ("start", .some(let host)): startHost(host)
        case ("freeze", .some(let host)):
            begin(.pause(host, time ?? ms(3_600_000)))
        case ("kill-ftvmd", .some(let host)): begin(.killAgent(host))
        case ("start-ftvmd", .some(let host)): startAgent(host)
        case ("kill-qemu", .some(let host)): begin(.killQEMU(host, 0))
        case ("cut-network", .some(let host)): begin(.isolate(host))
        case ("mend-network", .some(let host)): repair(.isolate(host))
        case ("cut-store", .some(let host)): begin(.storeCut(host))
        case ("mend-store", .some(let host)): repair(.storeCut(host))
        case ("cut-off", .some(let host)): begin(.cutOff(host))
        case ("mend", .some(let host)): repair(.cutOff(host))
        case ("lose-pool", .some(let host)): begin(.poolLost(host))
        case ("mend-pool", .some(let host)): repair(.poolLost(host))
        case ("confirm-dead", .some(let host)): begin(.confirmDead(host))
        case ("device", .some(let host)):
            guard words.count == 3, DeviceMode(rawValue: words[2]) != nil else { return false }
            begin(.device(host, words[2]))
        case ("store-down", _): begin(.storeDown)
        case ("store-up", _): repair(.storeDown)
        case ("promote", _): ask(0) { $0.promotionRequested = true }
        default: return false
        }
        return true
    }
}
