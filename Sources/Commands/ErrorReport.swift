import ArgumentParser
import ControlAPI
import Model

/// How an error ends the program: what is printed and the exit status (`Documentation/ExitCodes.md`).
package enum ErrorReport {
    /// Three lines, each only if there is something to say.
    package static func text(_ error: FtvmError) -> String {
        var text = "ftvm: error: \(TextTable.printable(error.message))"
        if let cause = error.cause { text += "\n  why: \(TextTable.printable(cause))" }
        if let advice = error.advice { text += "\n  next: \(TextTable.printable(advice))" }
        return text
    }

    /// The error as the API's JSON, for `-o json`.
    package static func json(_ error: FtvmError) -> String {
        (try? ControlJSON.text(error)) ?? text(error)
    }

    /// Reports what a command threw and says how to exit. Help and version texts are thrown, too.
    static func finish(_ error: any Error, asJSON: Bool, console: Console) -> Int32 {
        if error is OutputClosed { return 128 + 13 }  // as if SIGPIPE had ended us
        if let status = error as? ExitCode { return status.rawValue }
        if let known = error as? FtvmError {
            console.remark(asJSON ? json(known) : text(known))
            return known.exitStatus
        }
        let status = FtvmCommand.exitCode(for: error)
        if status == .success {
            let message = FtvmCommand.fullMessage(for: error)
            return (try? console.print(message)) == nil ? 128 + 13 : 0
        }
        guard status == .validationFailure else {
            let wrapped = FtvmError(
                .internalError, "ftvm failed in a way it does not know", cause: "\(error)",
                advice: "this is a defect: please report it")
            console.remark(asJSON ? json(wrapped) : text(wrapped))
            return wrapped.exitStatus
        }
        return finishUsage(error, asJSON: asJSON, console: console)
    }

    private static func finishUsage(
        _ error: any Error, asJSON: Bool, console: Console
    ) -> Int32 {
        if asJSON {
            let usage = FtvmError(
                .invalidArgument, FtvmCommand.message(for: error),
                advice: "see 'ftvm help'")
            console.remark(json(usage))
        } else {
            let full = FtvmCommand.fullMessage(for: error)
            let prefix = "Error: "
            console.remark(
                full.hasPrefix(prefix) ? "ftvm: error: " + full.dropFirst(prefix.count) : full)
        }
        return FtvmError.Code.invalidArgument.exitStatus
    }

    /// Whether JSON was asked for; read from the words themselves, since a usage error leaves no
    /// parsed command to ask.
    package static func wantsJSON(_ arguments: [String]) -> Bool {
        for (index, argument) in arguments.enumerated() {
            switch argument {
            case "--": return false
            case "-o", "--output":
                if arguments.dropFirst(index + 1).first == OutputFormat.json.rawValue {
                    return true
                }
            case "-o=json", "--output=json": return true
            default: continue
            }
        }
        return false
    }
}
