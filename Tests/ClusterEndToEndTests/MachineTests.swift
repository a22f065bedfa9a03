import ControlAPI
import EndToEndSupport
import Foundation
import GuestClients
import Lab
import Model
import Testing

extension ClusterEndToEnd {
    /// Hosts that share no kernel: what is not proven is not promoted.
    @Suite(.lab(LabShape(separateMachines: true)), .keepingLogs)
    struct Machines {
        /// The host that is asked, when that of the pair's primary is not there.
        private func other(_ lab: TestLab, _ pair: PairView) throws -> HostName {
            try #require(lab.hosts.first { $0 != pair.primary })
        }

        @Test func withoutAFenceNothingIsPromotedUntilAPersonSaysSo() async throws {
            let lab = try TestLab.here()
            try await lab.prepare { _ in
                ClusterEndToEnd.fences(lab, "fence_hang", offMilliseconds: 300)
            }
            var (guest, pair) = try await lab.protectedDemo()
            for round in 1...ClusterEndToEnd.rounds {
                let covered = try await guest.covered()
                let before = pair
                try await lab.kill(before.primary)
                let waiting = try await lab.pair("waiting for a fence, round \(round)", seconds: 30)
                {
                    $0.reason.contains("agent fence_hang: timed out")
                }
                #expect(waiting.state == .failingOver)
                #expect(waiting.reason.contains("waiting for a fence of \(before.primary) ("))
                #expect(waiting.reason.contains("next try in"))
                try await Task.sleep(for: .seconds(2))
                let still = try await lab.present()
                #expect(still.generation == before.generation && still.promoting == nil)
                let socket = lab.layout.daemonSocket(of: try other(lab, before))
                let probe = try await Command.attempt([Command.ftvm, "check", "--socket", socket])
                #expect(probe.status == 2 && probe.output.hasPrefix("FTVM CRITICAL"))
                let host = try other(lab, before)
                let outcome = try await lab.attempt(
                    ["hosts", "fence", before.primary.text, "--confirm-dead"], on: host)
                try #require(outcome.status == 0, "\(outcome.errorOutput)")
                pair = try await lab.protected { $0.primary == before.secondary }
                #expect(pair.generation == before.generation.next)
                try await guest.goesOn(from: covered)
                try await lab.start(before.primary)
                pair = try await lab.protected { $0.primary == before.secondary }
            }
            let alive = try await lab.refusal(
                "hosts", "fence", pair.primary.text, "--confirm-dead",
                on: try other(lab, pair))
            #expect(alive.code == .failedPrecondition)
        }

        /// A host that stands still is switched off, and its pairs go on.
        @Test func aFrozenHostIsFencedByItsAgent() async throws {
            let lab = try TestLab.here()
            try await lab.prepare { _ in ClusterEndToEnd.fences(lab, "fence_lab") }
            var (guest, pair) = try await lab.protectedDemo()
            var decisions: [Double] = []
            try await lab.withPowerSwitches {
                for round in 1...ClusterEndToEnd.rounds {
                    let covered = try await guest.covered()
                    let before = pair
                    let number = try await lab.lastEvent()
                    try await lab.freeze(before.primary)
                    let frozen = monotonicNanoseconds()
                    pair = try await lab.protected("protected without its host, round \(round)") {
                        $0.primary == before.secondary && $0.secondary != before.primary
                    }
                    #expect(pair.generation == before.generation.next)
                    decisions.append(
                        try await ClusterEndToEnd.decision(lab, after: number, death: frozen))
                    let events = try await lab.events(after: number)
                    #expect(events.contains { $0.reason == .fenceProven(before.primary, .agent) })
                    try await guest.goesOn(from: covered)
                    try await lab.switchOn(before.primary)
                    try await lab.expectNoLeak(pair)
                }
            }
            ClusterEndToEnd.report("frozen host to promotion decided, by an agent", decisions)
        }

        /// A planned move needs no fence: the source's own word is the proof.
        @Test func aPlannedMoveBetweenMachines() async throws {
            let lab = try TestLab.here()
            let (guest, before) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            let number = try await lab.lastEvent()
            let moved = try await lab.attempt(["switchover", TestLab.demo])
            try #require(moved.status == 0, "\(moved.errorOutput)")
            let pair = try await lab.protected { $0.primary == before.secondary }
            #expect(pair.generation == before.generation.next)
            let events = try await lab.events(after: number)
            #expect(!events.contains { $0.kind == .waitingForFence })
            try await guest.goesOn(from: covered)
        }

