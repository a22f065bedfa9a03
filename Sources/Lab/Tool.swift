import Foundation
import Model
import Subprocess

/// Runs the system's tools.
package enum Tool {
    /// Output beyond this is an error rather than a surprise in memory, in bytes.
    private static let outputLimit = 4 << 20

    package struct Outcome: Sendable {
        /// Exit status, or 128 + signal.
        package let status: Int32
        package let output: String
        package let errorOutput: String
    }

    /// Runs a program to its end, with nothing on its standard input.
    /// - Throws: `FtvmError` `unavailable` when the program cannot be started.
    package static func attempt(_ arguments: [String]) async throws -> Outcome {
        precondition(!arguments.isEmpty, "a command has at least a name")
        let program: Executable =
            arguments[0].contains("/") ? .path(.init(arguments[0])) : .name(arguments[0])
        do {
            let result = try await Subprocess.run(
                program, arguments: Arguments(Array(arguments.dropFirst())),
                output: .string(limit: outputLimit), error: .string(limit: outputLimit))
            let status: Int32 =
                switch result.terminationStatus {
                case .exited(let code): code
                case .signaled(let signal): 128 + signal
                }
            return Outcome(
                status: status, output: result.standardOutput, errorOutput: result.standardError)
        } catch let error as SubprocessError {
            throw FtvmError(
                .unavailable, "cannot run \(arguments[0])", cause: "\(error)",
                advice: "install the lab's packages with Scripts/install-dependencies")
        }
    }

    /// Runs a program that must succeed; gives its standard output.
    /// - Throws: `FtvmError` `internalError` with what the program said.
    @discardableResult
    package static func run(_ arguments: [String]) async throws -> String {
        let outcome = try await attempt(arguments)
        guard outcome.status == 0 else {
            let said = outcome.errorOutput.trimmingCharacters(in: .whitespacesAndNewlines)
            throw FtvmError(
                .internalError,
                "'\(arguments.joined(separator: " "))' ended with status \(outcome.status)",
                cause: said.isEmpty ? nil : said)
        }
        return outcome.output
    }
}
