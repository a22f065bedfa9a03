import ControlAPI
import EndToEndSupport
import Foundation
import GuestClients
import Lab
import Model
import Testing

extension Output {
    /// What clients wait for, printed: milliseconds are promised by `Scripts/bench --network`, on a quiet machine.
    @Suite(.lab(LabShape(logLevel: "info")), .keepingLogs)
    struct Speed {
        @Test func answersComeSoon() async throws {
            let lab = try TestLab.here()
            let (_, pair) = try await lab.protectedDemo()
            var reports: [LatencyReport] = []
            for _ in 1...3 {
                let client = try ClientProcess(
                    lab, ["counter", "--connections", "1"], seconds: 60)
                try await client.goesOn(by: 1_000, seconds: 40)
                let report = try await client.finish(CounterReport.self)
                report.expectNoViolation("numbers")
                reports.append(report.latency)
            }
            print("latency under protection: \(reports)")
            #expect(try await lab.present().generation == pair.generation)
        }

        @Test func silencesAreShort() async throws {
            let lab = try TestLab.here()
            var (_, pair) = try await lab.protectedDemo()
            let client = try ClientProcess(
                lab, ["counter", "--connections", "4"], seconds: 3_600)
            try await client.goesOn()
            var blackouts = Blackouts()
            for round in 1...(2 * Output.speedRounds) {
                let before = pair
                if round <= Output.speedRounds {
                    let strike = try await Strike(.qemu, lab, before)
                    blackouts.add("a killed QEMU", at: strike.time)
                } else {
                    blackouts.add("a switchover", at: monotonicNanoseconds())
                    let answer = try await lab.attempt(["switchover", TestLab.demo])
                    try #require(answer.status == 0, "\(answer.errorOutput)")
                }
                pair = try await lab.protected("protected, round \(round)") {
                    $0.generation > before.generation
                }
                try await client.goesOn(by: 50)
            }
            let report = try await client.finish(CounterReport.self)
            report.expectNoViolation("numbers")
            blackouts.report(report.gaps)
        }
    }
}
