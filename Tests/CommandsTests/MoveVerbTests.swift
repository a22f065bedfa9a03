import Commands
import ControlAPI
import Model
import Testing

/// `switchover`, `host drain`, `host undrain`, from the command line to what is asked of the daemon.
@Suite struct MoveVerbTests {
    private func state(_ change: (inout ScriptedService.State) -> Void) -> ScriptedService.State {
        var state = ScriptedService.State()
        change(&state)
        return state
    }

    private func moving(
        armed: Bool = false, ended: SwitchoverOutcome.Result? = nil, primary: String = "h1",
        reason: String = "", secondary: String = "h2"
    ) -> PairView {
        var record = Samples.record()
        record.secondary = HostName(secondary)
        record.secondaryReady = true
        record.primary = HostName(primary)
        if let ended {
            record.lastSwitchover = SwitchoverOutcome(
                id: "m1", target: HostName("h2"), result: ended, reason: reason)
        } else {
            record.switchover = Switchover(
                id: "m1", target: HostName("h2"), requestedBy: "ftvm switchover")
            record.switchover?.armed = armed
        }
        return PairView(record: record)
    }

    private let steps = [
        ClusterEvent(
            number: 8, time: 1, kind: .handedOver, host: HostName("h1"), pair: PairName("demo"),
            message: "",
            figures: [
                "lastCommitMilliseconds": 2.5, "endMilliseconds": 0.5, "releaseMilliseconds": 0.1,
            ]),
        ClusterEvent(
            number: 9, time: 1, kind: .guestRunning, host: HostName("h2"), pair: PairName("demo"),
            message: "", figures: ["claimMilliseconds": 0.9, "promotionMilliseconds": 20]),
    ]

