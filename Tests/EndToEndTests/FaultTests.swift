import ControlAPI
import EndToEndSupport
import Foundation
import Lab
import Model
import Testing

extension EndToEnd {
    /// `ftvmd` dies at each named point of each protocol, once, and is started again by its host.
    @Suite(.lab(LabShape()), .keepingLogs)
    struct Faults {
        static let commitPoints = [
            "commit.begin", "commit.early", "commit.flagged", "commit.stopped", "commit.saved",
            "commit.copied", "commit.protected", "commit.opened", "ahead.published",
            "segment.commit.record-half-written",
            "segment.commit.record-written", "segment.commit.position-swapped",
            "commit.published", "commit.resumed", "commit.end",
        ]
        /// Through libvirt's monitor, as commits are made in a domain that was enabled while it ran.
        static let passingPoints = ["commit.passing", "commit.passed"]
        static let undoPoints = [
            "segment.undo.image-copied", "segment.undo.entry-written",
            "segment.undo.head-published",
        ]
        static let framePoints = ["gate.received", "gate.frame-written", "gate.frame-released"]
        static let adoptionPoints = ["adoption.tracking", "adoption.connected", "adoption.resumed"]
        static let takeOverPoints = [
            "gate.filters-removed", "gate.devices-removed", "gate.cleared",
            "gate.descriptors-installed", "gate.devices-added", "gate.attached",
            "takeover.protected", "takeover.copied", "takeover.stopped", "takeover.mapped",
            "gate.filter-switched", "takeover.gated", "takeover.tracking",
        ]
        static let promotionPoints = [
            "promotion.locked", "promotion.raised", "promotion.rolled-back", "promotion.writable",
            "promotion.loaded", "gate.promotion-switched", "gate.promotion-sent",
            "gate.input-closed",
            "gate.promotion-replayed", "promotion.running", "promotion.committed",
        ]
        static let releasePoints = [
            "release.network", "gate.giving-back", "gate.switched-off", "gate.removed",
            "release.mapped", "release.copied", "release.moved", "release.definition-restored",
            "release.segment-removed", "release.noted",
        ]
        /// Reached only after another death: ProtectionTests' half gates go through it.
        static let secondPoints = ["gate.renewing"]
        static let secondaryPoints = ["secondary.creating", "secondary.created"]

        /// Every point in the sources is in one of the lists here, or tested elsewhere.
        @Test func everyPointIsTested() throws {
            let known = Set(
                Self.commitPoints + Self.passingPoints + Self.undoPoints + Self.takeOverPoints
                    + Self.promotionPoints
                    + Self.releasePoints + Self.secondaryPoints + Self.framePoints
                    + Self.adoptionPoints + Self.secondPoints
                    + Switchovers.sourcePoints + Switchovers.targetPoints)
            let found = try Fault.pointsInSources()
            // Crash tests of MemoryPool, Heartbeat and DiskLog, and the suites of cluster, disks and domains, go through
            // the others.
            let elsewhere = [
                "segment.", "heartbeat.", "disklog.", "fence.", "failover.", "disks.", "devices.",
                "enabling.",
            ]
            let missing = found.subtracting(known).filter { point in
                !elsewhere.contains { point.hasPrefix($0) }
            }
            #expect(missing.sorted() == [])
            #expect(known.subtracting(found).sorted() == [])
        }

        /// Through a monitor of ours.
        @Test(arguments: commitPoints)
        func ftvmdDiesInACommit(point: String) async throws {
            try await diesAsPrimary(at: point, passes: 1...40, monitor: .ours)
        }

        @Test(arguments: passingPoints + ["commit.saved", "commit.copied", "commit.published"])
        func ftvmdDiesInACommitThroughLibvirt(point: String) async throws {
            try await diesAsPrimary(at: point, passes: 1...40, monitor: .libvirt)
        }

        @Test(arguments: undoPoints)
        func ftvmdDiesInTheUndoLog(point: String) async throws {
            try await diesAsPrimary(at: point, passes: 1...5_000)
        }

        /// Twice as unlucky: the restarted one dies while it takes the guest up again.
        @Test(arguments: adoptionPoints)
        func ftvmdDiesInAnAdoption(point: String) async throws {
            try await diesAsPrimary(at: point, passes: 1...1)
        }

        /// A guest that talks: somebody asks it all the time.
        @Test(arguments: framePoints)
        func ftvmdDiesOverAFrame(point: String) async throws {
            let lab = try TestLab.here()
            let (guest, _) = try await lab.protectedDemo()
            async let echoes = Command.attempt(
                [
                    Command.ftvm, "lab", "client", "--name", lab.layout.name, "--", "ping", "-q",
                    "-i", "0.05", "-w", "8", guest.domain.address,
                ], seconds: 30)
            try await diesAsPrimary(at: point, passes: 1...10)
            let outcome = try await echoes
            #expect(outcome.status == 0, "\(outcome.output)")
        }

        /// Whose monitor commits go through.
        private enum MonitorKind {
            case ours, libvirt
        }

