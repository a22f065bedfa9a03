import ControlAPI
import EndToEndSupport
import Foundation
import Glibc
import Lab
import Model
import Testing

extension EndToEnd {
    /// What users and other programs do to a protected guest, and bad moments to do it.
    @Suite(.lab(LabShape()), .keepingLogs)
    struct Use {
        /// A protected guest is an ordinary domain to `virsh`.
        @Test func aGuestIsSuspendedResumedAndReset() async throws {
            let lab = try TestLab.here()
            let (guest, before) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            try await suspend(lab, before.primary)
            #expect(try await lab.present().state == .protected)
            _ = try await lab.virsh(before.primary, "resume", TestLab.demo)
            try await guest.goesOn(from: covered)

            _ = try await lab.virsh(before.primary, "reset", TestLab.demo)
            let rebooted = try await eventually("the guest has booted anew", seconds: 90) {
                let status = try? await guest.status()
                return status.flatMap { $0.bootID == covered.status.bootID ? nil : $0 }
            }
            let pair = try await lab.protected()
            #expect(pair.generation == before.generation && pair.primary == before.primary)
            let anew = try await guest.covered()
            #expect(anew.status.bootID == rebooted.bootID && anew.number == 1)
            try await lab.presentQEMU(pair.primary).kill()
            _ = try await lab.protected { $0.primary == pair.secondary }
            try await guest.goesOn(from: anew)
        }

        /// A suspend that falls into the pause of a commit finds the guest paused already, and ends with it: libvirt
        /// reports success and tells nobody (Documentation/Architecture.md). Then it is asked for again.
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

        /// While a commit has the guest stopped, libvirt takes it for paused and lets anybody resume it. Nothing of a
        /// commit may be lost by that.
        @Test func aGuestIsResumedInTheMiddleOfCommits() async throws {
            let lab = try TestLab.here()
            var (guest, pair) = try await lab.protectedDemo()
            try await guest.setDirtyRate(20_000)
            for _ in 1...4 {
                let covered = try await guest.covered()
                let other = pair.secondary
                let resuming = resumeWithoutEnd(lab, pair.primary, seconds: 2)
                try await Task.sleep(for: .milliseconds(1_500))
                try await lab.presentQEMU(pair.primary).kill()
                _ = try await resuming.value
                pair = try await lab.protected { $0.primary == other }
                try await guest.goesOn(from: covered)
            }
            try await guest.setDirtyRate(2_000)
        }

        /// The same while its memory is being moved, out of the pool and into it.
        @Test func aGuestIsResumedWhileItsMemoryIsMoved() async throws {
            let lab = try TestLab.here()
            let (guest, pair) = try await lab.protectedDemo()
            try await guest.setDirtyRate(20_000)
            for _ in 1...2 * Settings.faultRounds {
                let covered = try await guest.covered()
                let resuming = resumeWithoutEnd(lab, pair.primary, seconds: 20)
                try await lab.disable()
                let released = try await guest.goesOn(from: covered)
                // It may fail for the reason that is tested here, and is tried again by itself.
                let answer = try await lab.attempt(["enable", TestLab.demo, "--no-wait"])
                try #require(answer.status == 0, "\(answer.errorOutput)")
                _ = try await lab.protected()
                resuming.cancel()
                try await guest.goesOn(from: released)
            }
            try await guest.setDirtyRate(2_000)
        }

        /// Asks libvirt thousands of times a second to resume the guest; most often it runs, and libvirt refuses.
        private func resumeWithoutEnd(
            _ lab: TestLab, _ host: HostName, seconds: Int
        ) -> Task<Tool.Outcome, any Error> {
            let uri = lab.layout.libvirtURI(of: host)
            let line = "yes 'resume demo' | timeout \(seconds) virsh -q -c '\(uri)' >/dev/null 2>&1"
            return Task { try await Tool.attempt(["sh", "-c", line]) }
        }

