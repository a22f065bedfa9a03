import ControlAPI
import EndToEndSupport
import Foundation
import GuestClients
import Lab
import Model
import Testing

extension Output {
    /// Planned moves under clients.
    @Suite(.lab(LabShape()), .keepingLogs)
    struct Moves {
        @Test func switchoversInARow() async throws {
            let lab = try TestLab.here()
            var (guest, pair) = try await lab.protectedDemo()
            var blackouts = Blackouts()
            let verdict = try await Audience.watching(lab, guest, at: pair.primary) { audience in
                for round in 1...Output.switchovers {
                    let before = pair
                    blackouts.add("switchover", at: monotonicNanoseconds())
                    let answer = try await lab.attempt(["switchover", TestLab.demo])
                    try #require(answer.status == 0, "round \(round): \(answer.errorOutput)")
                    pair = try await lab.protected("protected after switchover \(round)") {
                        $0.generation > before.generation
                    }
                    #expect(pair.primary == before.secondary)
                    #expect(pair.generation == before.generation.next)
                    try await audience.goesOn(at: pair.primary)
                }
            }
            blackouts.report(verdict.numbers.gaps)
            try await lab.expectNoLeak(pair)
        }

        @Test func aHostIsDrained() async throws {
            let lab = try TestLab.here()
            let (guest, before) = try await lab.protectedDemo()
            let drained = before.primary
            try await Audience.watching(lab, guest, at: drained) { audience in
                let answer = try await lab.attempt(["host", "drain", drained.text])
                try #require(answer.status == 0, "\(answer.errorOutput)")
                let pair = try await lab.protected("protected without \(drained)") {
                    $0.primary != drained && $0.secondary != drained
                }
                try await audience.goesOn(at: pair.primary)
                #expect(try await lab.qemus(drained).isEmpty, "nothing is left on \(drained)")
            }
            try await lab.removeDemo()
        }
    }
}
