import ControlAPI
import EndToEndSupport
import Foundation
import Lab
import Model
import Testing

extension Disks {
    /// `ftvmd` dies at each named point that concerns disks, once, and is started again by its host, while a database commits.
    @Suite(.lab(LabShape()), .keepingLogs)
    struct FaultPoints {
        static let takeOverPoints = [
            "disks.plugin-started", "disks.taken-up", "disks.node-added", "disks.served",
            "disks.file-closed", "disks.attached",
        ]
        static let commitPoints = ["disks.published", "disks.sealed"]
        static let promotionPoints = ["disks.recovered", "disks.promoted"]
        static let releasePoints = [
            "disks.last-sealed", "disks.last-applied", "disks.file-opened", "disks.given-back",
            "disks.ended",
        ]
        static let shutdownPoints = ["disks.settling", "disks.settled"]
        static let lossPoints = ["disks.plugin-lost"]

        @Test func everyPointIsTested() throws {
            let known = Set(
                Self.takeOverPoints + Self.commitPoints + Self.promotionPoints + Self.releasePoints
                    + Self.shutdownPoints + Self.lossPoints)
            let found = try Fault.pointsInSources().filter { $0.hasPrefix("disks.") }
            #expect(found.subtracting(known).sorted() == [])
            #expect(known.subtracting(found).sorted() == [])
        }

        /// One life: enabled, committing, a server lost, promoted, given back, with a death at one point of each kind on the way.
        /// Every point has its turn over the runs of FTVM_DISKS_FULL; each ordinary run takes one of each kind.
        @Test(arguments: Disks.isFull ? Array(0..<takeOverPoints.count) : [Disks.anyIndex])
        func ftvmdDiesOnTheWay(index: Int) async throws {
            let lab = try TestLab.here()
            let guest = try await DiskGuest.make(lab, rootFormat: index % 2 == 0 ? "qcow2" : "raw")
            let first = lab.hosts[0]
            try await guest.start(on: first)
            let client = try await guest.connect()
            var number = 1
            func commit() throws {
                for _ in 0..<3 {
                    #expect(try client.ask("commit \(number)") == "ok \(number)")
                    number += 1
                }
            }
            try commit()
            let other = lab.hosts[2]
            // Enabling.
            var fault = Fault(lab, Self.pick(Self.takeOverPoints, index), pass: 1)
            try await fault.arm([first])
            let enabled = try await lab.attempt(
                ["enable", DiskGuest.name, "--host", first.text], on: other)
            #expect(enabled.status == 0, "\(enabled.errorOutput)")
            try await fault.strikes()
            try await fault.disarm()
            var pair = try await guest.protected("protected after \(fault)")
            try commit()
            // Committing.
            fault = Fault(lab, Self.pick(Self.commitPoints, index), pass: 3)
            try await fault.arm([pair.primary])
            try await fault.strikes()
            try await fault.disarm()
            pair = try await guest.protected("protected after \(fault)")
            try commit()
            // A disk server is lost.
            fault = Fault(lab, Self.lossPoints[0], pass: 1)
            try await fault.arm([pair.primary])
            pair = try await guest.protected("protected with \(fault) ahead")
            for pid in try guest.nbdkits() { kill(pid, SIGKILL) }
            try await fault.strikes()
            try await fault.disarm()
            pair = try await guest.protected("protected after \(fault)")
            try commit()
            // A promotion.
            fault = Fault(lab, Self.pick(Self.promotionPoints, index), pass: 1)
            let before = pair
            try await fault.arm(lab.hosts.filter { $0 != before.primary })
            _ = try await guest.protected("protected with \(fault) ahead")
            try commit()
            try await lab.presentQEMU(before.primary).kill()
            try await fault.strikes()
            try await fault.disarm()
            pair = try await guest.protected("protected after \(fault)") {
                $0.generation > before.generation
            }
            try commit()
            // Giving back.
            fault = Fault(lab, Self.pick(Self.releasePoints, index), pass: 1)
            try await fault.arm([pair.primary])
            _ = try await guest.protected("protected with \(fault) ahead")
            try commit()
            let asked = try #require(lab.hosts.first { $0 != pair.primary })
            try await lab.disable(DiskGuest.name, on: asked)
            try await fault.strikes()
            try await fault.disarm()
            try commit()
            let numbers = try Numbers(client)
            #expect(numbers.rows == number - 1 && numbers.wrong == 0)
            #expect(try client.ask("check") == "check ok")
            try await guest.expectCleanFileSystem(try await guest.copyOfRoot(pair.primary))
            try await guest.remove()
        }

        /// The guest shuts down, and `ftvmd` dies over its last writes. Epochs are long: the commit that the end of the
        /// database's connection asks for is the last one, what the guest writes after it, while it unmounts, is in none, and
        /// so there is something to settle.
        @Test(arguments: Disks.isFull ? shutdownPoints : [shutdownPoints[Disks.anyIndex % 2]])
        func ftvmdDiesAfterAShutdown(point: String) async throws {
            let lab = try TestLab.here()
            let guest = try await DiskGuest.make(lab)
            try await guest.start(on: lab.hosts[0])
            let pair = try await guest.enable("--epoch-max", "3000")
            let fault = Fault(lab, point, pass: 1)
            try await fault.arm([pair.primary])
            _ = try await guest.protected("protected with \(fault) ahead")
            let client = try await guest.connect()
            for number in 1...5 { #expect(try client.ask("commit \(number)") == "ok \(number)") }
            try await guest.shutDown(on: pair.primary)
            try await fault.strikes()
            // Open until its guest ended it.
            withExtendedLifetime(client) {}
            try await fault.disarm()
            _ = try await lab.pair("shut off", of: DiskGuest.name) {
                $0.state == .unprotected && $0.secondary == nil
            }
            try await guest.expectSettled()
            try await lab.disable(DiskGuest.name)
            let copy = try await guest.copyOfRoot()
            try await guest.expectCleanFileSystem(copy)
            try await guest.remove()
        }

        private static func pick(_ points: [String], _ index: Int) -> String {
            points[index % points.count]
        }
    }

    static let anyIndex: Int = {
        var random = Settings.random("disk faults")
        return Int.random(in: 0..<6, using: &random)
    }()
}
