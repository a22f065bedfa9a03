import Model
import PairLogic

/// How long the decision code itself takes, in a large cluster.
package struct Benchmark: Sendable {
    package struct Figure: Sendable {
        package let what: String
        package let microseconds: Double
    }
    package let figures: [Figure]

    package init(hosts: Int = 50, pairs: Int = 500) {
        let names = (1...hosts).map { HostName("h\($0)") }
        let pool = PoolName("ram0")
        var records: [PairRecord] = []
        for pair in 0..<pairs {
            var record = PairRecord(
                name: PairName("vm\(pair)"), uuid: "u\(pair)", primary: names[pair % hosts],
                options: PairOptions(), domainXML: "", persistent: true, memoryBytes: 1 << 30)
            record.state = .protected
            record.secondary = names[(pair + 1 + pair / hosts) % hosts]
            record.secondaryReady = true
            record.segment = SegmentReference(pool: pool, name: "s\(pair)")
            records.append(record)
        }
        var views: [HostName: HostView] = [:]
        for name in names {
            views[name] = HostView(state: .online, pools: [pool], memoryAvailableBytes: 64 << 30)
        }
        let me = names[1]
        let ledger = PlacementLedger(hosts: views, records: records)
        func situation(_ record: PairRecord, _ hosts: [HostName: HostView]) -> PairSituation {
            var local = LocalObservation()
            var lock = PrimaryLockState.free
            if record.primary == me {
                (local.qemu, local.driver, lock) = (.running, .running, .heldHere)
            }
            if record.secondary == me { (local.qemu, local.driver) = (.waiting, .running) }
            return PairSituation(
                pair: record.name, record: record, me: me, hosts: hosts, local: local,
                primaryLock: lock, segmentPresent: true,
                segmentPosition: SegmentPosition(generation: Generation(1), epoch: Epoch(9)),
                fencing: FencingView(kernelPeers: [me], proofs: [names[0]: .agent]))
        }
        let all = ledger.hosts
        var dead = all
        dead[names[0]]?.state = .dead
        var sink = 0
        func time(_ what: String, _ times: Int, per events: Int, _ body: () -> Void) -> Figure {
            let clock = ContinuousClock()
            body()
            let begin = clock.now
            for _ in 0..<times { body() }
            let spent = begin.duration(to: clock.now).components
            let microseconds =
                Double(spent.seconds) * 1e6 + Double(spent.attoseconds) / 1e12
            return Figure(what: what, microseconds: microseconds / Double(times * events))
        }
        var figures: [Figure] = []
        figures.append(
            time("one pair, nothing to do", 20, per: pairs) {
                for record in records { sink += PairDecision.decide(situation(record, all)).count }
            })
        figures.append(
            time("a host dies: all pairs decided on another host", 20, per: 1) {
                for record in records { sink += PairDecision.decide(situation(record, dead)).count }
            })
        figures.append(
            time("one pair of the dead host: who promotes", 200, per: 1) {
                sink += PairDecision.decide(situation(records[0], dead)).count
            })
        var unplaced = records[1]
        unplaced.state = .needSecondary
        (unplaced.secondary, unplaced.secondaryReady) = (nil, false)
        figures.append(
            time("one pair without a secondary: placement", 200, per: 1) {
                sink += PairDecision.decide(situation(unplaced, all)).count
            })
        figures.append(
            time("a record changes: its change computed, counted, decided", 200, per: 1) {
                var ledger = ledger
                let action = PairAction.placeSecondary(on: names[7])
                if case .update(let new, _) = action.change(to: unplaced, by: me) {
                    ledger.update(old: unplaced, new: new)
                    sink += PairDecision.decide(situation(new, ledger.hosts)).count
                }
            })
        figures.append(Self.detector(names, time: time))
        precondition(sink > 0)
        self.figures = figures
    }

    private static func detector(
        _ names: [HostName], time: (String, Int, Int, () -> Void) -> Figure
    ) -> Figure {
        var detector = Detector(
            me: names[1], configuration: .init(ways: [.pool, .udp, .store]))
        var now: UInt64 = 1_000
        var counter: UInt64 = 0
        return time("one look at all heartbeats, three ways", 200, 1) {
            now += ms(50)
            counter += 1
            var readings: [Detector.Reading] = []
            for name in names {
                for way in HeartbeatWay.allCases {
                    readings.append(
                        .init(
                            host: name, incarnation: 1, counter: counter, processHoldsSlot: true,
                            way: way))
                }
            }
            _ = detector.observe(readings, at: MonotonicInstant(nanoseconds: now))
        }
    }
}
