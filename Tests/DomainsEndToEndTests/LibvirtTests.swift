import ControlAPI
import EndToEndSupport
import Foundation
import Lab
import Model
import Testing

extension Domains {
    /// What libvirt's own commands do to a protected domain.
    @Suite(.lab(LabShape()), .keepingLogs)
    struct Libvirt {
        @Test func aPausedGuestStaysPaused() async throws {
            let lab = try TestLab.here()
            var (guest, pair) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            try await suspend(lab, pair.primary)
            // The commit of the guest as it stands.
            _ = try await lab.pair("committed as it stands") { $0.state == .protected }
            try await Task.sleep(for: .milliseconds(300))
            let other = try #require(pair.secondary)
            try await lab.presentQEMU(pair.primary).kill()
            pair = try await lab.pair("protected on \(other)") {
                $0.primary == other && $0.state == .protected
            }
            for _ in 1...10 {
                let state = try await lab.virsh(other, "domstate", TestLab.demo)
                #expect(state.hasPrefix("paused"))
                try await Task.sleep(for: .milliseconds(50))
            }
            _ = try await lab.virsh(other, "resume", TestLab.demo)
            try await guest.goesOn(from: covered)
            try await lab.removeDemo()
        }

        /// Protection begins without a user's pause coming to an end.
        @Test func aPausedGuestIsProtected() async throws {
            let lab = try TestLab.here()
            let home = lab.hosts[0]
            let guest = try await lab.runDemo(on: home)
            let before = try await guest.covered()
            _ = try await lab.virsh(home, "suspend", TestLab.demo)
            _ = try await lab.ftvm(PairView.self, "enable", TestLab.demo)
            _ = try await lab.pair("protected") { $0.state == .protected && $0.secondaryReady }
            #expect(try await lab.virsh(home, "domstate", TestLab.demo).hasPrefix("paused"))
            _ = try await lab.virsh(home, "resume", TestLab.demo)
            try await guest.goesOn(from: before)
            _ = try await lab.protected()
            try await lab.removeDemo()
        }

        /// One that falls into a commit's pause ends with it (Documentation/Domains.md), and is asked for again.
        private func suspend(_ lab: TestLab, _ host: HostName) async throws {
            try await eventually("a suspend lasts") { () async throws -> Void? in
                _ = try await lab.virsh(host, "suspend", TestLab.demo)
                for _ in 1...5 {
                    let state = try await lab.virsh(host, "domstate", TestLab.demo)
                    guard state.hasPrefix("paused") else { return nil }
                    try await Task.sleep(for: .milliseconds(40))
                }
                return ()
            }
        }

        @Test func noSecondCopyIsStarted() async throws {
            let lab = try TestLab.here()
            let (guest, pair) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            let third = try #require(lab.hosts.first { $0 != pair.primary && $0 != pair.secondary })
            try await lab.define(on: third)
            let uri = lab.layout.libvirtURI(of: third)
            let started = try await Command.attempt(["virsh", "-c", uri, "start", TestLab.demo])
            #expect(started.status != 0)
            #expect(started.errorOutput.contains("belongs to \(pair.primary)"))
            #expect(try await lab.qemu(third) == nil)
            _ = try await lab.virsh(third, "undefine", TestLab.demo)

            let moved = try await Command.attempt(
                [
                    "virsh", "-c", lab.layout.libvirtURI(of: pair.primary), "migrate", "--live",
                    TestLab.demo, uri,
                ], seconds: 60)
            #expect(moved.status != 0)
            try await guest.goesOn(from: covered)
            _ = try await lab.protected { $0.primary == pair.primary }
            try await lab.removeDemo()
        }

        /// `ftvm doctor` on hosts that are as they should be, and on one that is not.
        @Test func doctorLooks() async throws {
            let lab = try TestLab.here()
            let home = lab.hosts[0]
            try await lab.define(on: home)
            let good = try await doctor(lab, "demo")
            // Nothing but what this machine is like: KVM and clock are not the lab's.
            let wrong = good.checks.filter { $0.verdict == .fail }
            #expect(wrong.isEmpty, "\(wrong)")
            #expect(good.checks.contains { $0.name == "network" && $0.verdict == .pass })
            #expect(Set(good.checks.map(\.subject)).isSuperset(of: lab.hosts.map(\.text)))

            _ = try await Command.succeed([
                Command.ftvm, "lab", "exec", "h2", "--name", lab.layout.name, "--", "ip", "link",
                "set", "br0", "name", "br9",
            ])
            let bad = try await doctor(lab, "demo")
            let check = try #require(bad.checks.first { $0.name == "network" })
            #expect(check.verdict == .fail && check.why.contains("h2"))
            _ = try await Command.succeed([
                Command.ftvm, "lab", "exec", "h2", "--name", lab.layout.name, "--", "ip", "link",
                "set", "br9", "name", "br0",
            ])
            try await lab.removeDemo()
        }

        private func doctor(_ lab: TestLab, _ domain: String) async throws -> DoctorReport {
            let outcome = try await lab.attempt(["doctor", domain])
            let report: DoctorReport = try ControlJSON.decode(from: Array(outcome.output.utf8))
            #expect(outcome.status == (report.verdict == .fail ? 21 : 0))
            return report
        }
    }
}
