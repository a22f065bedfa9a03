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

            Example:
              ftvm disable demo
            """)

    @Argument(help: "The pair: the domain's name.", completion: Completions.pairs)
    var domain: PairName

    @OptionGroup var waiting: WaitOptions
    @OptionGroup var output: OutputOptions
    @OptionGroup var connection: ConnectionOptions

    func run() async throws {
        let environment = CommandEnvironment.current
        try await connection.withService { service in
            let accepted = try await service.disable(domain)
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
                "\(domain) is disabled: an ordinary domain on \(accepted.primary) again "
                    + "(\(HumanText.duration(elapsed)))"
            }
        }
    }
}
