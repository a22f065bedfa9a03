import ArgumentParser
import ControlAPI
import Model

struct Status: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show how a pair is, or all of them.",
        discussion: """
            With a domain: everything about its pair, with how its epochs went lately (seen from the \
            primary's host; left out when that cannot be asked). Without: a line for each pair and their \
            number by state.

            Exit code 0 says that the pair was found, not that it is protected: for that look at the \
            state, for instance with -o json and jq.

            States: starting, protected, need-secondary (commits go on, no other host is ready yet), \
            failing-over, unprotected (see the reason), disabled (being given back).

            Examples:
              ftvm status
              ftvm status demo
              ftvm status demo -o json | jq -r .state
            """)

    @Argument(help: "The pair: the domain's name.", completion: Completions.pairs)
    var domain: PairName?

    @OptionGroup var output: OutputOptions
    @OptionGroup var connection: ConnectionOptions

    func run() async throws {
        try await connection.withService { service in
            if let domain {
                let pair = try await service.pair(domain)
                try output.print(pair) { PairText.detail(pair) }
                return
            }
            let pairs = try await service.pairs()
            try output.print(pairs) {
                pairs.isEmpty
                    ? "" : PairText.table(pairs) + "\n\n" + PairText.summary(pairs)
            }
            List.remarkIfNone(pairs)
        }
    }
}
