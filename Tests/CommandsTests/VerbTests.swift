import Commands
import ControlAPI
import Model
import Testing

/// Every verb from the command line to what is asked of the daemon, printed and returned.
@Suite struct VerbTests {
    private func state(_ change: (inout ScriptedService.State) -> Void) -> ScriptedService.State {
        var state = ScriptedService.State()
        change(&state)
        return state
    }

    @Test func enableWaitsAndShowsProgress() async {
        let harness = Harness(
            state {
                $0.accepted = .success(Samples.pair(.starting))
                $0.pairAnswers = [
                    .success(Samples.pair(.starting, step: "reserving the segment")),
                    .success(Samples.pair(.starting, step: "copying memory", percent: 45)),
                    .failure(FtvmError(.unavailable, "no ftvmd answers on this machine")),
                    .success(Samples.protectedPair()),
                ]
            })
        let outcome = await harness.run("enable", "demo")
        #expect(outcome.status == 0)
        #expect(
            outcome.output
                == "demo is protected: primary h1, secondary h2, generation 1 (300 ms)\n")
        #expect(
            outcome.notes == """
                [   0.0 s] reserving the segment
                [   0.1 s] copying memory 45 %
                [   0.2 s] no ftvmd answers on this machine, trying again

                """)
        #expect(harness.service.calls.first == "enable demo")
        #expect(harness.connectionsClosed == 1)
        let requests = harness.service.state.withLock { $0.enableRequests }
        #expect(requests == [EnableRequest(domain: "demo")])
    }

    @Test func enableSendsWhatWasChosen() async {
        let harness = Harness(state { $0.accepted = .success(Samples.pair(.starting)) })
        let outcome = await harness.run(
            "enable", "demo", "--host", "h1", "--secondary", "h3", "--pool", "huge", "--epoch-max",
            "20", "--numa-node", "0", "--numa-node", "1", "--undo-log", "512M", "--no-wait",
            "--socket", "/s", "-o", "json")
        #expect(outcome.status == 0)
        #expect(harness.service.calls == ["enable demo"])
        #expect(harness.socketsAsked == ["/s"])
        let request = EnableRequest(
            domain: "demo", host: HostName("h1"),
            options: PairOptionsRequest(
                epochMaximumMilliseconds: 20, pool: PoolName("huge"), numaNodes: [0, 1],
                undoLogBytes: 512 << 20, secondaryHost: HostName("h3")))
        #expect(harness.service.state.withLock { $0.enableRequests } == [request])
        #expect(outcome.output.contains("\"state\" : \"starting\""))
    }

    @Test func enableFailsWithTheDaemonsErrorAndItsExitCode() async {
        let harness = Harness(
            state {
                $0.accepted = .success(Samples.pair(.starting))
                $0.pairAnswers = [
                    .success(Samples.pair(.starting, step: "reserving the segment")),
                    .success(Samples.pair(.unprotected, error: Samples.poolFull)),
                ]
            })
        let outcome = await harness.run("enable", "demo")
        #expect(outcome.status == 7)
        #expect(outcome.output == "")
        #expect(
            outcome.notes == """
                [   0.0 s] reserving the segment
                ftvm: error: demo was not enabled: pool default is full
                  why: a segment of 338 MiB is needed, 120 MiB are free
                  next: free room or choose another pool: 'ftvm pool list'

                """)
    }

    @Test func enableGivesUpAtItsTimeoutAndSaysThatTheWorkGoesOn() async {
        let harness = Harness(
            state {
                $0.accepted = .success(Samples.pair(.starting))
                $0.pairAnswers = [
                    .success(Samples.pair(.starting, step: "copying memory", percent: 45))
                ]
            })
        let outcome = await harness.run("enable", "demo", "--timeout", "3", terminal: true)
        #expect(outcome.status == 9)
        #expect(harness.elapsed == .seconds(3))
        #expect(
            outcome.notes.hasSuffix(
                """
                \r\u{1B}[Kftvm: error: demo is not protected after 3.0 s
                  why: last seen: copying memory 45 %
                  next: ftvmd goes on with it: follow it with 'ftvm status demo'

                """))
    }

    @Test func disableWaitsUntilThePairIsGone() async {
        let harness = Harness(
            state {
                $0.accepted = .success(Samples.pair(.disabled, desired: .disabled))
                $0.pairAnswers = [
                    .success(Samples.pair(.disabled, step: "moving memory", desired: .disabled)),
                    .failure(FtvmError(.notFound, "there is no pair demo")),
                ]
            })
        let outcome = await harness.run("disable", "demo")
        #expect(outcome.status == 0)
        #expect(
            outcome.output == "demo is disabled: an ordinary domain on h1 again (100 ms)\n")
        #expect(harness.service.calls == ["disable demo", "pair demo", "pair demo"])
    }

    @Test func disableGivesAStateUpOnlyWhenAsked() async {
        let harness = Harness(
            state {
                $0.accepted = .success(Samples.pair(.failingOver, desired: .disabled))
                $0.pairAnswers = [.failure(FtvmError(.notFound, "there is no pair demo"))]
            })
        let outcome = await harness.run("disable", "demo", "--discard-state")
        #expect(outcome.status == 0)
        #expect(outcome.output.hasPrefix("demo is disabled, and shut off: 'ftvm events' tells"))
        #expect(harness.service.calls == ["disable demo, discarding", "pair demo"])
    }

    @Test func disableOfAnUnknownPairChangesNothing() async {
        let error = FtvmError(.notFound, "there is no pair demo", advice: "see 'ftvm list'")
        let harness = Harness(state { $0.accepted = .failure(error) })
        let outcome = await harness.run("disable", "demo", "-o", "json")
        #expect(outcome.status == 3)
        #expect(
            outcome.notes == """
                {
                  "advice" : "see 'ftvm list'",
                  "code" : "not-found",
                  "message" : "there is no pair demo"
                }

                """)
        #expect(harness.connectionsClosed == 1)
    }

    private func promotable() -> Harness {
        Harness(
            state {
                $0.accepted = .success(Samples.protectedPair())
                $0.pairAnswers = [
                    .success(Samples.protectedPair()),
                    .success(Samples.pair(.failingOver, step: "rolling back", generation: 2)),
                    .success(Samples.pair(.needSecondary, generation: 2, primary: "h2")),
                ]
            })
    }

    @Test func promoteAsksAndWaits() async {
        let harness = promotable()
        let outcome = await harness.run("promote", "demo", terminal: true, answer: "y")
        #expect(outcome.status == 0)
        #expect(
            outcome.output
                == "demo: primary is now h2, generation 2, state need-secondary (100 ms)\n")
        #expect(
            outcome.notes.hasPrefix(
                "demo is protected, its primary is on h1.\nLet h2 take over? [y/N] "))
        #expect(harness.service.calls.contains("promote demo"))
    }

    @Test func promoteSaysWhyItWasRefused() async {
        let harness = promotable()
        harness.service.state.withLock { state in
            state.pairAnswers = [
                .success(Samples.protectedPair()),
                .success(Samples.pair(.protected, requested: true)),
                .success(Samples.pair(.protected)),
            ]
            state.eventAnswers = [
                .success([
                    ClusterEvent(
                        number: 8, time: 0, kind: .refused, host: HostName("h1"),
                        pair: PairName("demo"), message: "the secondary on h2 is not ready"),
                    Samples.events[0],
                ])
            ]
        }
        let outcome = await harness.run("promote", "demo", "--yes")
        #expect(outcome.status == 6)
        #expect(
            outcome.notes.hasSuffix(
                """
                ftvm: error: demo was not promoted: the daemon refused
                  why: the secondary on h2 is not ready
                  next: see 'ftvm status demo' and 'ftvm events --pair demo'

                """))
    }

    @Test func enableOfAGuestThatIsShutOff() async {
        var record = Samples.record(state: .unprotected)
        record.reason = "the guest is shut off"
        let (starting, shutOff) = (Samples.pair(.starting), PairView(record: record))
        let harness = Harness(
            state {
                $0.accepted = .success(starting)
                $0.pairAnswers = [.success(starting), .success(shutOff)]
            })
        let outcome = await harness.run("enable", "demo")
        #expect(outcome.status == 0)
        #expect(
            outcome.output == "demo is enabled and will be protected when it runs: "
                + "unprotected: the guest is shut off\n")
    }

    @Test(arguments: ["n", "", nil] as [String?])
    func promoteDoesNothingUnlessConfirmed(answer: String?) async {
        let harness = promotable()
        let outcome = await harness.run("promote", "demo", terminal: true, answer: answer)
        #expect(outcome.status == 6)
        #expect(harness.service.calls == ["pair demo"])
    }

    @Test func promoteNeedsYesWhereNobodyCanBeAsked() async {
        let harness = promotable()
        let outcome = await harness.run("promote", "demo", answer: "y")
        #expect(outcome.status == 2)
        #expect(outcome.notes.contains("next: add --yes"))
        #expect(harness.service.calls == ["pair demo"])
        let second = promotable()
        #expect(await second.run("promote", "demo", "--yes").status == 0)
        #expect(second.service.calls.contains("promote demo"))
    }

    @Test func statusOfOnePair() async {
        let harness = Harness(state { $0.pairAnswers = [.success(Samples.protectedPair())] })
        let outcome = await harness.run("status", "demo")
        #expect(outcome.status == 0)
        #expect(
            outcome.output == """
                demo
                  state        protected
                  primary      h1
                  secondary    h2
                  generation   1
                  epoch        48213, committed 12 ms ago
                  memory       256 MiB in pages of 4 KiB
                  segment      default/demo-0d2a2c1e
                  epochs       19.8 a second, at most 50 ms each, 48213 commits
                  pause        median 1.7 ms, p99 2.9 ms
                  lag          12 ms behind the guest
                  dirty pages  median 812 an epoch, 123456 faults
                  undo log     655 of 65536 entries (1 %), 1 early commit
                  uuid         0d2a2c1e-6f3b-4c67-9a43-5a1f0c7d9e10

                """)
        #expect(await harness.run("status", "").status == 2)
    }

    @Test func statusSaysWhatFailed() async {
        var record = Samples.record(state: .needSecondary)
        record.reason = "no other host has room"
        record.lastError = Samples.poolFull
        record.secondary = HostName("h3")
        let harness = Harness(state { $0.pairAnswers = [.success(PairView(record: record))] })
        let outcome = await harness.run("status", "demo")
        #expect(
            outcome.output == """
                demo
                  state       need-secondary
                  reason      no other host has room
                  primary     h1
                  secondary   h3 (starting)
                  generation  1
                  memory      256 MiB
                  epochs      at most 50 ms each
                  uuid        0d2a2c1e-6f3b-4c67-9a43-5a1f0c7d9e10
                  last error  demo was not enabled: pool default is full
                    why       a segment of 338 MiB is needed, 120 MiB are free
                    next      free room or choose another pool: 'ftvm pool list'

                """)
    }

    @Test func statusAndListOfAllPairs() async {
        var record = Samples.record("web", state: .unprotected)
        record.lastError = Samples.poolFull
        let pairs = [Samples.protectedPair(), PairView(record: record)]
        let table = """
            NAME  STATE        PRIMARY  SECONDARY  GENERATION  EPOCH   MEMORY  REASON
            demo  protected    h1       h2                  1  48213  256 MiB  -
            web   unprotected  h1       -                   1      -  256 MiB  \
            demo was not enabled: pool default is full

            """
        #expect(await Harness(state { $0.pairs = pairs }).run("list").output == table)
        #expect(
            await Harness(state { $0.pairs = pairs }).run("status").output
                == table + "\n2 pairs: 1 protected, 1 unprotected\n")
        #expect(
            await Harness(state { $0.pairs = pairs }).run("list", "--names").output
                == "demo\nweb\n")
    }

    @Test func noPairs() async {
        let outcome = await Harness().run("list")
        #expect(outcome.status == 0)
        #expect(outcome.output == "")
        #expect(outcome.notes == "no pairs; 'ftvm enable DOMAIN' protects a domain\n")
        #expect(await Harness().run("list", "-o", "json").output == "[\n\n]\n")
    }
}
