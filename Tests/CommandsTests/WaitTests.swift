import Commands
import ControlAPI
import Model
import Testing

@Suite struct WaitTests {
    private let demo = PairName("demo")
    private let gone = Result<PairView, FtvmError>.failure(FtvmError(.notFound, "no pair demo"))
    private let promoted = PairWait.Goal.promoted(from: Generation(1), host: HostName("h1"))

    private func verdict(
        _ goal: PairWait.Goal, _ pair: PairView, earlierError: FtvmError? = nil
    ) -> PairWait.Verdict {
        verdict(goal, .success(pair), earlierError: earlierError)
    }

    private func verdict(
        _ goal: PairWait.Goal, _ answer: Result<PairView, FtvmError>,
        earlierError: FtvmError? = nil
    ) -> PairWait.Verdict {
        var wait = PairWait(name: demo, goal: goal, earlierError: earlierError)
        return wait.judge(answer, at: .zero)
    }

    private func failure(_ verdict: PairWait.Verdict) -> FtvmError? {
        if case .failed(let error) = verdict { return error }
        return nil
    }

    @Test func enableIsDoneOnlyWhenProtected() {
        let protected = Samples.protectedPair()
        #expect(verdict(.protected, protected) == .done(protected))
        #expect(
            verdict(.protected, Samples.pair(.starting, step: "copying memory", percent: 45))
                == .pending("copying memory 45 %"))
        #expect(verdict(.protected, Samples.pair(.needSecondary)) == .pending("need-secondary"))
        #expect(verdict(.protected, Samples.pair(.failingOver)) == .pending("failing-over"))
    }

    @Test func enableIsDoneWhenTheGuestIsShutOff() {
        let shutOff = Samples.pair(.unprotected)
        #expect(verdict(.protected, shutOff) == .done(shutOff))
    }

    @Test func enableFailsWithTheDaemonsError() {
        let pair = Samples.pair(.unprotected, error: Samples.poolFull)
        #expect(verdict(.protected, pair) == .failed(Samples.poolFull))
        let old = Samples.pair(.starting, step: "copying memory", error: Samples.poolFull)
        #expect(verdict(.protected, old) == .pending("copying memory"))
    }

    @Test func enableWaitsForAHostThatMayBeBackSoon() {
        var wait = PairWait(name: demo, goal: .protected)
        let died = FtvmError(.unavailable, "h1 died before demo was protected")
        let lost = Samples.pair(.unprotected, error: died)
        let text = "unprotected (h1 died before demo was protected; trying again)"
        #expect(wait.judge(.success(lost), at: .seconds(1)) == .pending(text))
        #expect(
            wait.judge(.success(Samples.pair(.starting)), at: .seconds(10)) == .pending("starting"))
        #expect(wait.judge(.success(lost), at: .seconds(11)) == .pending(text))
        #expect(wait.judge(.success(lost), at: .seconds(26)) == .failed(died))
    }

    @Test func enableFailsWhenSomebodyDisables() {
        let disabled = failure(
            verdict(.protected, Samples.pair(.disabled, desired: .disabled)))
        #expect(disabled?.code == .conflict)
        #expect(failure(verdict(.protected, gone)) == disabled)
    }

    @Test func aFailedSecondaryIsGivenTimeToSucceedElsewhere() {
        var wait = PairWait(name: demo, goal: .protected)
        let failing = Samples.pair(.needSecondary, error: Samples.poolFull)
        let text = "need-secondary (demo was not enabled: pool default is full; trying again)"
        #expect(wait.judge(.success(failing), at: .seconds(1)) == .pending(text))
        #expect(wait.judge(.success(failing), at: .seconds(15)) == .pending(text))
        #expect(
            wait.judge(.success(Samples.pair(.needSecondary)), at: .milliseconds(15_900))
                == .pending("need-secondary"))
        #expect(wait.judge(.success(failing), at: .seconds(17)) == .pending(text))
        #expect(wait.judge(.success(failing), at: .milliseconds(31_999)) == .pending(text))
        #expect(wait.judge(.success(failing), at: .seconds(32)) == .failed(Samples.poolFull))
    }

    @Test func disableIsDoneWhenThePairIsGone() {
        #expect(verdict(.gone, gone) == .done(nil))
        #expect(
            verdict(.gone, Samples.pair(.disabled, step: "moving memory out", desired: .disabled))
                == .pending("moving memory out"))
    }

    @Test func anErrorFromBeforeTheRequestIsNotItsAnswer() {
        var wait = PairWait(name: demo, goal: .gone, earlierError: Samples.poolFull)
        let old = Samples.pair(.disabled, error: Samples.poolFull, desired: .disabled)
        for second in [0, 20, 40] {
            #expect(wait.judge(.success(old), at: .seconds(second)) == .pending("disabled"))
        }
        let new = FtvmError(.unavailable, "QEMU does not answer")
        let failing = Samples.pair(.disabled, error: new, desired: .disabled)
        #expect(
            wait.judge(.success(failing), at: .seconds(50))
                == .pending("disabled (QEMU does not answer; trying again)"))
        #expect(wait.judge(.success(failing), at: .seconds(65)) == .failed(new))
    }

    @Test func disableFailsWhenSomebodyEnables() {
        #expect(failure(verdict(.gone, Samples.pair(.starting)))?.code == .conflict)
    }

    @Test func promoteIsDoneWhenALaterPrimaryRunsElsewhere() {
        let done = Samples.pair(.needSecondary, generation: 2, primary: "h2")
        #expect(verdict(promoted, done) == .done(done))
        for waiting in [
            Samples.pair(.failingOver, generation: 2, primary: "h1", requested: true),
            Samples.pair(.failingOver, error: Samples.poolFull, generation: 2, primary: "h1"),
            Samples.pair(.failingOver, generation: 2, primary: "h2"),
        ] {
            #expect(verdict(promoted, waiting) == .pending("failing-over"))
        }
        let taken = Samples.pair(.protected, generation: 1, primary: "h1", requested: true)
        #expect(verdict(promoted, taken) == .pending("protected"))
    }

    @Test func promoteFailsWhenRefused() {
        let refusal = PairWait.refusal(of: demo)
        #expect(verdict(promoted, Samples.pair(.protected)) == .failed(refusal))
        let back = Samples.pair(.needSecondary, generation: 3, primary: "h1")
        #expect(verdict(promoted, back) == .failed(refusal))
    }

    @Test func promoteFailsWhenThereIsNothingToPromote() {
        #expect(
            failure(verdict(promoted, Samples.pair(.unprotected, requested: true)))?.code
                == .failedPrecondition)
        #expect(failure(verdict(promoted, gone))?.code == .conflict)
    }

    @Test func aDaemonThatDoesNotAnswerIsAskedAgain() {
        #expect(
            verdict(.protected, .failure(FtvmError(.unavailable, "no ftvmd answers")))
                == .pending("no ftvmd answers, trying again"))
        let denied = FtvmError(.permissionDenied, "not allowed")
        #expect(verdict(.protected, .failure(denied)) == .failed(denied))
    }

    @Test func progressSaysTheReasonWhenNoStepIsKnown() {
        var record = Samples.record(state: .unprotected)
        record.reason = "the guest is shut off"
        #expect(
            PairWait.progressText(PairView(record: record))
                == "unprotected: the guest is shut off")
    }
}
