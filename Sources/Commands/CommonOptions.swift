import ArgumentParser
import ControlAPI
import Glibc
import Model

/// How data is printed.
package enum OutputFormat: String, ExpressibleByArgument, CaseIterable, Sendable {
    case table, json
}

struct OutputOptions: ParsableArguments {
    @Option(
        name: [.customShort("o"), .customLong("output")],
        help: "How to print: a table for people or JSON for programs.")
    var format = OutputFormat.table

    /// Prints `value` as JSON, or what `table` makes of it.
    func print(_ value: some Encodable, table: () -> String) throws {
        let console = CommandEnvironment.current.console
        switch format {
        case .json: try console.print(try ControlJSON.text(value))
        case .table:
            let text = table()
            if !text.isEmpty { try console.print(text) }
        }
    }
}

struct ConnectionOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "The ftvmd to talk to.",
            discussion: """
                Default: $FTVM_SOCKET, else \(SocketDiscovery.defaultPath), else the first host of a \
                running lab that answers.
                """, valueName: "path"),
        completion: .file())
    var socket: String?

    @Option(
        help: ArgumentHelp(
            "An ftvmd on the network instead, as https://h1:7751.",
            discussion: "Needs --cert, --key and --ca, or $FTVM_CERT, $FTVM_KEY and $FTVM_CA.",
            valueName: "address"))
    var url: String?

    @Option(
        help: ArgumentHelp("This user's certificate (PEM), for --url.", valueName: "path"),
        completion: .file())
    var cert: String?

    @Option(
        help: ArgumentHelp("Its private key (PEM), for --url.", valueName: "path"),
        completion: .file())
    var key: String?

    @Option(
        help: ArgumentHelp("The authority of ftvmd's certificate, for --url.", valueName: "path"),
        completion: .file())
    var ca: String?

    private func remote() throws -> RemoteHost? {
        guard let url else { return nil }
        func path(_ option: String?, _ name: String) throws -> String {
            let variable = "FTVM_\(name.uppercased())"
            if let path = option ?? getenv(variable).map({ String(cString: $0) }) { return path }
            throw FtvmError(
                .invalidArgument, "--url needs a file that is not given",
                cause: "neither --\(name) nor $\(variable)",
                advice: "an ftvmd on the network knows its users by certificate only")
        }
        return try RemoteHost(
            url: url, certificatePath: try path(cert, "cert"), keyPath: try path(key, "key"),
            authorityPath: try path(ca, "ca"))
    }

    /// Runs `body` with a connection, which is closed afterwards.
    func withService<Value: Sendable>(
        _ body: (any ControlService) async throws -> Value
    ) async throws -> Value {
        let environment = CommandEnvironment.current
        let service =
            try remote().map { environment.connectRemotely($0) } ?? environment.connect(socket)
        do {
            let value = try await body(service)
            await environment.disconnect(service)
            return value
        } catch {
            await environment.disconnect(service)
            throw error
        }
    }
}

/// Of the verbs that start long work in the daemon.
struct WaitOptions: ParsableArguments {
    @Flag(name: .customLong("no-wait"), help: "Return as soon as the daemon has taken the request.")
    var noWait = false

    @Option(
        help: ArgumentHelp(
            "Give up waiting after this many seconds (exit code 9); the work itself goes on.",
            valueName: "seconds"))
    var timeout = 600

    func validate() throws {
        guard (1...1_000_000).contains(timeout) else {
            throw ValidationError("--timeout must be from 1 to 1000000 seconds.")
        }
    }

    var limit: Duration { .seconds(timeout) }
}

/// What a shell offers where a pair, a host or a pool is asked for.
enum Completions {
    static let pairs = CompletionKind.shellCommand("ftvm list --names 2>/dev/null")
    static let hosts = CompletionKind.shellCommand("ftvm hosts --names 2>/dev/null")
    static let pools = CompletionKind.shellCommand("ftvm pool list --names 2>/dev/null")
    static let domains = CompletionKind.shellCommand("ftvm hosts --domains 2>/dev/null")
}
