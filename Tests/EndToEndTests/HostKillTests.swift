import ControlAPI
import EndToEndSupport
import Foundation
import Lab
import Model
import Testing

extension EndToEnd {
    /// Hosts that die, one after the other.
    @Suite(.lab(LabShape()), .keepingLogs)
    struct HostKills {
        /// Going round the three hosts: each time the primary's host dies, and boots again when the guest is protected
        /// elsewhere.
        @Test func aGuestOutlivesManyHosts() async throws {
            let lab = try TestLab.here()
            let pools = try await lab.ftvm([PoolView].self, "pool", "list")
            let original = try await lab.define(on: lab.hosts[0])
            var (guest, pair) = try await lab.protectedDemo()
            try await guest.setDirtyRate(5_000)
            var census = DescriptorCensus()
            var times: [Double] = []
            for round in 1...Settings.hostKills {
                let covered = try await guest.covered()
                let number = try await lab.lastEvent()
                let (killed, before) = (pair.primary, pair)
                try await lab.kill(killed)
                pair = try await lab.protected("protected without \(killed), round \(round)") {
                    $0.primary != killed && $0.secondary != killed
                }
                #expect(pair.primary == before.secondary)
                #expect(pair.generation == before.generation.next, "one failover, round \(round)")
                let promoted = try await promotion(lab, number)
                #expect(try #require(promoted.epoch) > (covered.epoch ?? Epoch(0)))
                times.append(promoted.milliseconds)
                try await lab.start(killed)
                try await guest.goesOn(from: covered)
                try await lab.expectNoLeak(pair)
                try await census.take(lab, pair)
            }
            times.sort()
            print("promotions, ms: median \(times[times.count / 2]), all \(times)")
            census.check()
            // The last one that died boots when the pair is gone, and finds a leftover that nobody else tells of.
            let late = pair.primary
            try await lab.kill(late)
            pair = try await lab.protected("protected without \(late)") { $0.primary != late }
            try await lab.disableAndExpectNothing(pools)
            try await lab.start(late)
            // The definition has gone with the guest, and is nowhere else.
            for host in lab.hosts {
                let there = host == pair.primary ? [TestLab.demo] : []
                // A host that has just booted looks through its own once it knows the pairs.
                try await eventually("domains of \(host) are \(there)") {
                    () async throws -> Void? in
                    try await lab.domains(host) == there ? () : nil
                }
            }
            expectSame(
                try await lab.virsh(pair.primary, "dumpxml", "--inactive", TestLab.demo), original)
            try await lab.removeDemo()
        }

        /// From the event: the epoch that the guest went on from, and how long it took.
        private func promotion(
            _ lab: TestLab, _ number: UInt64
        ) async throws -> (epoch: Epoch?, milliseconds: Double) {
            let events = try await lab.events(after: number)
            let event = try #require(
                events.first { $0.figures["promotionMilliseconds"] != nil }, "\(events)")
            let words = event.message.split(whereSeparator: { " ,".contains($0) })
            let epoch = words.firstIndex(of: "epoch").flatMap { UInt64(words[$0 + 1]) }
            return (epoch.map { Epoch($0) }, event.figures["promotionMilliseconds"] ?? .nan)
        }
    }
}
