import ControlAPI
import EndToEndSupport
import Foundation
import GuestClients
import Lab
import Model
import Testing

extension Output {
    /// Software that knows nothing of tests.
    @Suite(.lab(LabShape()), .keepingLogs)
    struct Software {
        /// A store that has everything in memory and nothing on a disk: what it has acknowledged is there, whatever
        /// became of its hosts.
        @Test func redisKeepsEveryAcknowledgedWrite() async throws {
            let lab = try TestLab.here()
            try await lab.removeDemo()
            var domain = GuestDomain()
            domain.hasRedis = true
            var (guest, pair) = try await lab.protectedDemo(domain)
            try await eventually("redis answers", seconds: 30) { () async throws -> Void? in
                try await redis(guest, "PING") == "PONG" ? () : nil
            }
            let client = try ClientProcess(
                lab, ["redis", "--address", domain.address], seconds: 3_600)
            try await client.goesOn()
            var random = Settings.random("redis")
            for round in 1...Output.redisKills {
                try await Task.sleep(for: .milliseconds(Int.random(in: 0...800, using: &random)))
                let before = pair
                let strike = try await Strike(.host, lab, before)
                pair = try await lab.protected("protected, round \(round)") {
                    $0.generation > before.generation
                }
                try await strike.repair(lab)
                try await client.goesOn()
            }
            let report = try await client.finish(RedisReport.self)
            print(
                "redis: \(report.acknowledgedWrites) writes acknowledged, \(report.verifiedKeys) keys read "
                    + "again, latency \(report.latency)")
            report.expectNoViolation("redis")
            #expect(report.lostConnections == 0)
            #expect(report.acknowledgedWrites > 100 && report.verifiedKeys > 4)
            // The real client is of the same opinion.
            #expect(try await redis(guest, "GET", "shared") == "\(report.shared)")
            #expect(try await redis(guest, "DBSIZE") == "\(report.verifiedKeys + 1)")
            try await lab.removeDemo()
        }

        private func redis(_ guest: Guest, _ words: String...) async throws -> String {
            let outcome = try await guest.lab.attemptClient(
                ["redis-cli", "-h", guest.domain.address] + words)
            return outcome.output.trimmingCharacters(in: .whitespacesAndNewlines)
        }

        @Test(arguments: ["download", "upload"])
        func aLongTransferArrivesWhole(direction: String) async throws {
            let lab = try TestLab.here()
            var (guest, pair) = try await lab.protectedDemo()
            var random = Settings.random(direction)
            let seed = UInt32.random(in: 0...UInt32.max, using: &random)
            let client = try ClientProcess(
                lab, [direction, "--seed", "\(seed)", "--address", guest.domain.address],
                seconds: 3_600)
            try await client.goesOn()
            for round in 1...Output.transferKills {
                try await Task.sleep(for: .milliseconds(Int.random(in: 0...500, using: &random)))
                let before = pair
                let kill = Kill.allCases[round % Kill.allCases.count]
                let strike = try await Strike(kill, lab, before)
                pair = try await lab.protected("protected after \(kill), round \(round)") {
                    $0.generation > before.generation
                }
                try await strike.repair(lab)
                try await client.goesOn()
            }
            let report = try await client.finish(TransferReport.self)
            print(
                "\(direction): \(report.bytes >> 20) MiB in \(Int(report.seconds)) s, checksum "
                    + "\(report.checksum), expected \(report.expectedChecksum)")
            report.expectNoViolation(direction)
            #expect(report.bytes > 1 << 20 && report.checksum == report.expectedChecksum)
            #expect(try await guest.status().checker.bad == 0)
        }
    }
}
