import Commands
import ControlAPI
import Model
import Testing

/// The verbs that look at the cluster.
@Suite struct ObservationVerbTests {
    private func state(_ change: (inout ScriptedService.State) -> Void) -> ScriptedService.State {
        var state = ScriptedService.State()
        change(&state)
        return state
    }

    @Test func hosts() async {
        let harness = { Harness(self.state { $0.hosts = Samples.hosts }) }
        #expect(
            await harness().run("hosts").output == """
                NAME  STATE    HEARTBEAT  PRIMARIES  SECONDARIES  AVAILABLE  POOLS         \
                FTVMD  LIBVIRT  QEMU
                h1    online       48 ms  demo       -             18.7 GiB  default       \
                0.1.0  9.0.0    7.2.17
                h2    dead    1 min 15 s  -          demo             3 GiB  default,huge  \
                0.1.0  9.0.0    7.2.17

                """)
        #expect(await harness().run("hosts", "--names").output == "h1\nh2\n")
        #expect(await harness().run("hosts", "--domains").output == "demo\nweb\n")
        #expect(await harness().run("hosts", "--domains", "--names").status == 2)
    }

    @Test func events() async {
        let harness = Harness(state { $0.eventAnswers = [.success(Samples.events)] })
        let outcome = await harness.run("events", "--limit", "2", "--pair", "demo", "--after", "6")
        #expect(
            outcome.output == """
                NUMBER  TIME                 HOST    PAIR        EVENT              MESSAGE
                     7  T1700000000          h2      demo        promoted           \
                h2 is the primary (promotion-milliseconds 41.3, rollback-pages 812)
                    12  T1700000001          h2      -           host-dead          \
                h1 has not been heard of for 500 ms

                """)
        #expect(
            harness.service.state.withLock { $0.eventQueries } == [
                EventQuery(after: 6, limit: 2, pair: PairName("demo"))
            ])
        #expect(await Harness().run("events").notes == "no events\n")
    }

    @Test func followingEventsGoesOnFromTheLastOne() async {
        let harness = Harness(
            state {
                $0.eventAnswers = [
                    .success([Samples.events[0]]), .success([]),
                    .failure(FtvmError(.unavailable, "no ftvmd answers on this machine")),
                    .failure(FtvmError(.unavailable, "no ftvmd answers on this machine")),
                    .success([Samples.events[1]]),
                ]
            })
        let outcome = await harness.run("events", "--follow", "-o", "json", sleepLimit: 4)
        #expect(
            outcome.output == """
                {"figures":{"promotion-milliseconds":41.26,"rollback-pages":812},"host":"h2",\
                "kind":"promoted","message":"h2 is the primary","number":7,"pair":"demo",\
                "time":1700000000.25}
                {"figures":{},"host":"h2","kind":"host-dead",\
                "message":"h1 has not been heard of for 500 ms","number":12,"time":1700000001}

                """)
        let after = harness.service.state.withLock { $0.eventQueries.map(\.after) }
        #expect(after == [nil, 7, 7, 7, 7, 12])
        #expect(
            outcome.notes.hasPrefix(
                """
                ftvm: no ftvmd answers on this machine, trying again
                ftvm: ftvmd answers again

                """))
    }

    @Test func followingStopsWhenNobodyReads() async {
        let harness = Harness(state { $0.eventAnswers = [.success(Samples.events)] })
        let outcome = await harness.run("events", "--follow", outputLimit: 10)
        #expect(outcome.status == 141)
        #expect(outcome.notes == "")
    }

    @Test func pools() async {
        let harness = { Harness(self.state { $0.pools = [Samples.pool] }) }
        #expect(
            await harness().run("pool", "list").output == """
                NAME     KIND   PAGES   SIZE   FREE  SEGMENTS  HOSTS  PATH                PROBLEM
                default  tmpfs  4 KiB  8 GiB  7 GiB         2  h1,h2  /var/lib/ftvm/pool  -

                """)
        #expect(await harness().run("pool", "list", "--names").output == "default\n")
    }

    @Test func oneWholePool() async {
        let harness = Harness(state { $0.poolDetail = Samples.poolDetail })
        #expect(
            await harness.run("pool", "show", "default").output == """
                default
                  kind      tmpfs, pages of 4 KiB
                  path      /var/lib/ftvm/pool on h1
                  size      8 GiB
                  free      7 GiB
                  hosts     h1,h2
                  segments  2

                SEGMENT        PAIR             RAM  RESERVED  PAGES  GENERATION  EPOCH   UNDO LOG  \
                LOCK  BOUND TO  NODES                   PROBLEM
                demo-0d2a2c1e  demo         256 MiB   338 MiB  4 KiB           2  48213  655/16384  \
                held  0,1       0: 128 MiB, 1: 128 MiB  -
                old            (left over)    1 GiB     1 GiB  4 KiB           -      -          -  \
                -     -         -                       the header's checksum is wrong

                """)
        #expect(harness.service.calls == ["pool default"])
        #expect(await Harness().run("pool", "show", "nope").status == 3)
    }

    @Test func versionNeedsNoDaemonUnlessOneIsNamed() async {
        #expect(
            await Harness().run("version").output == "ftvm   0.1.0\nftvmd  0.1.0 on h1\n")
        let silent = state {
            $0.version = .failure(FtvmError(.unavailable, "no ftvmd answers on this machine"))
        }
        let outcome = await Harness(silent).run("version", "-o", "json")
        #expect(outcome.status == 0)
        #expect(outcome.output == "{\n  \"ftvm\" : \"0.1.0\"\n}\n")
        #expect(await Harness(silent).run("version", "--socket", "/s").status == 8)
    }

    @Test(arguments: ["bash", "zsh", "fish"])
    func completionScripts(shell: String) async {
        let outcome = await Harness().run("completion", shell)
        #expect(outcome.status == 0)
        for word in ["enable", "promote", "ftvm list --names 2>/dev/null"] {
            #expect(outcome.output.contains(word))
        }
        #expect(await Harness().run("completion", "tcsh").status == 2)
    }
}