    @Test func aSwitchoverIsWaitedForAndItsStepsAreTold() async {
        let harness = Harness(
            state {
                $0.accepted = .success(moving())
                $0.eventAnswers = [.success(Samples.events), .success(steps)]
                $0.pairAnswers = [
                    .success(moving(secondary: "h3")), .success(moving()),
                    .success(moving(armed: true)),
                    .failure(FtvmError(.unavailable, "no ftvmd answers on this machine")),
                    .success(moving(ended: .done, primary: "h2")),
                ]
            })
        let outcome = await harness.run("switchover", "demo", "--to", "h2", "--reason", "why not")
        #expect(outcome.status == 0)
        #expect(
            outcome.output == """
                demo has moved from h1 to h2, generation 1, state protected (400 ms)
                the guest stood still for 24 ms: last commit 2.5 ms, end of QEMU 500 us, release 100 us, \
                claim 900 us, promotion 20 ms

                """)
        #expect(
            outcome.notes == """
                [   0.0 s] a secondary is to be made on h2
                [   0.1 s] h2 gets ready
                [   0.2 s] last commit on h1
                [   0.3 s] no ftvmd answers on this machine, trying again

                """)
        let requests = harness.service.state.withLock { $0.switchoverRequests }
        #expect(
            requests == [
                SwitchoverRequest(
                    target: HostName("h2"), requestedBy: "ftvm switchover", reason: "why not")
            ])
        #expect(harness.service.state.withLock { $0.eventQueries }.last?.after == 12)
    }

    @Test(arguments: [SwitchoverOutcome.Result.refused, .failed, .cancelled])
    func aMoveThatCameToNothingSaysWhy(_ result: SwitchoverOutcome.Result) async {
        let harness = Harness(
            state {
                $0.accepted = .success(moving())
                $0.pairAnswers = [.success(moving(ended: result, reason: "h2 is dead"))]
            })
        let outcome = await harness.run("switchover", "demo")
        #expect(outcome.status == 6)
        #expect(
            outcome.notes == """
                ftvm: error: the switchover of demo to h2 is \(result.rawValue)
                  why: h2 is dead
                  next: its primary is on h1: see 'ftvm status demo'

                """)
    }

    @Test func anotherMoveThanOursIsNotTakenForIt() async {
        var pair = moving(ended: .done, primary: "h2")
        pair.lastSwitchover?.id = "other"
        let harness = Harness(
            state {
                $0.accepted = .success(moving())
                $0.pairAnswers = [.success(pair)]
            })
        #expect(await harness.run("switchover", "demo").status == 11)
    }

    @Test func aMoveIsTakenBack() async {
        let harness = Harness(state { $0.accepted = .success(moving(ended: .cancelled)) })
        let outcome = await harness.run("switchover", "demo", "--cancel")
        #expect(outcome.status == 0 && outcome.output == "demo stays on h1\n")
        #expect(harness.service.calls == ["cancel demo"])
        #expect(await harness.run("switchover", "demo", "--cancel", "--to", "h2").status == 2)
    }

    // MARK: - Drain

    private func drain(
        _ remaining: [DrainRemainder], inService: Bool = false
    ) -> Result<HostDrainView, FtvmError> {
        let order = HostMaintenance(name: HostName("h1"), since: 1, reason: "", parallel: 2)
        return .success(
            HostDrainView(
                host: HostName("h1"), state: .online, maintenance: inService ? nil : order,
                remaining: remaining))
    }

    private let moves = DrainRemainder(
        pair: PairName("a"), role: .primary, progress: .moving, reason: "it is being moved to h2")
    private let stays = DrainRemainder(
        pair: PairName("b"), role: .secondary, progress: .stuck, reason: "no other host: h2: dead")

    @Test func aDrainIsWaitedForWithProgress() async {
        let harness = Harness(
            state {
                $0.drainAccepted = drain([moves, stays])
                $0.drainAnswers = [drain([moves, stays]), drain([stays]), drain([])]
            })
        let outcome = await harness.run(
            "host", "drain", "h1", "--reason", "disk", "--parallel", "3")
        #expect(outcome.status == 0)
        #expect(outcome.output == "h1 is drained: nothing of any pair is on it (400 ms)\n")
        #expect(
            outcome.notes == """
                [   0.0 s] 2 pairs left on h1: a (primary): it is being moved to h2; b (secondary): \
                no other host: h2: dead
                [   0.2 s] 1 pair left on h1: b (secondary): no other host: h2: dead

                """)
        let requests = harness.service.state.withLock { $0.drainRequests }
        #expect(requests == [DrainRequest(reason: "disk", parallel: 3)])
    }

    @Test func whatCannotMoveEndsTheWaitWithItsReason() async {
        let harness = Harness(
            state {
                $0.drainAccepted = drain([stays])
                $0.drainAnswers = [drain([stays])]
            })
        let outcome = await harness.run("host", "drain", "h1")
        #expect(outcome.status == 6)
        #expect(outcome.notes.contains("b (secondary): no other host: h2: dead"))
        #expect(harness.elapsed >= DrainWaiter.patience)
    }

    @Test func aDrainThatSomebodyEndedIsAConflict() async {
        let harness = Harness(
            state {
                $0.drainAccepted = drain([moves])
                $0.drainAnswers = [drain([moves]), drain([moves], inService: true)]
            })
        #expect(await harness.run("host", "drain", "h1").status == 11)
        #expect(await harness.run("host", "drain", "h1", "--parallel", "0").status == 2)
    }

    @Test func undrain() async {
        let harness = Harness(state { $0.drainAccepted = drain([], inService: true) })
        let outcome = await harness.run("host", "undrain", "h1")
        #expect(outcome.status == 0 && outcome.output == "h1 is in service\n")
    }

    @Test func hostsShowWhoIsOutOfService() async {
        var hosts = Samples.hosts
        hosts[0].maintenance = HostMaintenance(
            name: HostName("h1"), since: 1, reason: "disk", parallel: 2)
        let harness = Harness(state { $0.hosts = hosts })
        let outcome = await harness.run("hosts")
        #expect(outcome.output.contains("online, draining"))
        hosts[0].primaries = []
        hosts[0].secondaries = []
        let later = Harness(state { $0.hosts = hosts })
        #expect(await later.run("hosts").output.contains("online, drained"))
    }
}
