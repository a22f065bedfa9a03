import ControlAPI
import EndToEndSupport
import Foundation
import Lab
import Model
import Testing

extension Disks {
    /// What is promised in figures, with a guest; figures are printed, counts are checked.
    @Suite(
        .lab(LabShape()), .keepingLogs,
        .enabled(if: Disks.isFull, "FTVM_DISKS_FULL is not set"))
    struct Figures {
        private struct Series {
            var medians: [Double] = []
            var worst: [Double] = []
        }

        /// A commit with 1,000 dirty blocks, beside one with as many blocks read, which costs the guest's memory the same.
        @Test func aThousandDirtyBlocks() async throws {
            let lab = try TestLab.here()
            let guest = try await DiskGuest.make(lab, more: [("vdb", "virtio", "raw", 64)])
            try await guest.start(on: lab.hosts[0])
            _ = try await guest.enable("--epoch-max", "2000")
            let client = try await guest.connect()
            var figures: [String: Series] = ["gather": Series(), "scatter": Series()]
            for round in 0..<6 {
                let verb = round % 2 == 0 ? "gather" : "scatter"
                let before = try await statistics(lab)
                let end = ContinuousClock.now + .seconds(5)
                var calls = 0
                while ContinuousClock.now < end {
                    #expect(try client.ask("\(verb) vdb 1000") == "ok 1000")
                    calls += 1
                }
                let after = try await statistics(lab)
                let written = (after.disks?.appliedBytes ?? 0) - (before.disks?.appliedBytes ?? 0)
                print("\(verb): \(calls) calls, \(after.commits - before.commits) commits")
                if verb == "scatter" {
                    // The last ones may wait still.
                    #expect(written >= UInt64(calls - 1) * 1000 * 4096)
                }
                figures[verb]?.medians.append(after.pauseMedianMicroseconds)
                figures[verb]?.worst.append(after.pauseP99Microseconds)
            }
            for (verb, series) in figures.sorted(by: { $0.key < $1.key }) {
                print(
                    "pause, \(verb) of 1,000 blocks: median us \(series.medians), p99 us \(series.worst)"
                )
            }
            try await guest.disable()
            try await guest.remove()
        }

        private func statistics(_ lab: TestLab) async throws -> EpochStatistics {
            try #require(try await lab.present(DiskGuest.name).statistics)
        }
    }

    /// Disks under another QEMU than the machine's.
    @Suite(
        .lab(LabShape()), .keepingLogs,
        .enabled(if: Disks.isFull, "FTVM_DISKS_FULL is not set"))
    struct Versions {
        /// QEMU's block layer is what differs between versions: nodes exchanged, a failover, disks given back.
        @Test func disksUnderANewerQEMU() async throws {
            let lab = try TestLab.here()
            let newer = try await Command.succeed(
                [Settings.repository("Scripts/newer-qemu")], seconds: 120
            ).trimmingCharacters(in: .whitespacesAndNewlines)
            for host in lab.hosts {
                try await lab.kill(host)
                try await lab.start(host, qemuRoot: newer)
            }
            try await lab.allOnline()
            let guest = try await DiskGuest.make(
                lab, rootFormat: "qcow2", more: [("vdb", "virtio", "raw", 16)])
            try await guest.start(on: lab.hosts[0])
            let before = try await guest.enable()
            let committing = Committing(try await guest.connect())
            let checking = Checking(try await guest.connect(), disk: "vdb", seed: 1)
            try await committing.goesOn()
            try await checking.goesOn()
            let strike = try await Strike(.host, lab, before)
            let pair = try await guest.protected("protected, newer QEMU") {
                $0.generation > before.generation
            }
            try await committing.goesOn()
            try await strike.repair(lab)
            try await checking.goesOn()
            try await checking.stop()
            let acknowledged = try await committing.stop()
            let client = try await guest.connect()
            #expect(try client.ask("verify vdb") == "ok 4096")
            let numbers = try Numbers(client)
            #expect(numbers.rows == acknowledged && numbers.wrong == 0)
            try await guest.disable()
            #expect(try client.ask("verify vdb") == "ok 4096")
            try await guest.expectCleanFileSystem(try await guest.copyOfRoot(pair.primary))
            try await guest.remove()
            lab.needsRenewal = true
        }
    }
}
