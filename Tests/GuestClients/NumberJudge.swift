/// One answer of the guest's number server (`Examples/guest/services.c`).
package struct NumberAnswer: Sendable, Hashable {
    package var global: UInt64
    package var local: UInt64
    package var echo: Substring
    package var bootID: Substring

    /// Nil when the line is no such answer.
    package init?(_ line: Substring) {
        let fields = line.split(separator: " ")
        guard fields.count == 4, let global = UInt64(fields[0]), let local = UInt64(fields[1])
        else { return nil }
        self.global = global
        self.local = local
        echo = fields[2]
        bootID = fields[3]
    }
}

/// Judges one connection's answers: each must be to the question just asked, the connection's own
/// number one more than the last one, the global number larger, the boot the same.
package struct NumberJudge: Sendable {
    private let connection: Int
    private var asked: UInt64 = 0
    private var local: UInt64 = 0
    private var bootID: String?
    /// Every global number that was heard, in its order.
    package private(set) var globals: [UInt64] = []
    package private(set) var findings = Findings()
    package var boot: String { bootID ?? "" }

    package init(connection: Int) { self.connection = connection }

    /// The next question, which differs from all others of all connections.
    package mutating func nextQuestion() -> String {
        asked += 1
        return "\(connection)-\(asked)"
    }

    package mutating func judge(_ line: Substring) {
        let name = "connection \(connection), question \(asked)"
        guard let answer = NumberAnswer(line) else {
            findings.add("\(name): '\(line)' is no answer")
            return
        }
        if answer.echo != "\(connection)-\(asked)" {
            findings.add("\(name): the answer is to \(answer.echo)")
        }
        if answer.local != local + 1 {
            findings.add("\(name): the connection's number is \(answer.local) after \(local)")
        }
        if let last = globals.last, answer.global <= last {
            findings.add("\(name): the global number is \(answer.global) after \(last)")
        }
        if let bootID, bootID != answer.bootID { findings.add("\(name): another boot") }
        local = answer.local
        if bootID == nil { bootID = String(answer.bootID) }
        globals.append(answer.global)
    }

    /// Judges all connections together, once every question has been answered and nobody else asks:
    /// no number was given twice, and none is missing.
    package static func judgeTogether(_ connections: [[UInt64]]) -> Findings {
        var findings = Findings()
        let all = connections.joined().sorted()
        for (number, next) in zip(all, all.dropFirst()) {
            if next == number { findings.add("the number \(number) was given twice") }
            if next > number + 1 {
                findings.add("the numbers \(number + 1) to \(next - 1) were given to nobody")
            }
        }
        return findings
    }
}
