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
        /// A qcow2 root disk, a pair of disks with ordered writes, a SCSI disk that is larger than the log and written faster
        /// than the storage takes it; an empty CD-ROM drive.
        @Test func severalDisksOfEveryKind() async throws {
            let lab = try TestLab.here()
            let guest = try await DiskGuest.make(
                lab, rootFormat: "qcow2",
                more: [
                    ("vdb", "virtio", "raw", 8), ("vdc", "virtio", "qcow2", 8),
                    ("sda", "scsi", "raw", 96),
                ])
            try await guest.start(on: lab.hosts[0])
            var pair = try await guest.enable("--disk-log", "8M")
            let committing = Committing(try await guest.connect())
            try await committing.goesOn(3)
            let client = try await guest.connect()
            for round in 1...2 {
                #expect(try client.ask("pair \(round)") == "ok \(round)")
                let filling = Filling(try await guest.connect(), mebibytes: 64)
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
            }
            let acknowledged = try await committing.stop()
            let numbers = try Numbers(client)
            #expect(numbers.rows == acknowledged && numbers.wrong == 0)
            let log = try #require(try await lab.present(DiskGuest.name).statistics?.disks)
            print("disk log after 64 MiB through 8 MiB: \(log)")
            #expect(log.capacityBytes == 8 << 20 && log.failure == nil)
            try await guest.disable()
            try expectFilled(guest.disks[3].path, mebibytes: 64)
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

        /// Every MiB has its own byte, from 1 on.
        private func expectFilled(_ path: String, mebibytes: Int) throws {
            let file = try #require(FileHandle(forReadingAtPath: path))
            defer { try? file.close() }
            for index in 0..<mebibytes {
                let block = try #require(try file.read(upToCount: 1 << 20))
                let wanted = UInt8(index % 251 + 1)
                guard block.count == 1 << 20, block.allSatisfy({ $0 == wanted }) else {
                    Issue.record("MiB \(index) of \(path) is not what was written")
                    return
                }
            }
        }

        /// A disk server that dies is replaced, and nobody notices more than a pause. A switchover takes the disks along.
        @Test func serversDieAndDisksMove() async throws {
            let lab = try TestLab.here()
            let guest = try await DiskGuest.make(lab, rootFormat: "qcow2")
            try await guest.start(on: lab.hosts[0])
            var pair = try await guest.enable("--pool-durable", "vda")
            let committing = Committing(try await guest.connect())
            try await committing.goesOn()
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
            let acknowledged = try await committing.stop()
            let numbers = try Numbers(try await guest.connect())
            #expect(numbers.rows == acknowledged && numbers.wrong == 0)
            try await guest.disable()
            try await guest.remove()
        }

        private final class Filling: @unchecked Sendable {
            private let lock = NSLock()
            private var outcome: String?

            init(_ client: GuestClient, mebibytes: Int) {
                struct Connection: @unchecked Sendable { let client: GuestClient }
                let connection = Connection(client: client)
                Thread { [self] in
                    let answer: String
                    do {
                        answer = try connection.client.ask("fill sda \(mebibytes)")
                    } catch {
                        answer = "\(error)"
                    }
                    lock.withLock { outcome = answer }
                }.start()
            }

            func answer() async throws -> String {
                try await eventually("the disk is filled", seconds: 90) {
                    lock.withLock { outcome }
                }
            }
        }
    }
}
