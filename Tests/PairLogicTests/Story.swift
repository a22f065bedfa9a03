import Model
import PairLogic

/// A scenario as text: lines that begin with `>` are what happens, all others what the agents do
/// about it. After each happening everybody acts in turn until nothing is left to do.
struct Story {
    private var world = World(hosts: 1, seed: 0)
    private var hadRecord = false
    private(set) var transcript: [String] = []

    /// Plays the happenings of `text` and returns the whole transcript, to be compared with `text`.
    static func play(_ text: String) -> String {
        var story = Story()
        for line in text.split(separator: "\n") where line.hasPrefix(">") {
            story.transcript.append(String(line))
            story.happen(line.dropFirst().split(separator: " ").map(String.init))
        }
        return story.transcript.joined(separator: "\n")
    }

    private mutating func happen(_ words: [String]) {
        let name = HostName(words.dropFirst().first ?? "")
        switch words.first {
        case "hosts":
            world = World(hosts: Int(words[1]) ?? 0, seed: 0)
            world.keepsLog = true
        case "protected":
            // Where most stories begin: h1 has the primary, h2 the secondary.
            happen(["hosts", words[1]])
            happen(["start-domain", "h1"])
            happen(["enable"])
            transcript.removeAll { !$0.hasPrefix("=") && !$0.hasPrefix(">") }
            return
        case "start-domain": world.startDomain(on: name)
        case "define-domain": world[name].domainDefined = true
        case "enable":
            world.enable()
        case "enable-on":
            world.record = PairRecord(
                name: world.pair, uuid: "u", primary: name, options: PairOptions(),
                domainXML: "<domain/>", persistent: true, memoryBytes: 1 << 30)
        case "kill": world.killHost(name)
        case "start": world.startHost(name)
        case "kill-ftvmd": world.killAgent(name)
        case "start-ftvmd": world.startAgent(name)
        case "freeze": world[name].isFrozen = true
        case "thaw": world[name].isFrozen = false
        case "kill-qemu": world.killQEMU(on: name)
        case "break": world[name].isBroken = true
        case "mend": world[name].isBroken = false
        case "wait": for name in world.names { world.forgive(name) }
        case "shut-down": world.shutGuestDown()
        case "promote": world.ask { $0.promotionRequested = true }
        case "switchover":
            let isNamed = words.count > 1 && words[1] != "..."
            world.askForSwitchover(to: isNamed ? name : nil)
        case "cancel": world.cancelSwitchover()
        case "drain": world[name].isDrained = true
        case "undrain": world[name].isDrained = false
        case "disable": world.ask { $0.desired = .disabled }
        case "discard": world.discard()
        case "lose-segment":
            world.segment = nil
            world.isSegmentLost = true
        case "steps":
            // Only so many rounds, to catch the agents in the middle of something.
            return run(rounds: Int(words[1]) ?? 0)
        default: transcript.append("?? \(words)")
        }
        if !words.contains("...") { run(rounds: 100) }
    }

    private mutating func run(rounds: Int) {
        world.log = []
        var idle = 0
        for round in 1...rounds where idle < 3 {
            let before = world
            for name in world.names {
                world.look(name)
                world.refresh(name)
                if round % 8 == 0 { world.forgive(name) }
                world.step(name)
            }
            let isBusy = world.names.contains {
                let agent = world[$0].agent
                return !world[$0].isFrozen
                    && (agent?.steps.isEmpty == false || agent?.decided.isEmpty == false)
            }
            idle = isBusy || before.record != world.record ? 0 : idle + 1
        }
        transcript += world.log + world.violations.map { "!! \($0)" }
        if let record = world.record {
            hadRecord = true
            var line = "= \(record.state.rawValue), generation \(record.generation)"
            line += ", primary \(record.primary)"
            if let secondary = record.secondary { line += ", secondary \(secondary)" }
            if !record.reason.isEmpty { line += ": \(record.reason)" }
            transcript.append(line)
        } else if hadRecord {
            let running = world.names.filter { world[$0].qemu?.mode == .running }
            transcript.append("= no pair; the domain runs on \(running)")
        }
    }
}
