import ControlAPI
import Model

/// What a command waits for after the daemon has taken its request, judged one answer at a time.
/// A value without clock or connection: `PairWaiter` feeds it.
package struct PairWait: Sendable {
    package enum Goal: Hashable, Sendable {
        /// `enable`: the pair is protected.
        case protected
        /// `disable`: the pair's record is gone.
        case gone
        /// `promote`: another host's QEMU is the primary of a later generation.
        case promoted(from: Generation, host: HostName)
        /// `switchover`: the move asked for, known by its id, has ended.
        case switchedOver(id: String)
    }

    package enum Verdict: Hashable, Sendable {
        /// Not yet; the text says what is going on.
        case pending(String)
        /// Reached; the pair as it is now, nil when it is gone.
        case done(PairView?)
        case failed(FtvmError)
    }

    /// How long an error may stand while the daemon tries again, before it is the answer.
    package static let patience = Duration.seconds(15)

    private let name: PairName
    private let goal: Goal
    /// The error that the pair showed before our request, which is not the answer to it.
    private let earlierError: FtvmError?
    /// When an error that may still go away was first seen.
    private var errorSince: Duration?

    package init(name: PairName, goal: Goal, earlierError: FtvmError? = nil) {
        self.name = name
        self.goal = goal
        self.earlierError = earlierError
    }

    /// - Parameter elapsed: time since the waiting began.
    package mutating func judge(
        _ answer: Result<PairView, FtvmError>, at elapsed: Duration
    ) -> Verdict {
        switch answer {
        case .success(let pair):
            if let verdict = decided(pair) { return verdict }
            return patient(pair, elapsed)
        case .failure(let error):
            switch error.code {
            case .notFound: return judgeGone()
            // The daemon restarts, or its host died: the work goes on without it, and so do we.
            case .unavailable, .timedOut: return .pending("\(error.message), trying again")
            default: return .failed(error)
            }
        }
    }

    private func judgeGone() -> Verdict {
        switch goal {
        case .gone: return .done(nil)
        case .protected, .promoted, .switchedOver:
            return .failed(
                FtvmError(
                    .conflict, "\(name) was disabled while ftvm waited for it",
                    advice: "see what happened with 'ftvm events --pair \(name)'"))
        }
    }

    /// The verdict where the pair's state leaves no doubt.
    private func decided(_ pair: PairView) -> Verdict? {
        switch goal {
        case .protected:
            if pair.desired == .disabled { return judgeGone() }
            if pair.state == .protected { return .done(pair) }
            if pair.state == .unprotected {
                // Without an error: the guest is shut off, and protected once it runs.
                guard let error = pair.lastError else { return .done(pair) }
                // What is not there now may be back soon, such as an ftvmd that is started again.
                return error.code == .unavailable ? nil : .failed(error)
            }
        case .gone:
            if pair.desired == .protected {
                return .failed(
                    FtvmError(
                        .conflict, "\(name) was enabled again while ftvm waited for its end",
                        advice: "see 'ftvm status \(name)'"))
            }
        case .promoted(let from, let host):
            if pair.desired == .disabled { return judgeGone() }
            if pair.state == .unprotected {
                return .failed(
                    FtvmError(
                        .failedPrecondition, "\(name) was not promoted: it is not protected",
                        cause: pair.reason.isEmpty ? nil : pair.reason))
            }
            guard pair.state == .protected || pair.state == .needSecondary else { return nil }
            if pair.generation > from, pair.primary != host { return .done(pair) }
            if !pair.promotionRequested { return .failed(PairWait.refusal(of: name)) }
        case .switchedOver(let id):
            if pair.switchover?.id == id { return nil }
            return ended(pair, id)
        }
        return nil
    }

    /// The move is not under way any more.
    private func ended(_ pair: PairView, _ id: String) -> Verdict {
        guard let outcome = pair.lastSwitchover, outcome.id == id else {
            return .failed(
                FtvmError(
                    .conflict, "what became of the switchover of \(name) is not known any more",
                    cause: "another one has been asked for since",
                    advice: "see 'ftvm events --pair \(name)'"))
        }
        if outcome.result == .done { return .done(pair) }
        return .failed(
            FtvmError(
                .failedPrecondition,
                "the switchover of \(name) to \(outcome.target) is \(outcome.result.rawValue)",
                cause: outcome.reason.isEmpty ? nil : outcome.reason,
                advice: "its primary is on \(pair.primary): see 'ftvm status \(name)'"))
    }

    /// Work goes on; an error that stands for too long ends the wait for it.
    private mutating func patient(_ pair: PairView, _ elapsed: Duration) -> Verdict {
        if case .switchedOver = goal { return .pending(PairWait.moveText(pair)) }
        let isOver = pair.state != .starting && pair.state != .failingOver
        guard isOver, let error = pair.lastError, error != earlierError else {
            errorSince = nil
            return .pending(PairWait.progressText(pair))
        }
        let since = errorSince ?? elapsed
        errorSince = since
        guard elapsed - since < PairWait.patience else { return .failed(error) }
        return .pending("\(PairWait.progressText(pair)) (\(error.message); trying again)")
    }

    /// The daemon declined a promotion; why is in the events.
    package static func refusal(of name: PairName) -> FtvmError {
        FtvmError(
            .failedPrecondition, "\(name) was not promoted: the daemon refused",
            advice: "see 'ftvm status \(name)' and 'ftvm events --pair \(name)'")
    }

    /// What is going on with a pair, in a few words.
    package static func progressText(_ pair: PairView) -> String {
        if let progress = pair.progress {
            let percent = progress.percent.map { " \($0) %" } ?? ""
            return "\(progress.step)\(percent)"
        }
        return pair.reason.isEmpty
            ? pair.state.rawValue : "\(pair.state.rawValue): \(pair.reason)"
    }

    /// Where a planned move is.
    package static func moveText(_ pair: PairView) -> String {
        guard let switchover = pair.switchover else { return progressText(pair) }
        let target = switchover.target
        if pair.promoting == target { return "\(target) goes on with the guest" }
        if switchover.armed { return "last commit on \(pair.primary)" }
        if pair.secondary != target { return "a secondary is to be made on \(target)" }
        return pair.secondaryReady
            ? "\(target) gets ready" : "\(target) makes the secondary"
    }

    /// The error for a goal not reached in time.
    package func timedOut(after limit: Duration, lastSeen: String) -> FtvmError {
        let wish =
            switch goal {
            case .protected: "protected"
            case .gone: "disabled"
            case .promoted: "promoted"
            case .switchedOver: "switched over"
            }
        return FtvmError(
            .timedOut, "\(name) is not \(wish) after \(HumanText.duration(limit))",
            cause: "last seen: \(lastSeen)",
            advice: "ftvmd goes on with it: follow it with 'ftvm status \(name)'")
    }
}

