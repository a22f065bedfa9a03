import ArgumentParser
import ControlAPI
import Model

struct List: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "List the pairs.",
        discussion: """
            One line for each pair, by name. EPOCH is the last one committed.

            Examples:
              ftvm list
              ftvm list --names
              ftvm list -o json | jq -r '.[] | select(.state != "protected") | .name'
            """)

    @Flag(help: "Print only the names, one a line.")
    var names = false

    @OptionGroup var output: OutputOptions
    @OptionGroup var connection: ConnectionOptions

    func run() async throws {
        try await connection.withService { service in
            let pairs = try await service.pairs()
            if names {
                try NameList.print(pairs.map(\.name.text), format: output.format)
                return
            }
            try output.print(pairs) { PairText.table(pairs) }
            List.remarkIfNone(pairs)
        }
    }

    static func remarkIfNone(_ pairs: [PairView]) {
        guard pairs.isEmpty else { return }
        CommandEnvironment.current.console.remark(
            "no pairs; 'ftvm enable DOMAIN' protects a domain")
    }
}

/// `--names`: for scripts and shell completion.
enum NameList {
    static func print(_ names: [String], format: OutputFormat) throws {
        let console = CommandEnvironment.current.console
        switch format {
        case .json: try console.print(try ControlJSON.text(names))
        case .table: for name in names { try console.print(TextTable.printable(name)) }
        }
    }
}