        /// A guest that is committed so: moved once, or enabled while it runs.
        private func protectedDemo(
            _ lab: TestLab, _ kind: MonitorKind
        ) async throws -> (Guest, PairView) {
            let (guest, pair) = try await lab.protectedDemo()
            let hasOurs = try await lab.presentQEMU(pair.primary).arguments.contains {
                $0.contains("ftvm-qmp")
            }
            if hasOurs == (kind == .ours) { return (guest, pair) }
            if hasOurs {
                try await lab.removeDemo()
                return try await lab.protectedDemo()
            }
            let outcome = try await lab.attempt(["switchover", TestLab.demo])
            try #require(outcome.status == 0, "\(outcome.errorOutput)")
            return (guest, try await lab.protected("moved") { $0.primary == pair.secondary })
        }

        private func diesAsPrimary(
            at point: String, passes: ClosedRange<Int>, monitor: MonitorKind? = nil
        ) async throws {
            let lab = try TestLab.here()
            var random = Settings.random(point)
            for _ in 1...Settings.faultRounds {
                let (guest, before) =
                    if let monitor {
                        try await protectedDemo(lab, monitor)
                    } else {
                        try await lab.protectedDemo()
                    }
                try await guest.setDirtyRate(10_000)
                let covered = try await guest.covered()
                let fault = Fault(lab, point, pass: Int.random(in: passes, using: &random))
                try await fault.arm([before.primary])
                try await fault.strikes()
                let pair = try await lab.protected("protected after \(fault)")
                #expect(pair.primary == before.primary && pair.generation == before.generation)
                try await guest.goesOn(from: covered)
                try await fault.disarm()
            }
        }

        @Test(arguments: takeOverPoints)
        func ftvmdDiesInATakeOver(point: String) async throws {
            let lab = try TestLab.here()
            for _ in 1...Settings.faultRounds {
                let (guest, before) = try await lab.protectedDemo()
                try await lab.disable()
                let covered = try await guest.covered()
                let fault = Fault(lab, point, pass: 1)
                try await fault.arm([before.primary])
                // Asked of another host, whose ftvmd stays.
                let other = try #require(lab.hosts.first { $0 != before.primary })
                let enabled = try await lab.ftvm(
                    PairView.self, "enable", TestLab.demo, "--host", before.primary.text, on: other)
                #expect(enabled.primary == before.primary)
                #expect(enabled.state == .protected, "\(enabled.state) \(enabled.reason)")
                try await fault.strikes()
                let pair = try await lab.protected("protected after \(fault)")
                #expect(pair.primary == before.primary)
                try await guest.goesOn(from: covered)
                try await lab.expectNoLeak(pair)
                try await fault.disarm()
            }
        }

        @Test(arguments: promotionPoints)
        func ftvmdDiesInAPromotion(point: String) async throws {
            let lab = try TestLab.here()
            for _ in 1...Settings.faultRounds {
                let (guest, before) = try await lab.protectedDemo()
                try await guest.setDirtyRate(5_000)
                let fault = Fault(lab, point, pass: 1)
                try await fault.arm(lab.hosts.filter { $0 != before.primary })
                let ready = try await lab.protected()
                #expect(ready.primary == before.primary && ready.generation == before.generation)
                let covered = try await guest.covered()
                try await lab.presentQEMU(before.primary).kill()
                try await fault.strikes()
                let pair = try await lab.protected("protected after \(fault)") {
                    $0.generation > before.generation
                }
                // A generation that an interrupted promotion may have used up is not used again.
                #expect(pair.generation.number <= before.generation.number + 2)
                try await guest.goesOn(from: covered)
                try await lab.expectNoLeak(pair)
                try await fault.disarm()
            }
        }

        @Test(arguments: secondaryPoints)
        func ftvmdDiesWhileItMakesASecondary(point: String) async throws {
            let lab = try TestLab.here()
            for _ in 1...Settings.faultRounds {
                let (guest, before) = try await lab.protectedDemo()
                let fault = Fault(lab, point, pass: 1)
                try await fault.arm(lab.hosts.filter { $0 != before.primary })
                let ready = try await lab.protected()
                let covered = try await guest.covered()
                try await lab.presentQEMU(ready.secondary).kill()
                try await fault.strikes()
                let pair = try await lab.protected("protected after \(fault)")
                #expect(pair.primary == before.primary && pair.generation == before.generation)
                try await guest.goesOn(from: covered)
                try await lab.expectNoLeak(pair)
                try await fault.disarm()
            }
        }

        @Test(arguments: releasePoints)
        func ftvmdDiesInARelease(point: String) async throws {
            let lab = try TestLab.here()
            for _ in 1...Settings.faultRounds {
                let (guest, before) = try await lab.protectedDemo()
                let fault = Fault(lab, point, pass: 1)
                try await fault.arm([before.primary])
                _ = try await lab.protected()
                let covered = try await guest.covered()
                let other = try #require(lab.hosts.first { $0 != before.primary })
                try await lab.disable(on: other)
                try await fault.strikes()
                try await guest.goesOn(from: covered)
                let qemu = try #require(try await lab.qemu(before.primary))
                #expect(qemu.traces == [])
                let pools = try await lab.ftvm([PoolView].self, "pool", "list")
                #expect(pools.first?.segmentCount == 0)
                try await fault.disarm()
                try await lab.removeDemo()
            }
        }
    }
}