/// Asks the daemon until a goal is reached, fails or takes too long, and shows progress.
package struct PairWaiter {
    /// Between two questions to the daemon.
    package static let period = Duration.milliseconds(100)

    private let service: any ControlService
    private let environment: CommandEnvironment

    package init(service: any ControlService, environment: CommandEnvironment) {
        self.service = service
        self.environment = environment
    }

    /// - Returns: the pair as it is at the goal, nil when it is gone, and how long that took.
    /// - Throws: `FtvmError`: what went wrong in the daemon, or `timedOut`.
    package func wait(
        for name: PairName, _ wait: PairWait, limit: Duration
    ) async throws -> (pair: PairView?, elapsed: Duration) {
        var wait = wait
        let start = environment.time.now()
        var progress = ProgressDisplay(inPlace: environment.console.noteIsTerminal)
        defer { environment.console.note(progress.finish()) }
        while true {
            let answer = await ask(name)
            let elapsed = environment.time.now() - start
            switch wait.judge(answer, at: elapsed) {
            case .done(let pair): return (pair, elapsed)
            case .failed(let error): throw error
            case .pending(let text):
                environment.console.note(progress.show(text, elapsed: elapsed))
                guard elapsed < limit else {
                    throw wait.timedOut(after: limit, lastSeen: text)
                }
            }
            try await environment.time.sleep(PairWaiter.period)
        }
    }

    private func ask(_ name: PairName) async -> Result<PairView, FtvmError> {
        do {
            return .success(try await service.pair(name))
        } catch {
            return .failure(error)
        }
    }
}
