import Foundation
import GuestClients
import Lab
import Model
import Synchronization
import Testing

/// A `ftvm-test-client` that runs on the lab's switch while a test does its work. It ends when the test closes its input,
/// after its own time, or with the lab.
package final class ClientProcess: Sendable {
    private struct State {
        var progress = ClientProgress(least: 0, total: 0)
        var lastLine = ""
        var errors = ""
        var ended = false
    }

    private let name: String
    private let process: Process
    private let input = Pipe()
    private let state: Arc<State>

    /// Shared with the threads that read.
    private final class Arc<Value: Sendable>: Sendable {
        let value: Mutex<Value>
        init(_ value: Value) { self.value = Mutex(value) }
    }

    /// Starts a client, which ends by itself after `seconds` at the latest.
    package init(_ lab: TestLab, _ arguments: [String], seconds: Int) throws {
        name = arguments.first ?? ""
        let client = Settings.products + "/ftvm-test-client"
        process = Process()
        process.executableURL = URL(fileURLWithPath: Command.ftvm)
        process.arguments =
            ["lab", "client", "--name", lab.layout.name, "--", client] + arguments
            + ["--attended", "--seconds", "\(seconds * Settings.patience)"]
        let output = Pipe()
        let errors = Pipe()
        process.standardInput = input
        process.standardOutput = output
        process.standardError = errors
        let state = Arc(State())
        self.state = state
        try process.run()
        Self.readLines(of: output) { line in
            state.value.withLock { state in
                if let progress = try? JSONDecoder().decode(
                    ClientProgress.self, from: Data(line.utf8))
                {
                    state.progress = progress
                } else {
                    state.lastLine = line
                }
            }
        } end: {
            state.value.withLock { $0.ended = true }
        }
        Self.readLines(of: errors) { line in
            state.value.withLock { $0.errors += line + "\n" }
        } end: {
        }
    }

    deinit {
        // A test that has thrown: nobody waits for the report any more.
        if process.isRunning { process.terminate() }
    }

    private static func readLines(
        of pipe: Pipe, line: @escaping @Sendable (String) -> Void,
        end: @escaping @Sendable () -> Void
    ) {
        let descriptor = dup(pipe.fileHandleForReading.fileDescriptor)
        Thread {
            defer {
                close(descriptor)
                end()
            }
            var held: [UInt8] = []
            var buffer = [UInt8](repeating: 0, count: 1 << 16)
            while true {
                let got = read(descriptor, &buffer, buffer.count)
                if got < 0, errno == EINTR { continue }
                guard got > 0 else { return }
                held += buffer[..<got]
                while let newline = held.firstIndex(of: UInt8(ascii: "\n")) {
                    line(String(decoding: held[..<newline], as: UTF8.self))
                    held.removeFirst(newline + 1)
                }
            }
        }.start()
    }

    package var progress: ClientProgress { state.value.withLock { $0.progress } }

    /// Waits until every connection has got on by so many answers since now.
    package func goesOn(by answers: Int = 3, seconds: Int = 30) async throws {
        let before = progress.least
        try await eventually(
            "every connection of the client '\(name)' gets \(answers) more answers",
            seconds: seconds, period: .milliseconds(10), found: account
        ) { () async throws -> Void? in
            let (now, ended) = state.value.withLock { ($0.progress, $0.ended) }
            if ended { throw Failure("the client '\(name)' has ended too early: \(account)") }
            return now.least >= before + answers ? () : nil
        }
    }

    private var account: String {
        state.value.withLock { "progress \($0.progress), \($0.lastLine)\($0.errors)" }
    }

    /// Has the client end and gives its report.
    package func finish<Report: ClientReport>(_ type: Report.Type = Report.self) async throws
        -> Report
    {
        try? input.fileHandleForWriting.close()
        try await eventually("the client '\(name)' ends", seconds: 90, found: account) {
            () async throws -> Void? in
            state.value.withLock { $0.ended } && !process.isRunning ? () : nil
        }
        let (line, errors) = state.value.withLock { ($0.lastLine, $0.errors) }
        do {
            return try JSONDecoder().decode(Report.self, from: Data(line.utf8))
        } catch {
            throw Failure(
                "the client '\(name)' ended with status \(process.terminationStatus) and without a report: "
                    + "\(line) \(errors)")
        }
    }
}

extension ClientReport {
    /// Nothing that must not be.
    package func expectNoViolation(
        _ what: String, sourceLocation: SourceLocation = #_sourceLocation
    ) {
        #expect(
            violationCount == 0,
            "\(what): \(violationCount) violations, such as: \(violations.joined(separator: "; "))",
            sourceLocation: sourceLocation)
    }
}

extension TestLab {
    /// Runs a `ftvm-test-client` to its end, in 120 s at most; nothing that it was told may be wrong.
    package func client<Report: ClientReport>(
        _ type: Report.Type, _ arguments: [String]
    ) async throws -> Report {
        let outcome = try await attemptClient(
            [Settings.products + "/ftvm-test-client"] + arguments + ["--seconds", "120"],
            seconds: 150)
        let line = outcome.output.split(separator: "\n").last ?? ""
        guard outcome.status == 0,
            let report = try? JSONDecoder().decode(Report.self, from: Data(line.utf8))
        else { throw Failure("\(arguments): \(outcome.output) \(outcome.errorOutput)") }
        return report
    }
}
