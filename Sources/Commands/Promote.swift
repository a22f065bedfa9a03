import ArgumentParser
import ControlAPI
import Model

struct Promote: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Make the secondary the primary, by hand.",
        discussion: """
            While the primary lives this is a planned hand-over: a last commit, the old QEMU ends, the \
            secondary goes on from exactly there. If the primary is lost, it is the promotion that \
            would follow anyway. A promotion never happens without proof that the old primary can \
            change nothing any more.

            Asks first when standard input is a terminal; otherwise --yes is needed.

            Examples:
              ftvm promote demo
              ftvm promote demo --yes -o json
            """)

    @Argument(help: "The pair: the domain's name.", completion: Completions.pairs)
    var domain: PairName

    @Flag(name: [.customShort("y"), .customLong("yes")], help: "Do not ask.")
    var yes = false

    @OptionGroup var waiting: WaitOptions
    @OptionGroup var output: OutputOptions
    @OptionGroup var connection: ConnectionOptions

    func run() async throws {
        let environment = CommandEnvironment.current
        try await connection.withService { service in
            let before = try await service.pair(domain)
            if !yes { try confirm(before, console: environment.console) }
            let accepted = try await service.promote(domain)
            guard !waiting.noWait else {
                try output.print(accepted) {
                    "\(domain): promotion asked for; follow it with 'ftvm status \(domain)'"
                }
                return
            }
            let goal = PairWait.Goal.promoted(from: before.generation, host: before.primary)
            let wait = PairWait(name: domain, goal: goal, earlierError: before.lastError)
            let (pair, elapsed) = try await finish(wait, service, environment)
            let after = pair ?? accepted
            try output.print(after) {
                "\(domain): primary is now \(after.primary), generation \(after.generation), "
                    + "state \(after.state.rawValue) (\(HumanText.duration(elapsed)))"
            }
        }
    }

    /// Waits; a refusal is told with the reason that the daemon gave in its event.
    private func finish(
        _ wait: PairWait, _ service: any ControlService, _ environment: CommandEnvironment
    ) async throws -> (pair: PairView?, elapsed: Duration) {
        do {
            return try await PairWaiter(service: service, environment: environment)
                .wait(for: domain, wait, limit: waiting.limit)
        } catch var error as FtvmError where error == PairWait.refusal(of: domain) {
            let events = try? await service.events(EventQuery(limit: 20, pair: domain))
            error.cause = events?.last { $0.kind == .refused }?.message
            throw error
        }
    }

    private func confirm(_ pair: PairView, console: Console) throws {
        guard console.inputIsTerminal else {
            throw FtvmError(
                .invalidArgument, "\(domain) was not promoted: nobody can be asked",
                cause: "standard input is not a terminal", advice: "add --yes")
        }
        let next = pair.secondary.map { $0.text } ?? "another host"
        console.remark("\(domain) is \(pair.state.rawValue), its primary is on \(pair.primary).")
        console.note("Let \(next) take over? [y/N] ")
        let answer = console.readAnswer()?.lowercased() ?? ""
        guard answer == "y" || answer == "yes" else {
            throw FtvmError(
                .failedPrecondition, "\(domain) was not promoted: not confirmed",
                advice: "nothing was changed")
        }
    }
}
