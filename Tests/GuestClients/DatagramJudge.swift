/// Judges the answers of the guest's datagram server, "NUMBER QUESTION BOOT". Datagrams may be lost, repeated and overtake
/// each other; what may not be is that a number is given to two questions or a question gets two numbers, since then the
/// guest has gone back behind an answer that was let out.
package struct DatagramJudge: Sendable {
    private var questions: [UInt64: Substring] = [:]
    private var numbers: [Substring: UInt64] = [:]
    package private(set) var findings = Findings()
    package private(set) var repeated = 0
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
        } else if let old = numbers[question] {
            // A question that the network has doubled is answered twice by right.
            if old == number { repeated += 1 } else { noteDouble(question, old, number) }
        }
        questions[number] = question
        if numbers[question] == nil { numbers[question] = number }
    }

    private mutating func noteDouble(_ question: Substring, _ old: UInt64, _ number: UInt64) {
        doubled[question, default: [old]].insert(number)
    }

    /// Questions that the guest has got twice, with the numbers that it gave.
    package private(set) var doubled: [Substring: Set<UInt64>] = [:]
}
