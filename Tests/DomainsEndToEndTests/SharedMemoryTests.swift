import ControlAPI
import EndToEndSupport
import Foundation
import GuestClients
import Lab
import Model
import Testing

extension Domains {
    /// Guests whose memory is a shared file of their QEMU's, as those with virtiofs have it.
    @Suite(.lab(LabShape(hugePages: Domains.isFull ? 400 : 0)), .keepingLogs)
    struct SharedMemory {
        private static let memfd = "<source type='memfd'/><access mode='shared'/>"
        private static let file = "<source type='file'/><access mode='shared'/>"
        /// DESIGN: the guest of an adoption in place stands still for less than this.
        private static let limitMilliseconds = 30.0

        private static let movable = [
            (memfd, "pool"), ("<hugepages><page size='2' unit='MiB'/></hugepages>" + memfd, "huge"),
        ]

        /// Its main memory stays the very file that its QEMU made, through failover and switchover.
        @Test(arguments: Domains.isFull ? [memfd, file] : [memfd])
        func isAdoptedInPlace(backing: String) async throws {
            let lab = try TestLab.here()
            let home = lab.hosts[0]
            var domain = GuestDomain()
            domain.memoryBacking = backing
            domain.hasUsualDevices = true
            domain.video = "vga"
            let original = try await lab.define(domain, on: home)
            let guest = try await lab.runDemo(domain, on: home)
            let numbers = try ClientProcess(
                lab, ["counter", "--connections", "4", "--address", domain.address], seconds: 600)
            try await numbers.goesOn()
            let own = try await mainMemory(lab, home, domain)
            var stopped: [Double] = []
            for round in 1...Self.rounds {
                let last = try await lab.lastEvent()
                _ = try await lab.ftvm(
                    PairView.self, "enable", TestLab.demo, "--pool", "memfd")
                _ = try await lab.protected()
                stopped.append(try await adoption(lab, after: last, "adopted where it is"))
                #expect(try await mainMemory(lab, home, domain) == own)
                try await numbers.goesOn()
                if round < Self.rounds {
                    try await lab.disable()
                    #expect(try await mainMemory(lab, home, domain) == own)
                    try await numbers.goesOn()
                }
            }
            stopped.sort()
            print("adopted in place: stopped for \(stopped) ms")
            let median = stopped[stopped.count / 2]
            // A figure of a machine that has nothing else to do: printed in every run, demanded in the full one.
            if Domains.isFull {
                #expect(median < Self.limitMilliseconds * Double(Settings.patience))
            }

            var pair = try await lab.protected()
            let next = try #require(pair.secondary)
            let covered = try await guest.covered()
            try await lab.presentQEMU(pair.primary).kill()
            pair = try await lab.protected("protected after the failover") { $0.primary == next }
            #expect(try await mainMemory(lab, next, domain) == own)
            try await numbers.goesOn()
            let answer = try await lab.attempt(["switchover", TestLab.demo])
            try #require(answer.status == 0, "\(answer.errorOutput)")
            let moved = try #require(pair.secondary)
            pair = try await lab.protected("protected after the switchover") { $0.primary == moved }
            #expect(try await mainMemory(lab, moved, domain) == own)
            try await numbers.goesOn()
            try await guest.goesOn(from: covered)
            try await lab.disable()
            try await numbers.goesOn()
            let report = try await numbers.finish(CounterReport.self)
            report.expectNoViolation("numbers over TCP")
            #expect(report.lostConnections == 0)
            #expect(try await guest.status().checker.bad == 0)
            let given = try await lab.virsh(pair.primary, "dumpxml", "--inactive", TestLab.demo)
            expectSame(given, try await lab.define(xml: original, on: pair.primary))
            try await lab.removeDemo()
        }

        /// What a pool cannot keep is moved while the guest runs, and back into its QEMU's own file.
        @Test(arguments: Domains.isFull ? movable : [movable[0]])
        func isMovedWhereThePoolCannotKeepIt(backing: String, pool: String) async throws {
            let lab = try TestLab.here()
            let home = lab.hosts[0]
            var domain = GuestDomain()
            domain.memoryBacking = backing
            domain.memoryMiB = 160
            domain.checkMiB = 16
            try await lab.define(domain, on: home)
            let guest = try await lab.runDemo(domain, on: home)
            let numbers = try ClientProcess(
                lab, ["counter", "--connections", "4", "--address", domain.address], seconds: 600)
            try await numbers.goesOn()
            let own = try await mainMemory(lab, home, domain)
            let last = try await lab.lastEvent()
            _ = try await lab.ftvm(PairView.self, "enable", TestLab.demo, "--pool", pool)
            let pair = try await lab.protected()
            print("moved: stopped for \(try await adoption(lab, after: last, "moved")) ms")
            #expect(try await mainMemory(lab, home, domain) != own)
            try await lab.disable()
            #expect(try await mainMemory(lab, home, domain) == own)
            try await numbers.goesOn()
            let covered = try await guest.covered()
            _ = try await lab.ftvm(PairView.self, "enable", TestLab.demo, "--pool", pool)
            _ = try await lab.protected()
            let next = try #require(try await lab.present().secondary)
            try await lab.presentQEMU(pair.primary).kill()
            _ = try await lab.protected("protected after the failover") { $0.primary == next }
            try await numbers.goesOn()
            try await guest.goesOn(from: covered)
            let report = try await numbers.finish(CounterReport.self)
            report.expectNoViolation("numbers over TCP")
            #expect(report.lostConnections == 0)
            try await lab.disable()
            try await lab.removeDemo()
        }

        private static var rounds: Int { Domains.isFull ? 11 : 3 }

        /// How long the guest stood still, as the host says.
        private func adoption(
            _ lab: TestLab, after number: UInt64, _ words: String
        ) async throws -> Double {
            let event = try await eventually("the adoption is told") {
                try await lab.events(after: number).last {
                    $0.kind == .adopted && $0.message.contains(words)
                }
            }
            return try #require(event.figures["stoppedMilliseconds"])
        }

        /// The file behind the guest's main memory.
        private func mainMemory(
            _ lab: TestLab, _ host: HostName, _ domain: GuestDomain
        ) async throws -> UInt64 {
            let bytes = UInt64(domain.memoryMiB) << 20
            let found = try await lab.presentQEMU(host).mappings.filter {
                $0.bytes == bytes && !$0.isPrivate
            }
            try #require(found.count == 1, "\(found)")
            return found[0].inode
        }
    }
}
