import ControlAPI
import EndToEndSupport
import Foundation
import Lab
import Model
import Testing

extension EndToEnd {
    /// `ftvmd` may be killed at any moment: neither the guest nor the pair takes harm.
    @Suite(.lab(LabShape()), .keepingLogs)
    struct DaemonKills {
        /// Of the primary's host, and now and then of the secondary's, while the guest dirties memory hard.
        @Test func ftvmdIsKilledUnderLoad() async throws {
            let lab = try TestLab.here()
            var (guest, pair) = try await lab.protectedDemo()
            try await guest.setDirtyRate(20_000)
            var random = Settings.random("ftvmdIsKilledUnderLoad")
            for round in 1...Settings.daemonKills {
                let covered = try await guest.covered()
                let before = pair
                let other = try #require(pair.secondary)
                let victim = round % 5 == 0 ? other : pair.primary
                // Anywhere in some epoch: this is the moment that is meant to be arbitrary.
                try await Task.sleep(for: .microseconds(Int.random(in: 0...80_000, using: &random)))
                try await lab.killDaemon(victim)
                pair = try await lab.protected("protected after ftvmd on \(victim), round \(round)")
                #expect(pair.generation == before.generation, "no failover, round \(round)")
                #expect(pair.primary == before.primary)
                try await guest.goesOn(from: covered)
            }
            try await lab.expectNoLeak(pair)
            try await lab.removeDemo()
        }

        /// All of them at once.
        @Test func everyFtvmdIsKilled() async throws {
            let lab = try TestLab.here()
            let (guest, before) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            for host in lab.hosts { try (try #require(try await lab.daemon(host))).kill() }
            let pair = try await lab.protected()
            #expect(pair.primary == before.primary && pair.generation == before.generation)
            try await guest.goesOn(from: covered)
            try await lab.removeDemo()
        }
    }
}
