import Commands
import ControlAPI
import Model
import Testing

/// What a drill measures, and how it ends.
@Suite struct DrillTests {
    private let demo = PairName("demo")

    private func begun(_ kind: DrillKind) -> DrillReport {
        DrillReport(
            id: "1-a", pair: demo, kind: kind, startedAt: 1_000, from: HostName("h1"),
            secondary: HostName("h2"), generation: Generation(1), epochBefore: Epoch(100))
    }

    private func pair(
        _ state: PairState = .protected, primary: String = "h2", generation: UInt64 = 2,
        epoch: UInt64 = 200
    ) -> PairView {
        var record = Samples.record(state: state)
        record.primary = HostName(primary)
        record.generation = Generation(generation)
        return PairView(record: record, epoch: Epoch(epoch))
    }

    private func event(
        _ number: UInt64, _ kind: ClusterEvent.Kind, at time: Double,
        _ figures: [String: Double] = [:]
    ) -> ClusterEvent {
        ClusterEvent(
            number: number, time: 1_000 + time, kind: kind, host: HostName("h2"), pair: demo,
            message: "", figures: figures)
    }

    private func failover(resumed: Double = 101) -> [ClusterEvent] {
        [
            event(1, .drill, at: -0.001), event(2, .primaryLost, at: 0.02),
            event(3, .promotionStarted, at: 0.03),
            event(4, .guestRunning, at: 0.06, ["promotionMilliseconds": 25, "epoch": resumed]),
            event(5, .promoted, at: 0.061), event(6, .protected, at: 0.9),
        ]
    }

    @Test func aFailoverIsTakenApart() {
        let report = DrillMeasure(begun(.killQEMU)).finished(
            events: failover(), pair: pair(), commits: true, probe: nil)
        #expect(report.verdict == .passed && report.problems == [])
        #expect(report.detectionMilliseconds == 20)
        #expect(report.fenceMilliseconds == 10)
        #expect(report.promotionMilliseconds == 25)
        #expect(report.daemonBlackoutMilliseconds == 60 && report.blackoutMilliseconds == 60)
        #expect(report.blackoutSource == "daemons")
        #expect(report.reprotectionMilliseconds == 900)
        #expect(report.committedEpochsLost == 0 && report.releasedPacketsLost == nil)
    }

    @Test func theProbesBlackoutCounts() {
        let probe = DrillReport.Probe(
            target: "10.77.0.10", sent: 400, answered: 380, longestGapBeforeMilliseconds: 9,
            longestGapMilliseconds: 120)
        let report = DrillMeasure(begun(.killQEMU)).finished(
            events: failover(), pair: pair(), commits: true, probe: probe)
        #expect(report.blackoutMilliseconds == 120 && report.blackoutSource == "probe")
        #expect(report.daemonBlackoutMilliseconds == 60)
    }

