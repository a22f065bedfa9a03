import ControlAPI
import EndToEndSupport
import Foundation
import Lab
import Model
import Testing

extension EndToEnd {
    /// Planned moves of a running guest.
    @Suite(.lab(LabShape()), .keepingLogs)
    struct Switchovers {
        /// What `ftvm switchover` prints.
        private struct Moved: Decodable {
            var pair: PairView
            var from: HostName
            var to: HostName
            var stoodStillMilliseconds: Double?
        }

        @Test func aGuestMovesThereAndBackTenTimes() async throws {
            let lab = try TestLab.here()
            var (guest, pair) = try await lab.protectedDemo()
            try await guest.setDirtyRate(5_000)
            var census = DescriptorCensus()
            var times: [Double] = []
            for round in 1...10 {
                let covered = try await guest.covered()
                let before = pair
                let moved = try await lab.ftvm(Moved.self, "switchover", TestLab.demo)
                #expect(moved.from == before.primary && moved.to == before.secondary)
                pair = try await lab.protected("protected after move \(round)") {
                    $0.primary == before.secondary
                }
                #expect(pair.generation == before.generation.next, "one promotion, round \(round)")
                #expect(pair.lastSwitchover?.result == .done && pair.switchover == nil)
                times.append(try #require(moved.stoodStillMilliseconds))
                // Nothing at all is lost: the guest was not even asked to go back to a commit that covered this.
                try await guest.goesOn(from: covered)
                try await lab.expectNoLeak(pair)
                try await census.take(lab, pair)
            }
            census.check()
            times.sort()
            print("switchovers, ms without a guest: median \(times[times.count / 2]), all \(times)")
            try await guest.setDirtyRate(2_000)
        }

        @Test func aGuestMovesToAThirdHost() async throws {
            let lab = try TestLab.here()
            let (guest, before) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            let third = try #require(
                lab.hosts.first { $0 != before.primary && $0 != before.secondary })
            let moved = try await lab.ftvm(
                Moved.self, "switchover", TestLab.demo, "--to", third.text, "--reason", "a test")
            #expect(moved.pair.primary == third)
            let pair = try await lab.protected { $0.primary == third }
            #expect(pair.generation == before.generation.next)
            try await guest.goesOn(from: covered)
            try await lab.expectNoLeak(pair)
        }

        /// The target is killed while it makes its secondary: the guest goes on where it is.
        @Test func theTargetDiesBeforeItIsReady() async throws {
            let lab = try TestLab.here()
            let (guest, before) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            let third = try #require(
                lab.hosts.first { $0 != before.primary && $0 != before.secondary })
            let asked = try await lab.ftvm(
                PairView.self, "switchover", TestLab.demo, "--to", third.text, "--no-wait")
            let id = try #require(asked.switchover?.id)
            _ = try await lab.pair("leaves its secondary", seconds: 20) {
                $0.secondary == third || $0.lastSwitchover?.id == id
            }
            try await lab.kill(third)
            let pair = try await lab.protected("protected without \(third)") {
                $0.primary != third && $0.secondary != third && $0.switchover == nil
            }
            #expect(pair.lastSwitchover?.id == id)
            try await guest.goesOn(from: covered)
            try await lab.start(third)
            try await lab.expectNoLeak(pair)
        }

        @Test func whatCannotBeIsRefused() async throws {
            let lab = try TestLab.here()
            let (guest, pair) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            #expect(
                try await lab.refusal(
                    "switchover", TestLab.demo, "--to", pair.primary.text
                ).code == .alreadyExists)
            #expect(
                try await lab.refusal("switchover", TestLab.demo, "--to", "h9").code == .notFound)
            #expect(try await lab.refusal("switchover", "nobody").code == .notFound)
            #expect(
                try await lab.refusal("switchover", TestLab.demo, "--cancel").code
                    == .failedPrecondition)
            let third = try #require(
                lab.hosts.first { $0 != pair.primary && $0 != pair.secondary })
            try await lab.kill(third)
            _ = try await eventually("\(third) is dead", seconds: 20) {
                try await lab.ftvm([HostView].self, "hosts")
                    .first { $0.name == third && $0.state == .dead }
            }
            let dead = try await lab.refusal("switchover", TestLab.demo, "--to", third.text)
            #expect(dead.code == .failedPrecondition && dead.cause == "\(third): dead")
            // Without a secondary there is nothing to move to.
            let secondary = try #require(pair.secondary)
            try await lab.kill(secondary)
            _ = try await lab.pair("without a secondary", seconds: 20) {
                $0.state == .needSecondary && $0.secondary == nil
            }
            #expect(
                try await lab.refusal("switchover", TestLab.demo).code == .failedPrecondition)
            #expect(
                try await lab.refusal("drill", TestLab.demo, "--yes").code == .failedPrecondition)
            for host in [third, secondary] { try await lab.start(host) }
            _ = try await lab.protected { $0.generation == pair.generation }
            try await guest.goesOn(from: covered)
        }

        static let sourcePoints = [
            "gate.handed-over", "switchover.committed", "switchover.killed", "gate.collected-last",
            "switchover.released",
        ]
        static let targetPoints = ["switchover.armed", "switchover.claimed"]

        @Test(arguments: sourcePoints)
        func ftvmdOfTheSourceDies(point: String) async throws {
            try await diesInASwitchover(point) { [$0.primary] }
        }

        @Test(arguments: targetPoints)
        func ftvmdOfTheTargetDies(point: String) async throws {
            try await diesInASwitchover(point) { [$0.secondary].compactMap { $0 } }
        }

        /// Whatever happens, the guest goes on from where it was, on one host, and is protected in the end.
        private func diesInASwitchover(
            _ point: String, _ hosts: (PairView) -> [HostName]
        ) async throws {
            let lab = try TestLab.here()
            let (guest, before) = try await lab.protectedDemo()
            let fault = Fault(lab, point, pass: 1)
            try await fault.arm(hosts(before))
            let ready = try await lab.protected()
            #expect(ready.primary == before.primary && ready.secondary != nil)
            // The secondary may have been made elsewhere while its ftvmd was away.
            guard hosts(ready) == hosts(before) else {
                throw Failure("the pair has moved: \(ready)")
            }
            let covered = try await guest.covered()
            let other = try #require(lab.hosts.first { !hosts(before).contains($0) })
            let answer = try await lab.attempt(
                ["switchover", TestLab.demo, "--no-wait"], on: other)
            try #require(answer.status == 0, "\(answer.errorOutput)")
            try await fault.strikes()
            let pair = try await lab.protected("protected after \(fault)") {
                $0.switchover == nil
            }
            // A generation that an interrupted promotion may have used up is not used again.
            #expect(pair.generation.number <= ready.generation.number + 2)
            try await guest.goesOn(from: covered)
            try await lab.expectNoLeak(pair)
            try await fault.disarm()
        }
    }
}
