import Model
import PairLogic
import Testing

private let h1 = HostName("h1")
private let h2 = HostName("h2")
private let h3 = HostName("h3")
private let h4 = HostName("h4")
private let ram0 = PoolName("ram0")

private func view(
    _ state: HostState = .online, pools: [PoolName] = [ram0], mebibytes: UInt64 = 1024,
    maintenance: Bool = false, pairs: Int = 0, recentFailure: String? = nil
) -> HostView {
    HostView(
        state: state, pools: pools, memoryAvailableBytes: mebibytes << 20,
        maintenance: maintenance, pairs: pairs, recentFailure: recentFailure)
}

@Suite struct PlacementTests {
    @Test func everyHostThatWillNotDoSaysWhy() {
        let placement = Placement(
            PlacementNeed(pool: ram0, excluded: [h1: "the primary is there"]),
            hosts: [
                h1: view(), h2: view(.dead), h3: view(pools: [PoolName("other")]),
                h4: view(mebibytes: 10), HostName("h5"): view(.suspect),
                HostName("h6"): view(maintenance: true), HostName("h7"): view(),
            ])
        #expect(placement.candidates == [HostName("h7")])
        #expect(
            placement.rejections == """
                h1: the primary is there; h2: dead; h3: pool ram0 not visible; \
                h4: 10 MiB of memory free, 64 MiB needed; h5: suspect; h6: in maintenance
                """)
    }

    @Test func theOrderIsWishThenFewestPairsThenName() {
        let hosts = [
            h1: view(pairs: 3), h2: view(pairs: 1), h3: view(pairs: 1), h4: view(pairs: 9),
        ]
        #expect(
            Placement(PlacementNeed(pool: ram0, wish: h4), hosts: hosts).candidates
                == [h4, h2, h3, h1])
        var failing = hosts
        failing[h4]?.recentFailure = "no room"
        #expect(
            Placement(PlacementNeed(pool: ram0, wish: h4), hosts: failing).candidates
                == [h2, h3, h1, h4])
    }

    @Test func freeMemoryDoesNotChangeTheOrder() {
        let one = [h1: view(mebibytes: 100), h2: view(mebibytes: 9000)]
        let other = [h1: view(mebibytes: 9000), h2: view(mebibytes: 100)]
        let need = PlacementNeed(pool: ram0)
        #expect(
            Placement(need, hosts: one).candidates == Placement(need, hosts: other).candidates)
    }

    @Test func noHostAtAll() {
        #expect(Placement(PlacementNeed(pool: nil), hosts: [:]).candidates == [])
        #expect(
            Placement(PlacementNeed(pool: nil), hosts: [:]).rejections == "there is no other host")
    }
}

@Suite struct FailoverOrderTests {
    /// Whom the hosts would let promote, one after the other as each of them dies.
    private func turn(
        _ hosts: [HostName: HostView], record change: (inout PairRecord) -> Void = { _ in }
    ) -> [HostName] {
        var record = PairRecord(
            name: PairName("demo"), uuid: "u", primary: h1, options: PairOptions(),
            domainXML: "<domain/>", persistent: true, memoryBytes: 1 << 30)
        record.state = .failingOver
        record.primaryLost = true
        record.primaryGone = .ownHost
        record.secondary = h3
        record.secondaryReady = true
        record.segment = SegmentReference(pool: ram0, name: "demo")
        change(&record)
        return hosts.keys.sorted().filter { me in
            let seen = PairSituation(
                pair: record.name, record: record, me: me, hosts: hosts,
                local: LocalObservation(), primaryLock: .free, segmentPresent: true,
                segmentPosition: nil)
            return PairDecision.decide(seen) == [.claimPromotion(Generation(2))]
        }
    }

    @Test func exactlyOneHostClaims() {
        #expect(turn([h1: view(), h2: view(), h3: view(), h4: view()]) == [h3])
        #expect(turn([h1: view(), h2: view(), h3: view(.dead), h4: view()]) == [h2])
        #expect(turn([h1: view(), h2: view(.dead), h3: view(.dead), h4: view()]) == [h4])
        #expect(turn([h1: view(.dead), h2: view(), h3: view(.dead), h4: view(.dead)]) == [h2])
    }

    @Test func theOldPrimarysHostIsTheLastResort() {
        let hosts = [h1: view(), h2: view(.dead), h3: view(.dead), h4: view(pools: [])]
        #expect(turn(hosts) == [h1])
    }

    @Test func aReadySecondaryIsWaitedForWhileItIsOnlySuspect() {
        let hosts = [h2: view(), h3: view(.suspect)]
        // h3 itself never takes itself for suspect; h2 leaves it to h3.
        #expect(!turn(hosts).contains(h2))
        #expect(turn(hosts) { $0.secondaryReady = false }.contains(h2))
    }

    @Test func aSecondaryThatFailedLatelyComesAfterTheOthers() {
        let hosts = [h2: view(), h3: view(recentFailure: "its promotion failed")]
        #expect(turn(hosts) == [h2])
    }

    @Test func whoDiedWhilePromotingIsReplaced() {
        let hosts = [h1: view(.dead), h2: view(), h3: view(.dead), h4: view()]
        #expect(turn(hosts) { $0.promoting = h3 } == [h2])
        let alive = [h1: view(.dead), h2: view(), h3: view(), h4: view()]
        #expect(turn(alive) { $0.promoting = h4 } == [])
    }

    @Test func whenNobodyCanTheReasonIsSaid() {
        let hosts = [h1: view(.dead), h2: view(pools: []), h3: view(.dead)]
        var record = PairRecord(
            name: PairName("demo"), uuid: "u", primary: h1, options: PairOptions(),
            domainXML: "<domain/>", persistent: true, memoryBytes: 1 << 30)
        record.state = .protected
        record.segment = SegmentReference(pool: ram0, name: "demo")
        let seen = PairSituation(
            pair: record.name, record: record, me: h2, hosts: hosts, local: LocalObservation(),
            primaryLock: .free, segmentPresent: false, segmentPosition: nil)
        #expect(
            PairDecision.decide(seen)
                == [
                    .noteReason(
                        "no host can go on from the segment: "
                            + "h1: dead; h2: pool ram0 not visible; h3: dead")
                ])
    }
}
