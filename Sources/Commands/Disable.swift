import ArgumentParser
import ControlAPI
import Model

struct Disable: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Stop protecting a domain; the guest goes on as an ordinary domain.",
        discussion: """
            Ends the secondary, moves a running guest's memory out of the segment without stopping \
            the guest, gives the domain its own definition back and frees the segment. Waits until the \
            pair is gone and shows progress on standard error. With -o json the pair is printed as it was when \
            the daemon took the request.

            A pair that is failing over is disabled when its guest runs again. If it cannot (every promotion \
            fails, or the segment was lost with the power of all hosts), --discard-state gives up what it had \
            in memory: its disks are brought to the last state that anybody was told of, and the domain is \
            left shut off, on the host that 'ftvm events' names.

            Example:
              ftvm disable demo
            """)

    @Argument(help: "The pair: the domain's name.", completion: Completions.pairs)
    var domain: PairName

    @Flag(help: "While the guest runs, without a stop. It is never done in another way.")
    var live = false

    @Flag(help: "If the guest cannot go on: give up what it had in memory.")
    var discardState = false

    @OptionGroup var waiting: WaitOptions
    @OptionGroup var output: OutputOptions
    @OptionGroup var connection: ConnectionOptions

    func run() async throws {
        let environment = CommandEnvironment.current
        try await connection.withService { service in
            let accepted = try await service.disable(domain, discardsState: discardState)
            guard !waiting.noWait else {
                try output.print(accepted) {
                    "\(domain): \(PairWait.progressText(accepted)); "
                        + "follow it with 'ftvm status \(domain)'"
                }
                return
            }
            let wait = PairWait(
                name: domain, goal: .gone, earlierError: accepted.lastError)
            let (_, elapsed) = try await PairWaiter(service: service, environment: environment)
                .wait(for: domain, wait, limit: waiting.limit)
            try output.print(accepted) {
                discardState
                    ? "\(domain) is disabled, and shut off: 'ftvm events' tells on which host "
                        + "(\(HumanText.duration(elapsed)))"
                    : "\(domain) is disabled: an ordinary domain on \(accepted.primary) again "
                        + "(\(HumanText.duration(elapsed)))"
            }
        }
    }
}
