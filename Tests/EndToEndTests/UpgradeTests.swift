import ControlAPI
import EndToEndSupport
import Foundation
import Lab
import Model
import Testing

extension EndToEnd {
    /// Hosts with different versions of QEMU.
    @Suite(.lab(LabShape()), .keepingLogs)
    struct Upgrades {
        /// The way of an operator who upgrades QEMU below a running guest: the host that has no part in the pair is
        /// upgraded and the guest moved there; and should that host die, the older QEMU takes the guest back.
        @Test func aGuestMovesToANewerQEMUAndIsCaughtByTheOlder() async throws {
            let lab = try TestLab.here()
            let newer = try await Command.succeed(
                [Settings.repository("Scripts/newer-qemu")], seconds: 120
            ).trimmingCharacters(in: .whitespacesAndNewlines)
            var (guest, pair) = try await lab.protectedDemo()
            let old = try await version(lab, pair.primary)
            let third = try #require(
                lab.hosts.first { $0 != pair.primary && $0 != pair.secondary })
            try await lab.kill(third)
            try await lab.start(third, qemuRoot: newer)

            var covered = try await guest.covered()
            _ = try await lab.ftvm(
                SwitchoverAnswer.self, "switchover", TestLab.demo, "--to", third.text)
            pair = try await lab.protected("protected on the newer QEMU") { $0.primary == third }
            let new = try await version(lab, third)
            #expect(new != old, "\(old) and \(new)")
            try await guest.goesOn(from: covered)

            covered = try await guest.covered()
            try await lab.kill(third)
            pair = try await lab.protected("protected on the older QEMU again") {
                $0.primary != third && $0.secondary != third
            }
            #expect(try await version(lab, pair.primary) == old)
            try await guest.goesOn(from: covered)
            try await lab.start(third)
        }

        private struct SwitchoverAnswer: Decodable {
            let to: HostName
        }

        /// What the running guest's QEMU says of itself.
        private func version(_ lab: TestLab, _ host: HostName) async throws -> String {
            try await lab.virsh(host, "qemu-monitor-command", TestLab.demo, "--hmp", "info version")
        }
    }
}