        /// libvirt's daemon is no part of a running guest.
        @Test func libvirtdIsKilledEverywhere() async throws {
            let lab = try TestLab.here()
            let (guest, before) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            let number = try await lab.lastEvent()
            for host in lab.hosts { try await lab.presentProcess(host, named: "libvirtd").kill() }
            for host in lab.hosts {
                _ = try await eventually("libvirtd of \(host) is back", seconds: 30) {
                    try? await lab.domains(host)
                }
            }
            let pair = try await lab.protected()
            #expect(pair.generation == before.generation && pair.primary == before.primary)
            #expect(pair.secondary == before.secondary)
            try await guest.goesOn(from: covered)
            let kinds = try await lab.events(after: number).map(\.kind)
            #expect(!kinds.contains(.secondaryLost) && !kinds.contains(.primaryLost))
            // And a failover finds what it needs.
            let again = try await guest.covered()
            try await lab.kill(pair.primary)
            _ = try await lab.protected { $0.primary == pair.secondary }
            try await lab.start(pair.primary)
            try await guest.goesOn(from: again)
        }

        /// A secondary on a host that stands still is no secondary; when the host goes on, its QEMU is one too many.
        @Test func theSecondarysHostFreezes() async throws {
            let lab = try TestLab.here()
            let (guest, before) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            let frozen = try #require(before.secondary)
            try await lab.freeze(frozen)
            let pair = try await lab.protected { $0.secondary != frozen }
            #expect(pair.generation == before.generation && pair.primary == before.primary)
            try await lab.thaw(frozen)
            try await eventually("the QEMU of \(frozen) is gone") { () async throws -> Void? in
                try await lab.qemu(frozen) == nil ? () : nil
            }
            let after = try await lab.protected()
            #expect(after.secondary == pair.secondary && after.generation == before.generation)
            try await guest.goesOn(from: covered)
            try await lab.expectNoLeak(after)
        }

        /// The guest goes on elsewhere, and is an ordinary domain there.
        @Test func aGuestIsDisabledWhileItsHostDies() async throws {
            let lab = try TestLab.here()
            let (guest, before) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            let other = try #require(before.secondary)
            try await lab.kill(before.primary)
            try await lab.disable(on: other)
            try await guest.goesOn(from: covered)
            #expect(try await lab.presentQEMU(other).traces == [])
            try await lab.start(before.primary)
            try await lab.removeDemo()
        }

        /// There was nothing to go on from yet: the guest has died with its host, and that is said.
        @Test func theHostDiesWhileAGuestIsEnabled() async throws {
            let lab = try TestLab.here()
            let home = lab.hosts[0]
            _ = try await lab.runDemo(on: home)
            let fault = Fault(lab, "takeover.copied", pass: 1)
            try await fault.arm([home])
            let answer = try await lab.attempt(
                ["enable", TestLab.demo, "--no-wait"], on: lab.hosts[1])
            try #require(answer.status == 0, "\(answer.errorOutput)")
            try await fault.strikes()
            try await lab.kill(home)
            try await fault.disarm()
            let pair = try await lab.pair("told unprotected, or protected before") {
                $0.state == .unprotected || $0.state == .protected
            }
            // A restarted ftvmd may have been faster than we were.
            if pair.state == .unprotected { #expect(pair.reason.contains("died")) }
            try await lab.start(home)
            try await lab.disable()
            let pools = try await lab.ftvm([PoolView].self, "pool", "list")
            #expect(pools.map(\.segmentCount) == pools.map { _ in 0 })
            try await lab.removeDemo()
        }

        /// Each pair has its own segment, lock and generation.
        @Test func aHostDiesWithTwoGuests() async throws {
            let lab = try TestLab.here()
            var second = GuestDomain()
            second.name = "demo2"
            second.number = 11
            second.vcpus = 2
            let guests = [
                try await lab.runDemo(on: lab.hosts[0]),
                try await lab.runDemo(second, on: lab.hosts[0]),
            ]
            for guest in guests {
                _ = try await lab.ftvm(PairView.self, "enable", guest.domain.name)
            }
            for _ in 1...2 {
                var covered: [Guest.Covered] = []
                var before: [PairView] = []
                for guest in guests {
                    before.append(try await lab.protected(of: guest.domain.name))
                    covered.append(try await guest.covered())
                }
                let victim = before[0].primary
                try await lab.kill(victim)
                for (index, guest) in guests.enumerated() {
                    let pair = try await lab.protected(of: guest.domain.name) {
                        $0.primary != victim && $0.secondary != victim
                    }
                    let wasThere = before[index].primary == victim
                    let generation = before[index].generation
                    #expect(pair.generation == (wasThere ? generation.next : generation))
                    try await guest.goesOn(from: covered[index])
                }
                try await lab.start(victim)
            }
            for guest in guests { try await lab.removeDemo(guest.domain.name) }
        }
    }
}