    @Test func everythingThatIsWrongIsSaid() {
        func problems(
            _ kind: DrillKind, _ pair: PairView?, commits: Bool = true, resumed: Double = 101
        ) -> [String] {
            let report = DrillMeasure(begun(kind)).finished(
                events: failover(resumed: resumed), pair: pair, commits: commits, probe: nil)
            #expect((report.verdict == .passed) == report.problems.isEmpty)
            return report.problems
        }
        #expect(
            problems(.killQEMU, pair(.needSecondary)) == ["it is NOT PROTECTED: need-secondary"])
        #expect(problems(.killQEMU, nil) == ["it is NOT PROTECTED: nobody tells how it is"])
        #expect(problems(.killQEMU, pair(), commits: false).count == 1)
        #expect(problems(.killQEMU, pair(primary: "h1")) == ["the guest is still on h1"])
        #expect(problems(.killQEMU, pair(generation: 3)) == ["it took 2 promotions"])
        #expect(problems(.killQEMU, pair(), resumed: 97) == ["3 committed epochs were lost"])
        #expect(problems(.killSecondary, pair(primary: "h1", generation: 1)) == [])
        #expect(problems(.killSecondary, pair()).count == 1)
    }

    @Test func forgottenPacketsFailADrill() {
        var events = failover()
        events[3].figures["releasedFramesLost"] = 2
        let report = DrillMeasure(begun(.killQEMU)).finished(
            events: events, pair: pair(), commits: true, probe: nil)
        #expect(report.releasedPacketsLost == 2 && report.verdict == .failed)
    }

    /// Old news of the pair do not end a drill.
    @Test func itIsOverWhenItHasHappenedAndIsProtectedAgain() {
        let measure = DrillMeasure(begun(.killQEMU))
        #expect(!measure.isOver(pair(generation: 1), []))
        #expect(!measure.isOver(pair(), Array(failover().dropLast())))
        #expect(!measure.isOver(pair(.needSecondary), failover()))
        #expect(measure.isOver(pair(), failover()))
        let secondary = DrillMeasure(begun(.killSecondary))
        let lost = event(2, .secondaryLost, at: 0.02)
        #expect(!secondary.isOver(pair(), [event(1, .protected, at: 0), lost]))
        #expect(secondary.isOver(pair(), [lost, event(3, .protected, at: 0.5)]))
    }

    @Test func aSwitchoversBlackoutIsTheSumOfItsSteps() {
        let events = [
            event(
                2, .handedOver, at: 0.1,
                [
                    "lastCommitMilliseconds": 2, "endMilliseconds": 1, "releaseMilliseconds": 1,
                    "handOverMilliseconds": 4,
                ]),
            event(3, .promotionStarted, at: 0.11),
            event(
                4, .guestRunning, at: 0.13,
                ["claimMilliseconds": 1, "promotionMilliseconds": 20, "epoch": 140]),
            event(5, .switchedOver, at: 0.14), event(6, .protected, at: 0.9),
        ]
        let report = DrillMeasure(begun(.switchover)).finished(
            events: events, pair: pair(), commits: true, probe: nil)
        #expect(report.blackoutMilliseconds == 25 && report.detectionMilliseconds == nil)
        #expect(report.fenceMilliseconds == 4 && report.verdict == .passed)
    }

    @Test func gapsAreTheLongestTimesWithoutAnAnswer() {
        let milliseconds: [UInt64] = [0, 5, 12, 17, 140, 145, 150]
        let answers = milliseconds.map { $0 * 1_000_000 }
        let gaps = ProbeGaps(answers: answers, fault: 19_000_000, end: 152_000_000)
        #expect(gaps.beforeMilliseconds == 7 && gaps.afterMilliseconds == 123)
        // Silence until the end is a gap as well.
        let dead = ProbeGaps(answers: [0, 5_000_000], fault: 6_000_000, end: 2_005_000_000)
        #expect(dead.beforeMilliseconds == 5 && dead.afterMilliseconds == 2_000)
        let none = ProbeGaps(answers: [], fault: 0, end: 5)
        #expect(none.afterMilliseconds == 0)
    }

    // MARK: - The verb

    private func harness(_ events: [ClusterEvent], _ pairs: [PairView]) -> Harness {
        var state = ScriptedService.State()
        state.drillStart = .success(DrillStart(report: begun(.killQEMU)))
        state.pairAnswers = pairs.map { .success($0) }
        // Before it begins; then for each look; then for the report.
        state.eventAnswers = [.success([])] + pairs.dropFirst().map { _ in .success(events) }
        state.eventAnswers.append(.success(events))
        return Harness(state)
    }

    @Test func aDrillEndsProtectedWithItsReportKept() async {
        let harness = harness(
            failover(), [pair(primary: "h1", generation: 1), pair(), pair(epoch: 201)])
        let outcome = await harness.run("drill", "demo", "--yes", "--kind", "kill-qemu")
        #expect(outcome.status == 0, "\(outcome.notes)")
        #expect(outcome.output.contains("PASSED"))
        let reports = harness.service.state.withLock { $0.drillReports }
        #expect(reports.map(\.verdict) == [.passed])
        let requests = harness.service.state.withLock { $0.drillRequests }
        #expect(requests == [DrillRequest(kind: .killQEMU)])
    }

    @Test func aDrillThatDoesNotEndProtectedFailsLoudly() async {
        let harness = harness(
            failover(), [pair(primary: "h1", generation: 1), pair(.needSecondary)])
        let outcome = await harness.run(
            "drill", "demo", "-y", "--timeout", "5", "-o", "json")
        #expect(outcome.status == 20)
        #expect(outcome.notes.contains("drill FAILED: it is NOT PROTECTED"))
        #expect(outcome.output.contains("\"verdict\" : \"failed\""))
    }

    @Test func nobodyIsAskedWithoutATerminal() async {
        let silent = await harness([], [pair()]).run("drill", "demo")
        #expect(silent.status == 2)
        let refused = harness([], [pair()])
        #expect(await refused.run("drill", "demo", terminal: true, answer: "n").status == 6)
        #expect(refused.service.calls == ["pair demo"])
        #expect(await refused.run("drill").status == 2)
        #expect(await refused.run("drill", "demo", "--history").status == 2)
    }

    @Test func theHistoryShowsWhatWasKept() async {
        var state = ScriptedService.State()
        state.drillReports = [
            DrillMeasure(begun(.killQEMU)).finished(
                events: failover(), pair: pair(), commits: true, probe: nil),
            begun(.freezeQEMU),
        ]
        let outcome = await Harness(state).run("drill", "--history")
        #expect(
            outcome.output == """
                TIME   PAIR  KIND         FROM  TO  VERDICT     BLACKOUT  SEEN BY  RE-PROTECTION  PROBLEMS
                T1000  demo  kill-qemu    h1    h2  passed         60 ms  daemons         900 ms  -
                T1000  demo  freeze-qemu  h1    -   unfinished         -  -                    -  -

                """)
    }
}
