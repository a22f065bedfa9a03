import ControlAPI
import EndToEndSupport
import Foundation
import Lab
import Model
import Testing

extension EndToEnd {
    /// Hosts that are emptied and put into service again.
    @Suite(.lab(LabShape(hosts: 4)), .keepingLogs)
    struct Maintenance {
        /// Three pairs, two of them at home on the host, the third with its secondary there; another host dies while they
        /// move.
        @Test func aHostIsDrainedAlthoughAnotherDies() async throws {
            let lab = try TestLab.here()
            let home = lab.hosts[0]
            var guests: [Guest] = []
            for (index, host) in [home, home, lab.hosts[1]].enumerated() {
                var domain = GuestDomain()
                domain.name = index == 0 ? "demo" : "demo\(index + 1)"
                domain.number = 10 + index
                domain.memoryMiB = 192
                domain.dirtyPagesPerSecond = 500
                let secondary = host == home ? lab.hosts[1] : home
                guests.append(try await lab.runDemo(domain, on: host))
                _ = try await lab.ftvm(
                    PairView.self, "enable", domain.name, "--secondary", secondary.text)
            }
            var covered: [Guest.Covered] = []
            for guest in guests { covered.append(try await guest.covered()) }

            let asked = try await lab.ftvm(
                HostDrainView.self, "host", "drain", home.text, "--reason", "a test", "--no-wait",
                "--parallel", "1", on: lab.hosts[2])
            #expect(asked.maintenance?.reason == "a test" && asked.remaining.count == 3)
            try await lab.kill(lab.hosts[1])
            let drained = try await lab.ftvm(
                HostDrainView.self, "host", "drain", home.text, on: lab.hosts[2])
            #expect(drained.remaining == [] && drained.maintenance != nil)
            for (index, guest) in guests.enumerated() {
                let pair = try await lab.protected(of: guest.domain.name) {
                    $0.primary != home && $0.secondary != home
                }
                #expect(pair.switchover == nil)
                covered[index] = try await guest.goesOn(from: covered[index])
            }
            try await eventually("no QEMU is left on \(home)") {
                try await lab.qemus(home).isEmpty ? () : nil
            }
            // It stays so over a reboot, also where nothing else would do.
            try await lab.kill(home)
            try await lab.start(home)
            let hosts = try await lab.ftvm([HostView].self, "hosts", on: lab.hosts[2])
            #expect(hosts.first { $0.name == home }?.maintenance?.reason == "a test")
            try await lab.kill(lab.hosts[3])
            let alone = try await lab.pair("on the only host that serves", seconds: 60) {
                $0.primary == lab.hosts[2] && $0.state == .needSecondary
                    && $0.reason.contains("\(home): in maintenance")
            }
            #expect(alone.secondary == nil)
            _ = try await lab.ftvm(
                HostDrainView.self, "host", "undrain", home.text, on: lab.hosts[2])
            for guest in guests {
                _ = try await lab.protected(of: guest.domain.name) { $0.secondary == home }
            }
            for host in [lab.hosts[1], lab.hosts[3]] { try await lab.start(host) }
            for (index, guest) in guests.enumerated() {
                try await guest.goesOn(from: covered[index])
                try await lab.disable(guest.domain.name)
                try await lab.removeDemo(guest.domain.name)
            }
        }

        @Test func aHostThatNothingCanLeaveIsNotDrained() async throws {
            let lab = try TestLab.here()
            let (guest, pair) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            let others = lab.hosts.filter { $0 != pair.primary }
            for host in others { try await lab.kill(host) }
            _ = try await lab.pair("alone", seconds: 30) { $0.secondary == nil }
            let refusal = try await lab.refusal("host", "drain", pair.primary.text)
            #expect(refusal.code == .failedPrecondition)
            #expect(refusal.cause?.contains("no other host") == true)
            for host in others { try await lab.start(host) }
            let hosts = try await lab.ftvm([HostView].self, "hosts")
            #expect(hosts.allSatisfy { $0.maintenance == nil })
            #expect(try await lab.refusal("host", "drain", "h9").code == .notFound)
            _ = try await lab.protected { $0.primary == pair.primary }
            try await guest.goesOn(from: covered)
            try await lab.removeDemo()
        }
    }

    /// Failures on purpose, measured from outside.
    @Suite(.lab(LabShape()), .keepingLogs)
    struct Drills {
        @Test(arguments: DrillKind.allCases)
        func aDrillEndsProtected(kind: DrillKind) async throws {
            let lab = try TestLab.here()
            let (guest, before) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            let socket = lab.layout.daemonSocket(of: try #require(before.secondary))
            let words = [
                Command.ftvm, "lab", "client", "--name", lab.layout.name, "--", Command.ftvm,
                "drill", TestLab.demo, "--kind", kind.rawValue, "--yes", "--probe",
                guest.domain.address, "-o", "json", "--socket", socket,
            ]
            let outcome = try await Command.attempt(words, seconds: 90)
            try #require(outcome.status == 0, "\(outcome.output)\(outcome.errorOutput)")
            let report = try ControlJSON.decode(
                DrillReport.self, from: Array(outcome.output.utf8))
            #expect(report.verdict == .passed && report.problems == [] && report.endsProtected)
            #expect(report.blackoutSource == "probe" && report.from == before.primary)
            #expect(report.committedEpochsLost == (kind.movesGuest ? 0 : nil))
            print(
                "drill \(kind.rawValue): blackout \(report.blackoutMilliseconds ?? -1) ms, for the "
                    + "daemons \(report.daemonBlackoutMilliseconds ?? -1) ms")
            if kind == .killHost { try await lab.start(before.primary) }
            let pair = try await lab.protected()
            let moved = kind.movesGuest ? 1 : 0
            #expect(pair.generation.number == before.generation.number + UInt64(moved))
            try await guest.goesOn(from: covered)
            try await lab.expectNoLeak(pair)
            // Every host has it.
            let history = try await lab.ftvm([DrillReport].self, "drill", "--history")
            #expect(history.last == report)
        }

        @Test func aDrillWithoutAThirdHostIsRefused() async throws {
            let lab = try TestLab.here()
            let (guest, pair) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            let third = try #require(
                lab.hosts.first { $0 != pair.primary && $0 != pair.secondary })
            try await lab.kill(third)
            _ = try await eventually("\(third) is dead", seconds: 20) {
                try await lab.ftvm([HostView].self, "hosts")
                    .first { $0.name == third && $0.state == .dead }
            }
            let refusal = try await lab.refusal(
                "drill", TestLab.demo, "--kind", "kill-host", "--yes")
            #expect(refusal.code == .failedPrecondition)
            #expect(refusal.cause?.contains("no host for a secondary afterwards") == true)
            #expect(
                try await lab.refusal("drill", TestLab.demo).code == .invalidArgument,
                "nobody can be asked")
            // Where the old primary's host can have the next secondary, two hosts are enough.
            let report = try await lab.ftvm(
                DrillReport.self, "drill", TestLab.demo, "--kind", "kill-qemu", "--yes")
            #expect(report.verdict == .passed && report.to == pair.secondary)
            try await lab.start(third)
            _ = try await lab.protected { $0.primary == pair.secondary }
            try await guest.goesOn(from: covered)
        }
    }
}
