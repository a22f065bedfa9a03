import ControlAPI
import EndToEndSupport
import Foundation
import Lab
import Model
import Testing

extension Disks {
    /// A database on an ext4 root disk, and a client that counts what was acknowledged.
    @Suite(.lab(LabShape()), .keepingLogs)
    struct Databases {
        @Test func everyTransactionOutlivesItsHosts() async throws {
            let lab = try TestLab.here()
            let guest = try await DiskGuest.make(lab, more: [("vdb", "virtio", "raw", 16)])
            try await guest.start(on: lab.hosts[0])
            var pair = try await guest.enable()
            #expect(pair.statistics?.disks != nil, "the status shows the disk log")
            let committing = Committing(try await guest.connect())
            var random = Settings.random("database")
            let checking = Checking(
                try await guest.connect(), disk: "vdb",
                seed: UInt64.random(in: 1...UInt64.max, using: &random))
            try await committing.goesOn()
            for round in 1...Disks.kills {
                try await Task.sleep(for: .milliseconds(Int.random(in: 0...800, using: &random)))
                let before = pair
                let strike = try await Strike(.host, lab, before)
                pair = try await guest.protected("protected, round \(round)") {
                    $0.generation > before.generation
                }
                try await committing.goesOn()
                try await checking.goesOn(1)
                try await strike.repair(lab)
            }
            try await checking.stop()
            let acknowledged = try await committing.stop()
            print("database: \(acknowledged) transactions acknowledged over \(Disks.kills) hosts")
            let client = try await guest.connect()
            let numbers = try Numbers(client)
            #expect(numbers.rows == acknowledged && numbers.last == acknowledged)
            #expect(numbers.wrong == 0)
            #expect(try client.ask("check") == "check ok")
            #expect(try client.ask("verify vdb") == "ok 4096")
            try await guest.disable()
            #expect(try client.ask("verify vdb") == "ok 4096", "on the image itself")
            // The same images, the same guest, and everything in them.
            let after = try Numbers(client)
            #expect(after == numbers)
            #expect(try client.ask("commit \(acknowledged + 1)") == "ok \(acknowledged + 1)")
            try await guest.expectCleanFileSystem(try await guest.copyOfRoot(pair.primary))
            #expect(
                try await lab.ftvm([PoolView].self, "pool", "list").map(\.segmentCount).max() == 0)
            try await guest.remove()
        }

        /// Hosts, QEMUs, disk servers and the pool's contents, all at once.
        @Test func pullThePlug() async throws {
            let lab = try TestLab.here()
            let guest = try await DiskGuest.make(lab)
            try await guest.start(on: lab.hosts[0])
            let pair = try await guest.enable()
            let committing = Committing(try await guest.connect())
            try await committing.goesOn(20)
            try await lab.killAtOnce(lab.hosts)
            // What a client got before that it has; the rest of its waiting is in vain.
            let acknowledged = committing.giveUp()
            let segment = try #require(pair.segment)
            try FileManager.default.removeItem(
                atPath: "\(lab.layout.pool)/segments/\(segment.name)")
            for host in lab.hosts { try await lab.start(host) }
            // A batch that was under way is brought in by whoever finds it.
            try await eventually("the journal is replayed") { () async throws -> Void? in
                FileManager.default.fileExists(atPath: guest.disks[0].path + ".ftvm-journal")
                    ? nil : ()
            }
            try await guest.expectCleanFileSystem(try await guest.copyOfRoot())
            let host = lab.hosts[2]
            let name = "again"
            _ = try await lab.define(
                xml: try guest.xml(name: name, number: 21), on: host, name: name)
            _ = try await lab.virsh(host, "start", name)
            let client = try await DiskGuest.connect(lab, "10.77.0.21", seconds: 90)
            let numbers = try Numbers(client)
            print("plug: \(acknowledged) acknowledged, \(numbers.rows) there")
            // One may have been durable and not answered yet.
            #expect(numbers.rows >= acknowledged && numbers.rows <= acknowledged + 1)
            #expect(numbers.wrong == 0)
            #expect(try client.ask("check") == "check ok")
            _ = try await lab.virsh(host, "destroy", name)
            _ = try await lab.virsh(host, "undefine", name)
            try FileManager.default.removeItem(atPath: guest.directory)
            // The pair has lost its segment for good: the next test has a lab of its own.
            lab.needsRenewal = true
        }

        /// What a guest writes last, when it shuts down, is in its images before anybody can start it again. Epochs are long, so
        /// that no commit covers it.
        @Test func aGuestThatShutsDownLosesNothing() async throws {
            let lab = try TestLab.here()
            let guest = try await DiskGuest.make(lab)
            try await guest.start(on: lab.hosts[0])
            let pair = try await guest.enable("--epoch-max", "3000")
            let committing = Committing(try await guest.connect())
            try await committing.goesOn(10)
            let acknowledged = try await committing.stop()
            try await guest.shutDown(on: pair.primary)
            _ = try await lab.pair("shut off", of: DiskGuest.name) {
                $0.state == .unprotected && $0.secondary == nil
            }
            try await guest.expectSettled()
            let copy = try await guest.copyOfRoot()
            let checked = try await Command.attempt(["e2fsck", "-fn", copy])
            #expect(checked.status == 0, "\(checked.output)\(checked.errorOutput)")
            _ = try await lab.virsh(pair.primary, "start", DiskGuest.name)
            _ = try await guest.protected("protected again")
            let numbers = try Numbers(try await guest.connect(seconds: 90))
            #expect(numbers.rows == acknowledged && numbers.wrong == 0)
            try await guest.disable()
            try await guest.remove()
        }
    }
}
