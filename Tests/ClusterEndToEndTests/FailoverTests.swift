import ControlAPI
import EndToEndSupport
import Foundation
import Lab
import Model
import Testing

extension ClusterEndToEnd {
    /// With no hand on the keyboard.
    @Suite(.lab(LabShape()), .keepingLogs)
    struct Failovers {
        private func guests(_ lab: TestLab, on host: HostName) async throws -> [Guest] {
            var guests: [Guest] = []
            for number in 10...12 {
                var domain = GuestDomain()
                domain.number = number
                domain.name = number == 10 ? TestLab.demo : "demo\(number)"
                domain.memoryMiB = 128
                domain.dirtyPagesPerSecond = 200
                let guest = try await lab.runDemo(domain, on: host)
                _ = try await lab.ftvm(PairView.self, "enable", domain.name)
                guests.append(guest)
            }
            for guest in guests { _ = try await lab.protected(of: guest.domain.name) }
            return guests
        }

        @Test func allPairsOfADeadHostGoOn() async throws {
            let lab = try TestLab.here()
            try await lab.removeDemo()
            let guests = try await guests(lab, on: lab.hosts[0])
            var decisions: [Double] = []
            for round in 1...ClusterEndToEnd.rounds {
                var before: [String: PairView] = [:]
                var covered: [String: Guest.Covered] = [:]
                for guest in guests {
                    let name = guest.domain.name
                    before[name] = try await lab.protected(of: name)
                    covered[name] = try await guest.covered()
                }
                let victim = try #require(before[TestLab.demo]?.primary)
                let number = try await lab.lastEvent()
                let strike = try await Strike(.host, lab, try #require(before[TestLab.demo]))
                for guest in guests {
                    let name = guest.domain.name
                    let old = try #require(before[name])
                    let pair = try await lab.protected(
                        "protected without \(victim), round \(round)", of: name
                    ) { $0.primary != victim && $0.secondary != victim }
                    if old.primary == victim {
                        #expect(pair.generation == old.generation.next)
                        decisions.append(
                            try await ClusterEndToEnd.decision(
                                lab, after: number, death: strike.time, of: name))
                    } else {
                        #expect(pair.generation == old.generation)
                    }
                    try await guest.goesOn(from: try #require(covered[name]))
                }
                try await lab.start(victim)
            }
            ClusterEndToEnd.report("host killed to promotion decided, 3 pairs", decisions)
            for guest in guests.dropFirst() { try await lab.removeDemo(guest.domain.name) }
        }

        /// `ftvmd` dies on one side, then on the other, while a failover is under way.
        @Test func ftvmdDiesInAFailover() async throws {
            let lab = try TestLab.here()
            try await lab.prepare()
            var (guest, pair) = try await lab.protectedDemo()
            var random = Settings.random("ftvmdDiesInAFailover")
            for round in 1...2 * ClusterEndToEnd.rounds {
                let covered = try await guest.covered()
                let before = pair
                let secondary = try #require(before.secondary)
                let victim = round % 2 == 0 ? before.primary : secondary
                let daemon = try #require(try await lab.daemon(victim))
                _ = try await Strike(.qemu, lab, before)
                try await Task.sleep(
                    for: .milliseconds(Int.random(in: 0...150, using: &random)))
                try daemon.kill()
                pair = try await lab.protected("protected after ftvmd on \(victim), \(round)") {
                    $0.generation > before.generation
                }
                #expect(pair.generation.number <= before.generation.number + 2)
                try await guest.goesOn(from: covered)
                try await lab.newDaemon(victim, not: daemon)
            }
            try await lab.expectNoLeak(pair)
        }

        /// etcd instead of the file: the same, and its loss alone stops nobody's guest.
        @Test func etcdIsAStoreLikeAnyOther() async throws {
            let lab = try TestLab.here()
            try await lab.removeDemo()
            try await lab.startEtcd()
            try await lab.configure { _ in
                """
                [store]
                kind = "etcd"
                endpoints = ["\(lab.etcdURL)"]
                attempt_milliseconds = 500
                request_milliseconds = 1000
                """
            }
            var (guest, pair) = try await lab.protectedDemo()
            var decisions: [Double] = []
            for round in 1...ClusterEndToEnd.rounds {
                var covered = try await guest.covered()
                try await lab.killEtcd()
                let client = try await guest.connect()
                for _ in 1...10 {
                    _ = try client.status()
                    try await Task.sleep(for: .milliseconds(200))
                }
                try await lab.startEtcd()
                pair = try await lab.protected("protected after etcd, round \(round)") {
                    $0.primary == pair.primary && $0.generation == pair.generation
                }
                try await guest.goesOn(from: covered)
                covered = try await guest.covered()
                let before = pair
                let number = try await lab.lastEvent()
                let strike = try await Strike(.host, lab, before)
                pair = try await lab.protected("protected with etcd, round \(round)") {
                    $0.primary == before.secondary && $0.secondary != before.primary
                }
                decisions.append(
                    try await ClusterEndToEnd.decision(lab, after: number, death: strike.time))
                #expect(pair.generation == before.generation.next)
                try await guest.goesOn(from: covered)
                try await lab.start(before.primary)
            }
            ClusterEndToEnd.report("host killed to promotion decided, etcd", decisions)
            try await lab.removeDemo()
            try await lab.configure { _ in "" }
            try await lab.killEtcd()
        }

        /// The fast profile: 40 ms, dead after 4.
        @Test func theFastProfile() async throws {
            let lab = try TestLab.here()
            try await lab.removeDemo()
            try await lab.configure { _ in
                """
                heartbeat_period_milliseconds = 40
                heartbeat_misses_until_dead = 4
                """
            }
            var (guest, pair) = try await lab.protectedDemo()
            var decisions: [Double] = []
            for _ in 1...ClusterEndToEnd.rounds {
                let covered = try await guest.covered()
                let before = pair
                let number = try await lab.lastEvent()
                let strike = try await Strike(.host, lab, before)
                pair = try await lab.protected { $0.primary == before.secondary }
                decisions.append(
                    try await ClusterEndToEnd.decision(lab, after: number, death: strike.time))
                try await guest.goesOn(from: covered)
                try await lab.start(before.primary)
            }
            ClusterEndToEnd.report("host killed to promotion decided, fast profile", decisions)
            try await lab.removeDemo()
            try await lab.configure { _ in "" }
        }
    }
}
