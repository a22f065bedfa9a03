/// Judges the answers of the guest's datagram server, "NUMBER QUESTION BOOT". Datagrams may be lost, repeated and overtake
/// each other; what may not be is that a number is given to two questions, since then the guest has gone back behind an answer
/// that was let out.
package struct DatagramJudge: Sendable {
    private var questions: [UInt64: Substring] = [:]
    private var numbers: [Substring: UInt64] = [:]
    package private(set) var findings = Findings()
    /// Answers that came again, the same.
    package private(set) var repeated = 0
    /// Answers to questions that had been answered with another number.
    package private(set) var doubled = 0
    package var answered: Int { numbers.count }

    package init() {}

    package mutating func judge(_ line: Substring) {
        let fields = line.split(separator: " ")
        guard fields.count == 3, let number = UInt64(fields[0]) else {
            findings.add("'\(line)' is no answer")
            return
        }
        let question = fields[1]
        if let old = questions[number], old != question {
            findings.add("the number \(number) was given to the questions \(old) and \(question)")
        }
        questions[number] = question
        guard let old = numbers[question] else {
            numbers[question] = number
            return
        }
        // Two numbers for one question: the network has doubled the question.
        if old == number { repeated += 1 } else { doubled += 1 }
    }
}
