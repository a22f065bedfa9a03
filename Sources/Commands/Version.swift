import ArgumentParser
import ControlAPI
import Model

struct Version: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show the versions of ftvm and of the ftvmd that answers.",
        discussion: """
            Succeeds without an ftvmd as well, unless --socket names one.

            Example:
              ftvm version
            """)

    /// What is printed with `-o json`.
    struct Report: Encodable {
        /// This program's version.
        var ftvm: String
        /// Nil: none answers.
        var ftvmd: VersionView?
    }

    @OptionGroup var output: OutputOptions
    @OptionGroup var connection: ConnectionOptions

    func run() async throws {
        let daemon: VersionView?
        do {
            daemon = try await connection.withService { try await $0.version() }
        } catch let error as FtvmError where connection.socket == nil {
            CommandEnvironment.current.console.remark("ftvm: \(error.message)")
            daemon = nil
        }
        try output.print(Report(ftvm: FtvmVersion.text, ftvmd: daemon)) {
            let line = "ftvm   \(FtvmVersion.text)"
            guard let daemon else { return line }
            return line + "\nftvmd  \(daemon.version) on \(daemon.host)"
        }
    }
}
