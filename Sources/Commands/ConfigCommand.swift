import ArgumentParser
import ConfigurationFiles
import ControlAPI
import Model

struct ConfigCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "config", abstract: "Look at the configuration of ftvmd.",
        subcommands: [ConfigCheck.self])
}

struct ConfigCheck: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "check", abstract: "Say everything that is wrong with a configuration.",
        discussion: """
            Reads ftvmd.toml and the files *.toml in conf.d beside it as ftvmd would, and starts nothing. Errors \
            (ftvmd would not start) lead to exit code 2; warnings alone do not.

            Examples:
              ftvm config check
              ftvm config check --config /tmp/ftvmd.toml
            """)

    @Option(
        name: .shortAndLong, help: ArgumentHelp("The configuration file.", valueName: "path"),
        completion: .file(extensions: ["toml"]))
    var config = ConfigurationFiles.defaultPath

    @OptionGroup var output: OutputOptions

    private struct Finding: Encodable {
        var severity: String
        var error: FtvmError
    }

    func run() async throws {
        let findings = ConfigurationFiles.check(path: config)
        try output.print(
            findings.map { Finding(severity: $0.severity.rawValue, error: $0.error) }
        ) {
            guard !findings.isEmpty else { return "\(config) is right" }
            return findings.map { finding in
                var lines = ["\(finding.severity.rawValue): \(finding.error.message)"]
                if let cause = finding.error.cause { lines.append("  why: \(cause)") }
                if let advice = finding.error.advice { lines.append("  next: \(advice)") }
                return lines.joined(separator: "\n")
            }.joined(separator: "\n")
        }
        if findings.contains(where: { $0.severity == .error }) {
            throw ExitCode(FtvmError(.invalidArgument, "").exitStatus)
        }
    }
}
