import ControlAPI
import EndToEndSupport
import Foundation
import GuestClients
import Lab
import Model
import Testing

extension Domains {
    /// Devices that come and go while a guest is protected, and the rest of what libvirt lets users do.
    @Suite(.lab(LabShape()), .keepingLogs)
    struct Devices {
        /// The number of CPUs and network cards is followed, without a stop of the guest: clients notice nothing.
        @Test func changesAreFollowed() async throws {
            let lab = try TestLab.here()
            let home = lab.hosts[0]
            var domain = GuestDomain()
            domain.hasUsualDevices = true
            domain.pluggableCPUs = 2
            try await lab.define(domain, on: home)
            let guest = try await lab.runDemo(domain, on: home)
            _ = try await lab.ftvm(PairView.self, "enable", TestLab.demo)
            let pair = try await lab.protected()
            let numbers = try ClientProcess(
                lab, ["counter", "--connections", "4", "--address", domain.address], seconds: 600)
            try await numbers.goesOn()

            let card = Self.card
            try await changing(lab, home, "interface \(Self.mac)") {
                try await attach(lab, home, card, "attach-device")
            }
            try await changing(lab, home, "vcpu") {
                _ = try await lab.virsh(home, "setvcpus", "--live", TestLab.demo, "2")
            }
            try await numbers.goesOn()
            // What was added is on the other host too.
            let next = try #require(try await lab.present().secondary)
            let covered = try await guest.covered()
            try await lab.presentQEMU(pair.primary).kill()
            _ = try await lab.protected("protected on \(next)") { $0.primary == next }
            #expect(try await lab.virsh(next, "domiflist", TestLab.demo).contains(Self.mac))
            #expect(
                try await lab.virsh(next, "vcpucount", "--live", "--current", TestLab.demo)
                    .hasPrefix("2"))
            try await changing(lab, next, "interface \(Self.mac)") {
                try await attach(lab, next, card, "detach-device")
            }
            try await guest.goesOn(from: covered)
            try await numbers.goesOn()
            let report = try await numbers.finish(CounterReport.self)
            report.expectNoViolation("numbers over TCP")
            #expect(report.lostConnections == 0)
            try await lab.removeDemo()
        }

        /// One that cannot be protected is named, and the pair is protected again when it has gone.
        @Test func whatCannotBeCarriedIsTold() async throws {
            let lab = try TestLab.here()
            let (guest, pair) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            let card = """
                <interface type='user'><mac address='\(Self.mac)'/><model type='virtio'/></interface>
                """
            try await attach(lab, pair.primary, card, "attach-device")
            let told = try await lab.pair("unprotected with the reason") {
                $0.state == .unprotected && $0.lastError?.code == .unsupported
            }
            #expect(told.lastError?.cause?.contains("type user") ?? false)
            #expect(try await lab.qemu(try #require(pair.secondary)) == nil)
            try await attach(lab, pair.primary, card, "detach-device")
            _ = try await lab.protected("protected again")
            try await guest.goesOn(from: covered)
            try await lab.removeDemo()
        }

        /// libvirt keeps the domain from everybody for the 5 s that it waits for a guest which is paused: no sign of a QEMU that
        /// hangs.
        @Test func aCardIsTakenFromAPausedGuest() async throws {
            let lab = try TestLab.here()
            let (guest, pair) = try await lab.protectedDemo()
            let home = pair.primary
            try await changing(lab, home, "interface \(Self.mac)") {
                try await attach(lab, home, Self.card, "attach-device")
            }
            let before = try await lab.present()
            let covered = try await guest.covered()
            _ = try await lab.virsh(home, "suspend", TestLab.demo)
            let last = try await lab.lastEvent()
            try await attach(lab, home, Self.card, "detach-device")
            let after = try await lab.present()
            #expect(after.generation == before.generation && after.primary == home)
            #expect(try await lab.events(after: last).map(\.message) == [])
            try await changing(lab, home, "interface \(Self.mac)") {
                _ = try await lab.virsh(home, "resume", TestLab.demo)
            }
            #expect(try await !lab.virsh(home, "domiflist", TestLab.demo).contains(Self.mac))
            try await guest.goesOn(from: covered)
            try await lab.removeDemo()
        }

