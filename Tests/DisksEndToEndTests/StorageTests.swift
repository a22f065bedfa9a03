import ControlAPI
import EndToEndSupport
import Foundation
import Glibc
import Lab
import Model
import Testing

extension Disks {
    /// Storage that is full, or fails: nothing is lost, the operator is told, and all goes on when it is mended.
    @Suite(.lab(LabShape()), .keepingLogs)
    struct Storage {
        /// `vdb` is a file on a file system that fills up: ENOSPC, over which QEMU stops the guest by default. `vdc` is a
        /// block device that fails: EIO, over which this guest is stopped because its XML wants that.
        @Test func aFullAndAFailingImageLoseNothing() async throws {
            let lab = try TestLab.here()
            var guest = try await DiskGuest.make(lab)
            let small = try await SmallStorage.make(
                lab, at: guest.directory + "/small", file: guest.directory + "/small.ext4",
                mebibytes: 64)
            let tight = guest.directory + "/tight"
            try FileManager.default.createDirectory(
                atPath: tight, withIntermediateDirectories: true)
            // A loop device whose file finds no room any more has I/O errors.
            _ = try await Command.succeed(["mount", "-t", "tmpfs", "-o", "size=8m", "tight", tight])
            let full = small.directory + "/vdb.raw"
            _ = try await Command.succeed(["truncate", "-s", "\(Self.mebibytes)M", full])
            guest.disks.append(.init(target: "vdb", path: full))
            guest.disks.append(
                try await DiskGuest.loopDisk(
                    "vdc", "virtio", tight + "/vdc", mebibytes: Self.mebibytes))
            guest.disks[2].policy = "stop"
            try await guest.start(on: lab.hosts[0])
            var pair = try await guest.enable("--disk-log", "8M")
            let committing = Committing(try await guest.connect())
            try await committing.goesOn(3)

            try await small.fill(leaving: 4)
            let filling = Asking(try await guest.connect(), "fill vdb \(Self.mebibytes)")
            try await expectStopped(guest, pair, "vdb", "No space left on device")
            #expect(filling.answerSoFar == nil, "the guest is told nothing")
            // What waits outlives the host.
            let before = pair
            let strike = try await Strike(.host, lab, pair)
            // It stands still, so there are no commits to wait for.
            pair = try await lab.pair("protected, with a full image", of: DiskGuest.name) {
                $0.state == .protected && $0.secondaryReady && $0.generation > before.generation
            }
            try await strike.repair(lab)
            try await expectStopped(guest, pair, "vdb", "No space left on device")
            try small.giveRoom()
            try await goesOn(guest, pair)
            #expect(try await filling.answer().hasPrefix("ok "))
            try await committing.goesOn(3)

            let failing = Asking(try await guest.connect(), "fill vdc \(Self.mebibytes)")
            try await expectStopped(guest, pair, "vdc", "Input/output error")
            #expect(failing.answerSoFar == nil, "the guest is told nothing")
            _ = try await Command.succeed(["mount", "-o", "remount,size=64m", tight])
            try await goesOn(guest, pair)
            #expect(try await failing.answer().hasPrefix("ok "))
            try await committing.goesOn(3)

            let acknowledged = try await committing.stop()
            let client = try await guest.connect()
            let numbers = try Numbers(client)
            #expect(numbers.rows == acknowledged && numbers.wrong == 0)
            #expect(try client.ask("check") == "check ok")
            try await guest.disable()
            try Disks.expectFilled(full, mebibytes: Self.mebibytes)
            try Disks.expectFilled(guest.disks[2].path, mebibytes: Self.mebibytes)
            try await guest.expectCleanFileSystem(try await guest.copyOfRoot(pair.primary))
            try await lab.removeDemo(DiskGuest.name)
            try await small.remove()
            try await guest.detachLoops()
            guest.disks.removeLast()
            _ = try await Command.succeed(["umount", tight])
            try await guest.remove()
        }

        private static let mebibytes = 32

        /// QEMU has stopped the guest, and the operator can see why.
        private func expectStopped(
            _ guest: DiskGuest, _ pair: PairView, _ disk: String, _ error: String
        ) async throws {
            let lab = guest.lab
            _ = try await lab.pair("with a disk that fails", of: DiskGuest.name) {
                $0.statistics?.disks?.failure == "\(disk): \(error)"
            }
            try await eventually("QEMU stops the guest") { () async throws -> Void? in
                let state = try await lab.virsh(pair.primary, "domstate", DiskGuest.name)
                return state.hasPrefix("paused") ? () : nil
            }
            try await eventually("an event tells of it") { () async throws -> Void? in
                let events = try await lab.events(after: 0, on: pair.primary)
                return events.last { $0.kind == .disks }?.message.contains("\(disk): \(error)")
                    == true ? () : nil
            }
        }

        /// The storage is mended, the operator resumes the guest.
        private func goesOn(_ guest: DiskGuest, _ pair: PairView) async throws {
            let lab = guest.lab
            _ = try await lab.pair("without a failure", of: DiskGuest.name) {
                $0.statistics?.disks.map { $0.failure == nil && $0.waitingBytes < 4 << 20 } == true
            }
            _ = try await lab.virsh(pair.primary, "resume", DiskGuest.name)
            try await eventually("an event tells of it") { () async throws -> Void? in
                let events = try await lab.events(after: 0, on: pair.primary)
                return events.last { $0.kind == .disks }?.message.contains("again") == true
                    ? () : nil
            }
        }
    }

    /// Every MiB has its own byte, from 1 on: what `fill` writes.
    static func expectFilled(_ path: String, mebibytes: Int) throws {
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
}
