import Model
import PairLogic
import Testing

@Suite struct DrainTests {
    private let h1 = HostName("h1")
    private let h2 = HostName("h2")
    private let h3 = HostName("h3")

    private func pair(
        _ name: String, on primary: String = "h1", secondary: String? = "h2", ready: Bool = true
    ) -> PairRecord {
        var record = PairRecord(
            name: PairName(name), uuid: "u", primary: HostName(primary), options: PairOptions(),
            domainXML: "<domain/>", persistent: true, memoryBytes: 1 << 30)
        record.segment = SegmentReference(pool: PoolName("ram0"), name: name)
        record.secondary = secondary.map { HostName($0) }
        record.secondaryReady = ready && secondary != nil
        record.state = record.secondaryReady ? .protected : .needSecondary
        return record
    }

    private func hosts(dead: Set<String> = []) -> [HostName: HostView] {
        var views: [HostName: HostView] = [:]
        for name in ["h1", "h2", "h3"] {
            views[HostName(name)] = HostView(
                state: dead.contains(name) ? .dead : .online, pools: [PoolName("ram0")],
                memoryAvailableBytes: 8 << 30, maintenance: name == "h1")
        }
        return views
    }

    private func drain(
        _ pairs: [PairRecord], parallel: Int = 2, deferred: Set<PairName> = [],
        dead: Set<String> = []
    ) -> Drain {
        Drain(of: h1, pairs: pairs, parallel: parallel, deferred: deferred) { _ in
            hosts(dead: dead)
        }
    }

    @Test func aPrimaryGoesToItsSecondary() {
        let plan = drain([pair("a"), pair("b", on: "h2", secondary: "h3")])
        #expect(plan.steps == [.switchOver(PairName("a"), to: h2)])
        #expect(plan.remaining.map(\.pair) == [PairName("a")])
    }

    @Test func aSecondaryIsMadeElsewhere() {
        let plan = drain([pair("a", on: "h2", secondary: "h1")])
        #expect(plan.steps == [.replaceSecondary(PairName("a"), by: h3)])
    }

    @Test func atMostSoManyAtATime() {
        var moving = pair("a")
        moving.switchover = Switchover(id: "1", target: h2, requestedBy: "drain of h1")
        let pairs = [moving, pair("b"), pair("c"), pair("d")]
        #expect(drain(pairs, parallel: 2).steps == [.switchOver(PairName("b"), to: h2)])
        #expect(drain(pairs, parallel: 1).steps == [])
        #expect(drain(pairs, parallel: 8).steps.count == 3)
        #expect(drain(pairs, parallel: 2).remaining.count == 4)
    }

    /// A secondary that has left and is not ready elsewhere still counts as under way.
    @Test func whatHasLeftCountsUntilItIsReady() throws {
        let leaving = pair("a", on: "h2", secondary: "h1")
        let change = PairAction.replaceSecondary(h1, by: h3).change(to: leaving, by: h1)
        guard case .update(let left, _) = change else {
            Issue.record("\(change)")
            return
        }
        #expect(left.secondary == h3 && !left.secondaryReady && left.state == .needSecondary)
        #expect(drain([left, pair("b")], parallel: 1).steps == [])
        #expect(drain([left, pair("b")], parallel: 2).steps.count == 1)
    }

    @Test func whatCannotMoveIsSaid() {
        var off = pair("off", secondary: nil)
        off.state = .unprotected
        off.reason = "the guest is shut off"
        let plan = drain([off, pair("a")], dead: ["h2", "h3"])
        #expect(plan.steps == [])
        #expect(plan.remaining.map(\.progress) == [.stuck, .stuck])
        #expect(plan.remaining[0].reason == "no other host: h2: dead; h3: dead")
        #expect(plan.remaining[1].reason.contains("the guest is shut off"))
    }

    @Test func aMoveThatFailedLatelyWaits() {
        #expect(drain([pair("a")], deferred: [PairName("a")]).steps == [])
        #expect(drain([pair("a")], deferred: [PairName("a")]).remaining[0].progress == .waiting)
    }

    /// Three pairs on three hosts, one of which is emptied while others die: every pair keeps to its rules, and in the
    /// end nothing is on the drained host.
    @Test(arguments: 0..<UInt64(60))
    func aHostIsEmptiedWhileHostsDie(seed: UInt64) {
        var worlds = (0..<3).map { World(hosts: 4, seed: seed &* 3 &+ UInt64($0), pair: "vm\($0)") }
        for index in worlds.indices {
            let first = worlds[index].names[index % 2]
            worlds[index].startDomain(on: first)
            worlds[index].enable()
            run(&worlds, index, rounds: 60)
            #expect(worlds[index].record?.state == .protected)
        }
        let drained = worlds[0].names[0]
        for index in worlds.indices { worlds[index][drained].isDrained = true }
        var random = SeededGenerator(seed: seed)
        for _ in 0..<600 {
            let host = worlds[0].names[1 + random.below(3)]
            let fault = random.below(200)
            for index in worlds.indices {
                worlds[index].others = others(worlds, index)
                if fault == 0 { worlds[index].killHost(host) }
                if fault == 1 || fault == 2 { worlds[index].startHost(host) }
                if fault == 3 { worlds[index].killAgent(host) }
                if fault < 40 && fault > 3 { worlds[index].startAgent(host) }
                let name = worlds[index].names[worlds[index].random.below(4)]
                worlds[index].look(name)
                worlds[index].refresh(name)
                if random.below(20) == 0 { worlds[index].forgive(name) }
                worlds[index].step(name)
            }
            let moving = worlds.count {
                $0.record?.switchover?.requestedBy == "drain of \(drained)"
            }
            #expect(moving <= 1, "at most one move at a time")
        }
        for index in worlds.indices {
            for name in worlds[index].names {
                worlds[index].startHost(name)
                worlds[index].startAgent(name)
            }
        }
        for _ in 0..<150 {
            for index in worlds.indices {
                worlds[index].others = others(worlds, index)
                run(&worlds, index, rounds: 1)
            }
        }
        for world in worlds {
            #expect(world.violations == [], "seed \(seed)")
            let record = world.record
            #expect(record?.state == .protected, "seed \(seed): \(String(describing: record))")
            #expect(record?.primary != drained && record?.secondary != drained, "seed \(seed)")
            #expect(world[drained].qemu == nil, "seed \(seed)")
        }
    }

    private func others(_ worlds: [World], _ index: Int) -> [PairRecord] {
        worlds.compactMap(\.record).filter { $0.name != worlds[index].pair }
    }

    private func run(_ worlds: inout [World], _ index: Int, rounds: Int) {
        for round in 1...rounds {
            for name in worlds[index].names {
                worlds[index].look(name)
                worlds[index].refresh(name)
                if rounds == 1 || round % 8 == 0 { worlds[index].forgive(name) }
                worlds[index].step(name)
            }
        }
    }
}