        static let points = [
            "devices.seen", "devices.unprotected", "devices.released",
            "enabling.old-segment-removed",
        ]

        /// `ftvmd` dies between telling a change and enabling the guest anew.
        @Test(arguments: points)
        func ftvmdDiesOverAChange(point: String) async throws {
            let lab = try TestLab.here()
            let (guest, _) = try await lab.protectedDemo()
            let next = try await ftvmdDies(lab, guest, at: point, over: "attach-device")
            // The other host has the card as well, or could not load this state.
            #expect(try await lab.virsh(next.primary, "domiflist", TestLab.demo).contains(Self.mac))
            try await lab.removeDemo()
        }

        /// The same with a card that is taken away, and its option ROM with it, a part of the guest's memory in the segment: the
        /// successor finds a QEMU that has less than the pair's.
        @Test(arguments: Domains.isFull ? points : ["devices.seen", "devices.released"])
        func ftvmdDiesOverADetachedCard(point: String) async throws {
            let lab = try TestLab.here()
            let (guest, pair) = try await lab.protectedDemo()
            try await changing(lab, pair.primary, "interface \(Self.mac)") {
                try await attach(lab, pair.primary, Self.card, "attach-device")
            }
            _ = try await ftvmdDies(lab, guest, at: point, over: "detach-device")
            try await lab.removeDemo()
        }

        /// The primary's `ftvmd` dies at the point when the card is changed; the guest goes on there, protected as it is now, and
        /// goes on from that on the other host.
        /// - Returns: the pair after that.
        private func ftvmdDies(
            _ lab: TestLab, _ guest: Guest, at point: String, over verb: String
        ) async throws -> PairView {
            let host = try await lab.protected().primary
            let fault = Fault(lab, point, pass: 1)
            try await fault.arm([host])
            let before = try await lab.protected()
            let covered = try await guest.covered()
            try await attach(lab, host, Self.card, verb)
            try await fault.strikes()
            // The record of one that died before it told of the change still says that all is well.
            let pair = try await lab.protected("protected anew after \(fault)") {
                $0.generation > before.generation
            }
            #expect(pair.primary == host)
            try await guest.goesOn(from: covered)
            let again = try await guest.covered()
            try await lab.presentQEMU(pair.primary).kill()
            let next = try await lab.protected("failed over after \(fault)") {
                $0.primary == pair.secondary
            }
            try await guest.goesOn(from: again)
            try await fault.disarm()
            return next
        }

        /// Every such point in the sources is in the list.
        @Test func everyPointIsTested() throws {
            let found = try Fault.pointsInSources().filter {
                $0.hasPrefix("devices.") || $0.hasPrefix("enabling.")
            }
            #expect(found.sorted() == Self.points.sorted())
        }

        private static let mac = "52:54:00:79:00:10"
        private static let card = """
            <interface type='bridge'><mac address='\(mac)'/><source bridge='br0'/>
              <model type='virtio'/><driver name='qemu'/></interface>
            """

        private func attach(
            _ lab: TestLab, _ host: HostName, _ xml: String, _ verb: String
        ) async throws {
            let path = NSTemporaryDirectory() + "ftvm-e2e-\(UUID().uuidString).xml"
            try xml.write(toFile: path, atomically: true, encoding: .utf8)
            defer { try? FileManager.default.removeItem(atPath: path) }
            _ = try await lab.virsh(host, verb, "--live", TestLab.demo, path)
        }

        /// The pair is seen to go unprotected, with what was changed, and to be protected again.
        private func changing(
            _ lab: TestLab, _ host: HostName, _ what: String, _ change: () async throws -> Void
        ) async throws {
            let last = try await lab.lastEvent()
            try await change()
            let changed = ContinuousClock.now
            let event = try await eventually("the change is told") {
                try await lab.events(after: last).first { $0.kind == .unprotected }
            }
            print("\(what): told after \(ContinuousClock.now - changed)")
            #expect(event.message.contains(what), "\(event.message)")
            _ = try await lab.protected("protected with it") { $0.primary == host }
        }
    }
}
