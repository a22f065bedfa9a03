/// Progress of long work on standard error: one line redrawn in place on a terminal; otherwise a new
/// line whenever the text changes, with a percentage only at each quarter.
package struct ProgressDisplay: Sendable {
    private let inPlace: Bool
    private var last = ""

    package init(inPlace: Bool) { self.inPlace = inPlace }

    /// - Returns: what to write now; empty when there is nothing new to say.
    package mutating func show(_ text: String, elapsed: Duration) -> String {
        let time = HumanText.decimal(elapsed.inSeconds, places: 1)
        let blanks = String(repeating: " ", count: max(0, 6 - time.count))
        let line = "[\(blanks)\(time) s] \(TextTable.printable(text))"
        if inPlace {
            last = text
            return "\r\u{1B}[K\(line)"
        }
        let coarse = ProgressDisplay.coarse(text)
        guard coarse != last else { return "" }
        last = coarse
        return line + "\n"
    }

    /// - Returns: what to write when the work is over.
    package mutating func finish() -> String {
        defer { last = "" }
        return inPlace && !last.isEmpty ? "\r\u{1B}[K" : ""
    }

    /// `text` with a percentage at its end rounded down to a multiple of 25.
    private static func coarse(_ text: String) -> String {
        let words = text.split(separator: " ", omittingEmptySubsequences: false)
        guard words.count >= 2, words.last == "%", let percent = Int(words[words.count - 2]) else {
            return text
        }
        return (words.dropLast(2) + ["\(percent / 25 * 25)", "%"]).joined(separator: " ")
    }
}
