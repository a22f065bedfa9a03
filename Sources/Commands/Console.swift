import Glibc

/// Where a command's words go: data to `output`, progress and the rest to `note`.
package struct Console: Sendable {
    package var output: @Sendable (String) throws(OutputClosed) -> Void
    package var note: @Sendable (String) -> Void
    /// Standard error is a terminal: progress may be drawn in place.
    package var noteIsTerminal: Bool
    /// Standard input is a terminal: somebody can be asked.
    package var inputIsTerminal: Bool
    /// One line of standard input without its end; nil at the end of input.
    package var readAnswer: @Sendable () -> String?

    package init(
        output: @escaping @Sendable (String) throws(OutputClosed) -> Void,
        note: @escaping @Sendable (String) -> Void, noteIsTerminal: Bool, inputIsTerminal: Bool,
        readAnswer: @escaping @Sendable () -> String?
    ) {
        self.output = output
        self.note = note
        self.noteIsTerminal = noteIsTerminal
        self.inputIsTerminal = inputIsTerminal
        self.readAnswer = readAnswer
    }

    /// The process's own standard streams.
    package static var standard: Console {
        Console(
            output: { text throws(OutputClosed) in
                guard write(text, to: STDOUT_FILENO) else { throw OutputClosed() }
            },
            note: { text in _ = write(text, to: STDERR_FILENO) },
            noteIsTerminal: isatty(STDERR_FILENO) == 1,
            inputIsTerminal: isatty(STDIN_FILENO) == 1,
            readAnswer: { readLine() })
    }

    /// Data, with a line end.
    package func print(_ text: String) throws(OutputClosed) { try output(text + "\n") }

    /// Something for the person at the terminal, with a line end.
    package func remark(_ text: String) { note(text + "\n") }

    private static func write(_ text: String, to descriptor: Int32) -> Bool {
        var rest = Array(text.utf8)[...]
        while !rest.isEmpty {
            let written = rest.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
            if written > 0 {
                rest = rest.dropFirst(written)
            } else if errno != EINTR {
                return false
            }
        }
        return true
    }
}

/// The reader of our output went away (`ftvm events --follow | head`); nothing is wrong.
package struct OutputClosed: Error {
    package init() {}
}
