import ControlAPI
import EndToEndSupport
import Foundation
import GuestClients
import Lab
import Model
import Testing

extension Output {
    /// Nothing that any client was ever told is taken back, and no connection breaks.
    @Suite(.lab(LabShape()), .keepingLogs)
    struct Numbers {
        @Test func numbersHaveNoGapOverRandomKills() async throws {
            try await randomKills(GuestDomain(), rounds: Output.kills, test: "numbers")
        }

        @Test func twoCardsAreBothHeld() async throws {
            var domain = GuestDomain()
            domain.hasSecondCard = true
            let lab = try TestLab.here()
            try await lab.removeDemo()
            // The clients' address in the second card's network.
            _ = try await lab.client([
                "ip", "address", "replace", "10.78.0.1/24", "dev", "lab0",
            ])
            try await randomKills(domain, rounds: Output.secondCardKills, test: "two cards")
            try await lab.removeDemo()
        }

        private func randomKills(_ domain: GuestDomain, rounds: Int, test: String) async throws {
            let lab = try TestLab.here()
            var (guest, pair) = try await lab.protectedDemo(domain)
            var random = Settings.random(test)
            var blackouts = Blackouts()
            // Each kind as often as the others, in an order that nobody knows.
            var kills: [Kill] = []
            let verdict = try await Audience.watching(lab, guest, at: pair.primary) { audience in
                for round in 1...rounds {
                    if kills.isEmpty { kills = Kill.allCases.shuffled(using: &random) }
                    let kill = kills.removeLast()
                    try await pause(0...500, &random)
                    let before = pair
                    let strike = try await Strike(kill, lab, before)
                    blackouts.add(kill.rawValue, at: strike.time)
                    pair = try await lab.protected("protected after \(kill), round \(round)") {
                        $0.generation > before.generation
                    }
                    #expect(pair.primary == before.secondary, "\(kill), round \(round)")
                    #expect(pair.generation == before.generation.next, "\(kill), round \(round)")
                    try await strike.repair(lab)
                    try await audience.goesOn(at: pair.primary)
                }
            }
            blackouts.report(verdict.numbers.gaps)
            try await lab.expectNoLeak(pair, cards: domain.hasSecondCard ? 2 : 1)
        }

        private func pause(_ range: ClosedRange<Int>, _ random: inout SeededRandom) async throws {
            try await Task.sleep(for: .milliseconds(Int.random(in: range, using: &random)))
        }

        /// A new `ftvmd` takes up frames and filters as they are.
        @Test func aKilledFtvmdLosesNothing() async throws {
            let lab = try TestLab.here()
            var (guest, pair) = try await lab.protectedDemo()
            var random = Settings.random("ftvmd")
            var blackouts = Blackouts()
            let verdict = try await Audience.watching(lab, guest, at: pair.primary) { audience in
                for round in 1...Output.daemonKills {
                    let before = pair
                    let victim =
                        round % 4 == 0 ? try #require(before.secondary) : before.primary
                    try await pause(0...200, &random)
                    blackouts.add("ftvmd", at: monotonicNanoseconds())
                    try await lab.killDaemon(victim)
                    pair = try await lab.protected("protected after ftvmd on \(victim), \(round)")
                    #expect(pair.generation == before.generation, "no failover, round \(round)")
                    try await audience.goesOn(at: pair.primary)
                }
                // And when the guest fails over after all that, nothing has been forgotten.
                let before = pair
                let strike = try await Strike(.qemu, lab, before)
                blackouts.add(strike.kill.rawValue, at: strike.time)
                pair = try await lab.protected { $0.generation > before.generation }
                try await audience.goesOn(at: pair.primary)
            }
            blackouts.report(verdict.numbers.gaps)
        }

        /// A QEMU that stands still for a moment is neither lost nor forgotten.
        @Test func aShortStandstillLosesNothing() async throws {
            let lab = try TestLab.here()
            let (guest, before) = try await lab.protectedDemo()
            var random = Settings.random("standstill")
            try await Audience.watching(lab, guest, at: before.primary) { audience in
                for _ in 1...10 {
                    let qemu = try await lab.presentQEMU(before.primary)
                    try #require(kill(qemu.pid, SIGSTOP) == 0)
                    try await pause(20...150, &random)
                    try #require(kill(qemu.pid, SIGCONT) == 0)
                    try await audience.goesOn(at: before.primary)
                }
            }
            let pair = try await lab.protected()
            #expect(pair.generation == before.generation, "no failover")
        }

        /// Protection begins and ends under clients without their noticing.
        @Test func enablingAndDisablingLosesNothing() async throws {
            let lab = try TestLab.here()
            try await lab.removeDemo()
            let home = lab.hosts[0]
            let guest = try await lab.runDemo(on: home)
            var blackouts = Blackouts()
            let verdict = try await Audience.watching(lab, guest, at: home) { audience in
                for _ in 1...3 {
                    blackouts.add("enable", at: monotonicNanoseconds())
                    _ = try await lab.ftvm(PairView.self, "enable", TestLab.demo)
                    _ = try await lab.protected()
                    try await audience.goesOn(at: home)
                    blackouts.add("disable", at: monotonicNanoseconds())
                    try await lab.disable()
                    try await audience.goesOn(at: home)
                }
            }
            blackouts.report(verdict.numbers.gaps)
            try await lab.removeDemo()
        }
    }
}
