import ControlAPI
import EndToEndSupport
import Foundation
import GuestClients
import Lab
import Model
import Testing

extension Domains {
    @Suite(.lab(LabShape(hugePages: 560)), .keepingLogs)
    struct Matrix {
        @Test(arguments: Combination.chosen)
        func aDomainOfThisKind(_ kind: Combination) async throws {
            let lab = try TestLab.here()
            let home = lab.hosts[0]
            if kind.cards > 1 {
                // The second card's network.
                _ = try await lab.client([
                    "ip", "address", "replace", "10.78.0.1/24", "dev", "lab0",
                ])
            }
            var domain = kind.domain
            let images = "/var/tmp/ftvm-matrix-\(lab.layout.name)"
            defer { try? FileManager.default.removeItem(atPath: images) }
            if let disk = kind.disk {
                domain.disks = [try await Self.makeDisk(disk.bus, disk.format, in: images)]
            }
            let original = try await lab.define(domain, on: home)
            let guest = try await lab.runDemo(domain, on: home)
            var addresses = ["--address", domain.address]
            if kind.cards > 1 { addresses += ["--second-address", domain.secondAddress] }
            let numbers = try ClientProcess(
                lab, ["counter", "--connections", "4"] + addresses, seconds: 600)
            try await numbers.goesOn()
            _ = try await lab.ftvm(
                PairView.self, "enable", TestLab.demo, "--pool",
                kind.usesHugePages ? "huge" : "pool")
            var pair = try await lab.protected()
            try await numbers.goesOn()
            let screen = try await lab.screen(pair.primary, kind)
            let variables = try await lab.variables(pair.primary, kind)

            for round in 1...2 {
                let next = try #require(pair.secondary)
                let covered = try await guest.covered()
                try await lab.presentQEMU(pair.primary).kill()
                pair = try await lab.protected("protected after failover \(round)") {
                    $0.primary == next
                }
                try await numbers.goesOn()
                try await guest.goesOn(from: covered)
                let now = try await lab.screen(pair.primary, kind)
                #expect(now.resembles(screen), "the same picture")
                #expect(try await lab.variables(pair.primary, kind) == variables)
            }
            let next = try #require(pair.secondary)
            let covered = try await guest.covered()
            let answer = try await lab.attempt(["switchover", TestLab.demo])
            try #require(answer.status == 0, "\(answer.errorOutput)")
            pair = try await lab.protected("protected after the switchover") { $0.primary == next }
            try await numbers.goesOn()
            let moved = try await guest.goesOn(from: covered)
            let report = try await numbers.finish(CounterReport.self)
            report.expectNoViolation("numbers over TCP")
            #expect(report.lostConnections == 0)

            // Firmware and ROMs are there: a QEMU that has been loaded has none of its own.
            _ = try await lab.virsh(pair.primary, "reset", TestLab.demo)
            let rebooted = try await eventually("the guest has booted anew", seconds: 120) {
                let status = try? await guest.status()
                return status.flatMap { $0.bootID == moved.status.bootID ? nil : $0 }
            }
            _ = try await lab.protected()
            try await lab.disable()
            let last = try await guest.status()
            #expect(last.bootID == rebooted.bootID && last.checker.bad == 0)
            // libvirt orders controllers and consoles anew when it reads its own XML, as it does on another host: the
            // same is demanded as if a user had defined the domain there.
            let given = try await lab.virsh(pair.primary, "dumpxml", "--inactive", TestLab.demo)
            expectSame(given, try await lab.define(xml: original, on: pair.primary))
            try await lab.removeDemo()
        }

        /// On storage that all hosts of a lab reach.
        private static func makeDisk(
            _ bus: String, _ format: String, in directory: String
        ) async throws -> GuestDomain.Disk {
            try FileManager.default.createDirectory(
                atPath: directory, withIntermediateDirectories: true,
                attributes: [.posixPermissions: 0o755])
            let path = "\(directory)/disk.\(format)"
            _ = try await Command.succeed(["qemu-img", "create", "-q", "-f", format, path, "64M"])
            return GuestDomain.Disk(path: path, format: format, bus: bus)
        }
    }
}

extension [UInt8] {
    /// Whether two pictures are the same but for a cursor that blinks.
    fileprivate func resembles(_ other: [UInt8]) -> Bool {
        guard count == other.count else {
            print("pictures of \(count) and \(other.count) bytes")
            return false
        }
        let different = zip(self, other).count { $0 != $1 }
        if different > 0 { print("\(different) of \(count) bytes of the picture differ") }
        return different <= 16 * 16 * 3
    }
}

extension TestLab {
    /// The guest's screen as QEMU draws it; empty without one.
    func screen(_ host: HostName, _ kind: Combination) async throws -> [UInt8] {
        guard kind.video != nil else { return [] }
        // Written by QEMU as its own user; a PPM, whose pixels can be compared.
        let path = "/tmp/ftvm-screen-\(UUID().uuidString).ppm"
        defer { try? FileManager.default.removeItem(atPath: path) }
        _ = try await virsh(
            host, "qemu-monitor-command", TestLab.demo, "--hmp", "screendump \(path)")
        let picture = try Array(Data(contentsOf: URL(fileURLWithPath: path)))
        // A BIOS leaves its text there; what UEFI has drawn a kernel without a driver may have wiped.
        try #require(
            kind.usesUEFI || Set(picture.dropFirst(32)).count > 1,
            "there is something on the screen")
        return picture
    }

    /// The file of the guest's UEFI variables; empty with BIOS.
    func variables(_ host: HostName, _ kind: Combination) async throws -> [UInt8] {
        guard kind.usesUEFI else { return [] }
        let path = layout.directory(of: host) + "/var/lib/qemu/nvram/demo_VARS.fd"
        return try Array(Data(contentsOf: URL(fileURLWithPath: path)))
    }
}
