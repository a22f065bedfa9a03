import Foundation
import GuestSupport
import Hypervisor
import Protection
import Testing

/// What a guest's CPUs do, seen from outside.
@Suite struct VirtualCPUTests {
    private func sharesAsleep(_ shape: GuestQEMU.Shape) throws -> Double {
        let workspace = try Workspace(pool: .tmpfs)
        defer { workspace.remove() }
        let guest = try GuestQEMU(shape, in: workspace.directory, number: 0)
        defer { guest.kill() }
        _ = try guest.waitForReport()
        let cpus = try #require(VirtualCPUs(of: guest.qemu, guest.monitor))
        var asleep = 0
        for _ in 1...200 {
            if cpus.areAsleep { asleep += 1 }
            usleep(3_000)
        }
        try guest.monitor.stop()
        // Told to wait, which takes them a moment.
        usleep(20_000)
        #expect(cpus.areAsleep, "the guest stands still")
        return Double(asleep) / 200
    }

    @Test func whoHasNothingToDoSleepsAndWhoWorksDoesNot() throws {
        var shape = GuestQEMU.Shape()
        shape.vcpus = 2
        shape.dirtyPagesPerSecond = 50
        let idle = try sharesAsleep(shape)
        // More than it can.
        shape.dirtyPagesPerSecond = 100_000_000
        let busy = try sharesAsleep(shape)
        #expect(idle > 0.6 && busy < 0.3, "asleep: \(idle) of the looks idle, \(busy) busy")
    }
}
