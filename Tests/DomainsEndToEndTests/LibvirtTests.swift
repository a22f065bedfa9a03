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
            try await expectPaused(lab, other)
            _ = try await lab.virsh(other, "resume", TestLab.demo)
            try await guest.goesOn(from: covered)
            try await lab.removeDemo()
        }

        /// A planned move of a guest that its user has paused: it arrives paused.
        @Test func aPausedGuestIsMoved() async throws {
            let lab = try TestLab.here()
            let (guest, pair) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            try await suspend(lab, pair.primary)
            let other = try #require(pair.secondary)
            let answer = try await lab.attempt(["switchover", TestLab.demo])
            try #require(answer.status == 0, "\(answer.errorOutput)")
            _ = try await lab.pair("protected on \(other)") {
                $0.primary == other && $0.state == .protected
            }
            try await expectPaused(lab, other)
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

        /// At every look for half a second.
        private func expectPaused(_ lab: TestLab, _ host: HostName) async throws {
            for _ in 1...10 {
                let state = try await lab.virsh(host, "domstate", TestLab.demo)
                #expect(state.hasPrefix("paused"))
                try await Task.sleep(for: .milliseconds(50))
            }
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

        /// Memory that the guest's balloon takes away and gives back under protection: the guest's own memory is as it was, also
        /// after a failover in between.
        @Test func theBalloonIsTheGuests() async throws {
            let lab = try TestLab.here()
            var domain = GuestDomain()
            domain.hasUsualDevices = true
            let guest = try await lab.runDemo(domain, on: lab.hosts[0])
            _ = try await lab.ftvm(PairView.self, "enable", TestLab.demo)
            var pair = try await lab.protected()
            for mebibytes in [192, 256] {
                let covered = try await guest.covered()
                _ = try await lab.virsh(
                    pair.primary, "setmem", "--live", TestLab.demo, "\(mebibytes)MiB")
                try await balloon(lab, pair.primary, mebibytes)
                let settled = try await guest.goesOn(from: covered)
                let next = try #require(pair.secondary)
                try await lab.presentQEMU(pair.primary).kill()
                pair = try await lab.protected("protected on \(next)") { $0.primary == next }
                try await balloon(lab, next, mebibytes)
                // Its check of all its pages is in here.
                try await guest.goesOn(from: settled)
            }
            try await lab.removeDemo()
        }

        private func balloon(_ lab: TestLab, _ host: HostName, _ mebibytes: Int) async throws {
            try await eventually("the balloon leaves \(mebibytes) MiB", seconds: 60) {
                () async throws -> Void? in
                let lines = try await lab.virsh(host, "dommemstat", TestLab.demo)
                return lines.contains("actual \(mebibytes << 10)\n") ? () : nil
            }
        }

        /// Saved to a file or by libvirt itself, and back: the same guest, protected again.
        @Test(arguments: ["save", "managedsave"])
        func aSavedGuestComesBackProtected(verb: String) async throws {
            let lab = try TestLab.here()
            let (guest, pair) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            let file = "\(lab.layout.directory(of: pair.primary))/saved"
            defer { try? FileManager.default.removeItem(atPath: file) }
            let isFile = verb == "save"
            _ = try await lab.virsh(
                pair.primary, [verb, TestLab.demo] + (isFile ? [file] : []))
            let told = try await lab.pair("unprotected") { $0.state == .unprotected }
            #expect(told.reason == "the guest shut down" && told.primary == pair.primary)
            for host in lab.hosts { #expect(try await lab.qemu(host) == nil, "QEMU on \(host)") }
            _ = try await lab.virsh(
                pair.primary, isFile ? ["restore", file] : ["start", TestLab.demo])
            let again = try await lab.protected()
            #expect(again.primary == pair.primary && again.generation != pair.generation)
            try await guest.goesOn(from: covered)
            try await lab.removeDemo()
        }

        /// libvirt's definition is taken away under a protected guest: it goes on, and its next host has the definition.
        @Test func anUndefinedGuestIsDefinedByItsNextHost() async throws {
            let lab = try TestLab.here()
            let (guest, pair) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            _ = try await lab.virsh(pair.primary, "undefine", TestLab.demo)
            let next = try #require(pair.secondary)
            try await lab.presentQEMU(pair.primary).kill()
            _ = try await lab.protected("protected on \(next)") { $0.primary == next }
            try await guest.goesOn(from: covered)
            #expect(
                try await lab.virsh(next, "dominfo", TestLab.demo).contains("Persistent:     yes"))
            try await lab.disable()
            try await lab.removeDemo()
        }

        /// Snapshots change what a disk is made of under a protected guest: it is protected anew with that, and can be
        /// failed over and given back.
        @Test(arguments: [["--disk-only"], ["--memspec", "/var/tmp/ftvm-snapshots/memory"]])
        func snapshotsAreFollowed(options: [String]) async throws {
            let lab = try TestLab.here()
            let images = "/var/tmp/ftvm-snapshots"
            try? FileManager.default.removeItem(atPath: images)
            try FileManager.default.createDirectory(
                atPath: images, withIntermediateDirectories: true)
            defer { try? FileManager.default.removeItem(atPath: images) }
            // libvirt makes the new images there as QEMU's user.
            chmod(images, 0o777)
            var domain = GuestDomain()
            let image = "\(images)/disk.qcow2"
            domain.disks = [GuestDomain.Disk(path: image, format: "qcow2", bus: "virtio")]
            _ = try await Command.succeed(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"])
            let guest = try await lab.runDemo(domain, on: lab.hosts[0])
            _ = try await lab.ftvm(PairView.self, "enable", TestLab.demo)
            var pair = try await lab.protected()
            for number in 1...2 {
                let covered = try await guest.covered()
                _ = try await lab.virsh(
                    pair.primary, ["snapshot-create-as", TestLab.demo, "s\(number)"] + options)
                let (host, generation) = (pair.primary, pair.generation)
                pair = try await lab.protected("protected with snapshot \(number)") {
                    $0.primary == host && $0.generation != generation
                }
                let disks = try await lab.virsh(pair.primary, "domblklist", TestLab.demo)
                #expect(disks.contains("/disk.s\(number)"))
                try await guest.goesOn(from: covered)
            }
            let covered = try await guest.covered()
            let next = try #require(pair.secondary)
            try await lab.presentQEMU(pair.primary).kill()
            pair = try await lab.protected("protected on \(next)") { $0.primary == next }
            let since = try await guest.goesOn(from: covered)
            try await lab.disable()
            try await guest.goesOn(from: since)
            try await lab.removeDemo()
        }

        /// A guest that is to be started with its host is so on whichever host its primary was last.
        @Test func autostartGoesWithThePrimary() async throws {
            let lab = try TestLab.here()
            let (guest, pair) = try await lab.protectedDemo()
            _ = try await lab.virsh(pair.primary, "autostart", TestLab.demo)
            try await autostart(lab, pair.primary, "enable")
            // Seen by its host, which looks once a second, before that dies.
            try await eventually("the choice is in the record") { () async throws -> Void? in
                try await lab.present().autostart == true ? () : nil
            }
            let next = try #require(pair.secondary)
            try await lab.kill(pair.primary)
            _ = try await lab.protected("protected on \(next)") { $0.primary == next }
            try await autostart(lab, next, "enable")
            try await lab.start(pair.primary)

            let covered = try await guest.covered()
            _ = try await lab.virsh(next, "destroy", TestLab.demo)
            _ = try await lab.pair("unprotected") { $0.state == .unprotected }
            try await lab.kill(next)
            try await lab.start(next)
            _ = try await lab.protected("started and protected") { $0.primary == next }
            let anew = try await guest.status()
            #expect(anew.bootID != covered.status.bootID)
            // Nobody else has it, and it is given back with the choice.
            try await lab.disable()
            try await autostart(lab, next, "enable")
            #expect(try await !lab.domains(pair.primary).contains(TestLab.demo))
            try await lab.removeDemo()
        }

        private func autostart(_ lab: TestLab, _ host: HostName, _ wanted: String) async throws {
            try await eventually("autostart on \(host) is: \(wanted)") {
                () async throws -> Void? in
                let lines = try await lab.virsh(host, "dominfo", TestLab.demo)
                    .split(separator: "\n")
                let line = lines.first { $0.hasPrefix("Autostart:") }
                return line?.hasSuffix(" \(wanted)") == true ? () : nil
            }
        }

        /// Ended and started again in one go: libvirt's hook lets it start when its end is recorded, so that nobody goes on from
        /// the run before.
        @Test func aGuestIsEndedAndStartedAtOnce() async throws {
            let lab = try TestLab.here()
            let (guest, pair) = try await lab.protectedDemo()
            let boot = try await guest.status().bootID
            let virsh = "virsh -q -c '\(lab.layout.libvirtURI(of: pair.primary))'"
            _ = try await Command.succeed(
                [
                    "sh", "-c",
                    "\(virsh) destroy \(TestLab.demo) && \(virsh) start \(TestLab.demo)",
                ])
            let started = try await lab.present()
            #expect(started.state != .protected || started.generation > pair.generation)
            let again = try await lab.protected { $0.generation > pair.generation }
            #expect(again.primary == pair.primary)
            _ = try await guest.connect(seconds: 90)
            #expect(try await guest.status().bootID != boot)
            try await lab.removeDemo()
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