        /// Nothing says goodbye and no lock is seen to be free: what counts are the heartbeats missed, and an agent that
        /// answers at once.
        @Test(arguments: ["fast", "default"])
        func aDeadHostIsNoticedInTime(profile: String) async throws {
            let lab = try TestLab.here()
            let isFast = profile == "fast"
            try await lab.prepare { _ in
                (isFast
                    ? "heartbeat_period_milliseconds = 40\nheartbeat_misses_until_dead = 4\n" : "")
                    + ClusterEndToEnd.fences(lab, "fence_liar")
            }
            var (guest, pair) = try await lab.protectedDemo()
            var decisions: [Double] = []
            for round in 1...ClusterEndToEnd.rounds {
                let covered = try await guest.covered()
                let before = pair
                let number = try await lab.lastEvent()
                let strike = try await Strike(.host, lab, before)
                pair = try await lab.protected("protected without its host, round \(round)") {
                    $0.primary == before.secondary
                }
                decisions.append(
                    try await ClusterEndToEnd.decision(lab, after: number, death: strike.time))
                try await guest.goesOn(from: covered)
                try await lab.start(before.primary)
            }
            ClusterEndToEnd.report(
                "host killed to promotion decided, another machine, \(profile)", decisions)
        }

        /// Cut off from the others' network, a host that reaches pool and store is suspect and nothing more.
        @Test func aCutAccusesNobody() async throws {
            let lab = try TestLab.here()
            try await lab.prepare { _ in ClusterEndToEnd.fences(lab, "fence_liar") }
            for direction in ["in", "out", "both"] { try await cutAccusesNobody(lab, direction) }
        }

        private func cutAccusesNobody(_ lab: TestLab, _ direction: String) async throws {
            let (guest, before) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            let number = try await lab.lastEvent()
            for _ in 1...ClusterEndToEnd.rounds {
                // Each host in a full run; the primary's otherwise.
                for victim in ClusterEndToEnd.isFull ? lab.hosts : [before.primary] {
                    let at = try #require(lab.hosts.first { $0 != victim })
                    try await block(lab, victim, direction, true)
                    try await eventually("\(victim) is suspect on a way", seconds: 20) {
                        () async throws -> Void? in
                        // Who hears nothing accuses all others; who is not heard is accused by them.
                        let asker = direction == "in" ? victim : at
                        let seen = direction == "in" ? at : victim
                        let views = try await lab.ftvm([HostView].self, "hosts", on: asker)
                        let ways = views.first { $0.name == seen }?.ways ?? []
                        return ways.contains { $0.way == .udp && !$0.heard } ? () : nil
                    }
                    try await block(lab, victim, direction, false)
                    try await lab.allOnline()
                }
            }
            let pair = try await lab.protected { $0.primary == before.primary }
            #expect(pair.generation == before.generation)
            let kinds = try await lab.events(after: number).map(\.kind)
            #expect(kinds.contains(.hostSuspected))
            #expect(!kinds.contains(.hostDead) && !kinds.contains(.promotionStarted))
            try await guest.goesOn(from: covered)
        }

        /// The agent says that the host is off, and it only stood still: when it goes on, its generation has passed. No
        /// frame of its guest gets out, and its ftvmd ends it.
        @Test func aLieLetsNoPacketOut() async throws {
            let lab = try TestLab.here()
            for round in 1...ClusterEndToEnd.rounds {
                try await lab.prepare { _ in ClusterEndToEnd.fences(lab, "fence_liar") }
                let (guest, before) = try await lab.protectedDemo()
                let capture = try ClientProcess(
                    lab, ["capture", "--mac", guest.domain.macAddress], seconds: 300)
                let client = try await guest.connect()
                try #require(try client.ask("beacon 0 10.77.0.1 9 2000") == "ok")
                try await capture.goesOn(by: 50)
                try await lab.freeze(before.primary)
                let promoted = try await lab.pair("promoted, round \(round)") {
                    $0.primary == before.secondary && $0.generation > before.generation
                }
                #expect(promoted.generation == before.generation.next)
                let thawed = monotonicNanoseconds()
                try await lab.thaw(before.primary)
                try await eventually("the old primary is ended by its own host", seconds: 20) {
                    () async throws -> Void? in
                    let now = try await lab.present()
                    if now.secondary == before.primary { return () }
                    return try await lab.qemus(before.primary).isEmpty ? () : nil
                }
                let report = try await capture.finish(CaptureReport.self)
                #expect(report.dropped == 0)
                let stretches = report.stretches[guest.domain.macAddress] ?? []
                for stretch in stretches where stretch.port == before.primary.text {
                    #expect(stretch.to < thawed, "the old primary sent \(stretches)")
                }
                // What the lie let the old guest write into the segment is the price (Cluster.md): the guest may be
                // damaged beyond any promotion. Everything begins anew.
                try await lab.up()
            }
        }

        private func block(
            _ lab: TestLab, _ host: HostName, _ direction: String, _ isOn: Bool
        ) async throws {
            for chain in direction == "both" ? ["in", "out"] : [direction] {
                _ = try await lab.exec(
                    host,
                    [
                        "iptables", isOn ? "-A" : "-D", chain == "in" ? "INPUT" : "OUTPUT", "-p",
                        "udp", "--dport", "7750", "-j", "DROP",
                    ])
            }
        }
    }
}
