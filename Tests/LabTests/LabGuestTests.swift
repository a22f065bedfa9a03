import Foundation
import Lab
import Model
import Testing

extension RealLabs {
    /// The demo guest on a lab's host, under the real libvirt and QEMU.
    @Suite struct Guest {
        let layout: LabLayout

        init() throws { layout = try LabLayout(name: "ftvm-lab-test-guest") }

        private func connect(_ address: String) async throws -> GuestClient {
            try await waitFor("the guest answers", limit: .seconds(60), period: .milliseconds(100))
            {
                try? GuestClient(layout, address: address, timeout: .seconds(1))
            }
        }

        @Test func theGuestChecksItsMemoryAndDiesWithItsHost() async throws {
            let image = try await Tool.run([Repository.path("Scripts/guest-image")])
            let lab = try await Lab.up(LabSpecification(hostCount: 2), layout: layout) { _ in }
            var guest = GuestDomain()
            guest.imageDirectory = image.trimmingCharacters(in: .whitespacesAndNewlines)
            guest.vcpus = 2
            let template = try String(
                contentsOfFile: Repository.path("Examples/demo.xml"), encoding: .utf8)
            let host = HostName("h1")
            try await lab.define(try guest.xml(template: template), on: host)
            try await lab.virsh(host, ["start", guest.name])

            let client = try await connect(guest.address)
            let first = try client.status()
            #expect(first.checker.mib == 32)
            #expect(first.dirtyPagesPerSecond == 2000)
            let numbers = try (1...5).map { _ in try UInt64(client.ask("next")) ?? 0 }
            #expect(numbers == [1, 2, 3, 4, 5])
            #expect(try client.ask("dirty 500") == "ok 500")
            #expect(try client.ask("dirty much").hasPrefix("error:"))
            let later = try await waitFor("a whole round of the checker", limit: .seconds(30)) {
                () throws -> GuestStatus? in
                let status = try client.status()
                return status.checker.rounds > first.checker.rounds + 1 ? status : nil
            }
            #expect(later.checker.bad == 0)
            #expect(later.bootID == first.bootID)
            #expect(later.counter > first.counter)
            #expect(later.checker.writes > first.checker.writes)
            #expect(later.uptimeSeconds > first.uptimeSeconds)
            #expect(later.dirtyPagesPerSecond == 500)

            #expect(try lab.processes(of: host).contains { $0.name.hasPrefix("qemu-system") })
            try await lab.kill(host)
            #expect(throws: FtvmError.self) { try client.status() }
            try await lab.start(host)
            #expect(try await lab.virsh(host, ["domstate", guest.name]).hasPrefix("shut off"))
            try await Lab.down(layout, progress: { _ in })
            #expect(!FileManager.default.fileExists(atPath: layout.directory))
        }
    }
}
