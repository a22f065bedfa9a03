import ArgumentParser
import Foundation
import GuestClients

/// The client programs of the tests: each talks to the demo guest over connections that must outlive what happens to its
/// hosts, judges what it hears, and ends with one JSON object. Exit status 1 when something was wrong.
@main
struct TestClient: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "ftvm-test-client",
        abstract: "Talks to the demo guest and judges its answers.",
        discussion: "Run it on the lab's switch: ftvm lab client -- ftvm-test-client counter",
        subcommands: [
            CounterCommand.self, DatagramsCommand.self, DownloadCommand.self, UploadCommand.self,
            RedisCommand.self, CaptureCommand.self,
        ])
}

/// What all of them have in common.
struct CommonOptions: ParsableArguments {
    @Option(help: "The guest's IPv4 address.")
    var address = "10.77.0.10"
    @Option(help: "End after this many seconds.")
    var seconds = 60
    @Flag(help: "End when standard input ends, and tell about the progress.")
    var attended = false
    @Option(help: "Seconds without an answer after which a connection counts as lost.")
    var patience = 30

    func validate() throws {
        guard (1...86_400).contains(seconds), (1...3_600).contains(patience) else {
            throw ValidationError("--seconds and --patience must be over 0.")
        }
    }

    func ending() -> Ending { Ending(seconds: seconds, attended: attended) }

    /// Prints the report; ends with status 1 when there is anything wrong.
    func finish(_ report: some ClientReport) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        print(String(decoding: try encoder.encode(report), as: UTF8.self))
        if report.violationCount > 0 { throw ExitCode(1) }
    }
}

/// Prints a line of progress.
func tell(_ progress: ClientProgress) {
    guard let data = try? JSONEncoder().encode(progress) else { return }
    print(String(decoding: data, as: UTF8.self))
    fflush(nil)
}
