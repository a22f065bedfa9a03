import ControlAPI
import EndToEndSupport
import Foundation
import Lab
import Model
import Testing

extension Disks {
    /// Formats, buses, several disks, a small log, dead servers.
    @Suite(.lab(LabShape()), .keepingLogs)
    struct Kinds {
        /// A qcow2 root disk, a pair of disks with ordered writes, one of them a block device, a SCSI disk that is larger than
        /// the log and written faster than the storage takes it; a read-only disk, a CD-ROM and an empty drive.
        @Test func severalDisksOfEveryKind() async throws {
            let lab = try TestLab.here()
            var guest = try await DiskGuest.make(
                lab, rootFormat: "qcow2",
                more: [
                    ("vdb", "virtio", "device", 8), ("vdc", "virtio", "qcow2", 8),
                    ("sda", "scsi", "raw", 96),
                ])
            try guest.addReadOnly(number: 4711)
            try await guest.start(on: lab.hosts[0])
            var pair = try await guest.enable("--disk-log", "8M")
            let committing = Committing(try await guest.connect())
            try await committing.goesOn(3)
            let client = try await guest.connect()
            for round in 1...2 {
                #expect(try client.ask("pair \(round)") == "ok \(round)")
                let filling = Asking(try await guest.connect(), "fill sda 64")
                try await Task.sleep(for: .milliseconds(300))
                let before = pair
                let strike = try await Strike(.host, lab, before)
                pair = try await guest.protected("protected, round \(round)") {
                    $0.generation > before.generation
                }
                try await committing.goesOn(3)
                try await strike.repair(lab)
                #expect(try await filling.answer().hasPrefix("ok "))
                #expect(try client.ask("pairs") == "pairs \(round) \(round)")
                #expect(try client.ask("get vdd") == "got 4711", "the read-only disk")
            }
            let acknowledged = try await committing.stop()
            let numbers = try Numbers(client)
            #expect(numbers.rows == acknowledged && numbers.wrong == 0)
            let log = try #require(try await lab.present(DiskGuest.name).statistics?.disks)
            print("disk log after 64 MiB through 8 MiB: \(log)")
            #expect(log.capacityBytes == 8 << 20 && log.failure == nil)
            try await guest.disable()
            let sda = try #require(guest.disks.first { $0.target == "sda" })
            try Disks.expectFilled(sda.path, mebibytes: 64)
            let qcow2 = guest.disks.filter { $0.format == "qcow2" }
            _ = try await lab.virsh(pair.primary, "suspend", DiskGuest.name)
            for disk in qcow2 {
                let check = try await Command.attempt(["qemu-img", "check", "-U", disk.path])
                #expect(check.status == 0, "\(check.output)\(check.errorOutput)")
            }
            _ = try await lab.virsh(pair.primary, "resume", DiskGuest.name)
            try await guest.expectCleanFileSystem(try await guest.copyOfRoot(pair.primary))
            try await guest.remove()
        }

        /// A disk server that dies is replaced, and nobody notices more than a pause. A switchover takes the disks along.
        @Test func serversDieAndDisksMove() async throws {
            let lab = try TestLab.here()
            let guest = try await DiskGuest.make(
                lab, rootFormat: "qcow2", more: [("vdb", "virtio", "raw", 16)])
            try await guest.start(on: lab.hosts[0])
            var pair = try await guest.enable("--pool-durable", "vda")
            let committing = Committing(try await guest.connect())
            let checking = Checking(try await guest.connect(), disk: "vdb", seed: 7)
            try await committing.goesOn()
            try await checking.goesOn()
            for pid in try guest.nbdkits() { kill(pid, SIGKILL) }
            try await committing.goesOn(20)
            pair = try await guest.protected("protected with new disk servers")
            try await lab.killDaemon(pair.primary)
            try await committing.goesOn()
            _ = try await guest.protected("adopted")
            let moved = try await lab.attempt(["switchover", DiskGuest.name])
            #expect(moved.status == 0, "\(moved.errorOutput)")
            pair = try await guest.protected("moved") { $0.primary != pair.primary }
            try await committing.goesOn()
            try await checking.goesOn()
            try await checking.stop()
            let acknowledged = try await committing.stop()
            let client = try await guest.connect()
            let numbers = try Numbers(client)
            #expect(numbers.rows == acknowledged && numbers.wrong == 0)
            #expect(try client.ask("verify vdb") == "ok 4096")
            try await guest.disable()
            #expect(try client.ask("verify vdb") == "ok 4096", "on the image itself")
            try await guest.remove()
        }
    }
}
