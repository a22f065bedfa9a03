import ArgumentParser
import Foundation
import GuestClients
import Synchronization

struct CounterCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "counter",
        abstract: "Ask for numbers over connections that stay open; demand them without gaps.",
        discussion: """
            Each connection asks again as soon as it has its answer (or after --pause). Numbers of all connections \
            together must be without gap or repetition, so nobody else may ask the guest meanwhile.
            """)
    @OptionGroup var common: CommonOptions
    @Option(help: "Connections.") var connections = 4
    @Option(help: "Another address of the guest, for every second connection.")
    var secondAddress: String?
    @Option(help: "Milliseconds between answer and next question.") var pause = 0
    @Option(help: "End after this many answers of each connection; 0: without such an end.")
    var count = 0

    func validate() throws {
        guard (1...32).contains(connections), (0...60_000).contains(pause), count >= 0 else {
            throw ValidationError("--connections 1 to 32, --pause up to 60000, --count from 0.")
        }
    }

    func run() throws {
        let ending = common.ending()
        let results = Mutex<[Asker.Result]>([])
        let tally = Tally(connections)
        let workers = Workers()
        for number in 0..<connections {
            workers.start { [self] in
                let asker = Asker(
                    connection: number,
                    address: secondAddress.flatMap { number % 2 == 1 ? $0 : nil }
                        ?? common.address, ending: ending, tally: tally)
                let result = asker.run(common, pause: pause, count: count)
                results.withLock { $0.append(result) }
            }
        }
        ending.wait(for: workers) { tally.progress }
        try common.finish(report(results.withLock { $0 }))
    }

    private func report(_ results: [Asker.Result]) -> CounterReport {
        var report = CounterReport()
        var findings = Findings()
        report.connections = connections
        for result in results {
            findings.add(result.judge.findings)
            report.replies += result.judge.globals.count
            report.gaps += result.gaps
            if let lost = result.lost {
                report.lostConnections += 1
                findings.add("connection \(result.connection) was lost: \(lost)")
            }
        }
        // A lost connection's last question may have been answered without our hearing it.
        if report.lostConnections == 0 {
            findings.add(NumberJudge.judgeTogether(results.map(\.judge.globals)))
        }
        let boots = Set(results.map(\.judge.boot))
        report.bootID = boots.count == 1 ? boots.first ?? "" : "\(boots.sorted())"
        if boots.count > 1 { findings.add("the connections saw several boots") }
        report.latency = LatencyReport(microseconds: results.flatMap(\.latencies))
        report.violations = findings.violations
        report.violationCount = findings.count
        return report
    }
}

/// One connection that asks and asks.
private struct Asker {
    struct Result: Sendable {
        let connection: Int
        var judge: NumberJudge
        var latencies: [UInt32] = []
        var gaps: [Gap] = []
        var lost: String?
    }

    let connection: Int
    let address: String
    let ending: Ending
    let tally: Tally
    private static let port: UInt16 = 7778

    func run(_ options: CommonOptions, pause: Int, count: Int) -> Result {
        var result = Result(connection: connection, judge: NumberJudge(connection: connection))
        do {
            let guest = try Connection(address, Self.port, patience: options.patience)
            var last = monotonicNanoseconds()
            while !ending.hasCome && (count == 0 || result.latencies.count < count) {
                let question = result.judge.nextQuestion()
                let asked = monotonicNanoseconds()
                try guest.send(Array((question + "\n").utf8))
                result.judge.judge(try guest.line())
                let now = monotonicNanoseconds()
                result.latencies.append(UInt32(clamping: (now - asked) / 1_000))
                if now - last > CounterReport.gapThreshold + UInt64(pause) * 1_000_000 {
                    result.gaps.append(Gap(connection: connection, from: last, to: now))
                }
                last = now
                tally.add(connection)
                if pause > 0 { usleep(UInt32(pause) * 1_000) }
            }
        } catch {
            result.lost = "\(error)"
        }
        return result
    }
}
