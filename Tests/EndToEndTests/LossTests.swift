import ControlAPI
import EndToEndSupport
import Foundation
import Lab
import Model
import Testing

extension EndToEnd {
    /// One part of a pair is lost, or both, or seems to be.
    @Suite(.lab(LabShape()), .keepingLogs)
    struct Losses {
        @Test func thePrimarysQEMUAloneIsKilled() async throws {
            let lab = try TestLab.here()
            let (guest, before) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            try await lab.presentQEMU(before.primary).kill()
            let pair = try await lab.protected { $0.primary == before.secondary }
            #expect(pair.generation == before.generation.next)
            try await guest.goesOn(from: covered)
            try await lab.expectNoLeak(pair)
        }

        @Test func theWaitingQEMUAloneIsKilled() async throws {
            let lab = try TestLab.here()
            let (guest, before) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            let number = try await lab.lastEvent()
            let primary = try await lab.qemu(before.primary)
            let waiting = try await lab.presentQEMU(before.secondary)
            try waiting.kill()
            let events = try await eventually("the loss is told") {
                let events = try await lab.events(after: number)
                return events.contains { $0.kind == .secondaryLost } ? events : nil
            }
            #expect(!events.contains { $0.kind == .primaryLost })
            let pair = try await lab.protected()
            #expect(pair.primary == before.primary && pair.generation == before.generation)
            #expect(try await lab.qemu(before.primary) == primary)
            #expect(try await lab.presentQEMU(pair.secondary) != waiting)
            try await guest.goesOn(from: covered)
            try await lab.expectNoLeak(pair)
        }

        @Test func theSecondarysHostDies() async throws {
            let lab = try TestLab.here()
            let (guest, before) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            let primary = try await lab.qemu(before.primary)
            let lost = try #require(before.secondary)
            try await lab.kill(lost)
            let pair = try await lab.protected { $0.secondary != lost }
            #expect(pair.primary == before.primary && pair.generation == before.generation)
            #expect(try await lab.qemu(before.primary) == primary)
            try await guest.goesOn(from: covered)
            try await lab.start(lost)
            try await lab.expectNoLeak(pair)
        }

        /// The segment alone is enough to go on from.
        @Test func bothHostsDieAtOnce() async throws {
            let lab = try TestLab.here()
            let (guest, before) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            let lost = [before.primary, try #require(before.secondary)]
            let third = try #require(lab.hosts.first { !lost.contains($0) })
            try await lab.killAtOnce(lost)
            let alone = try await lab.pair("running on \(third)") {
                $0.state == .needSecondary && $0.primary == third
            }
            #expect(alone.generation == before.generation.next)
            let since = try await guest.goesOn(from: covered)
            for host in lost { try await lab.start(host) }
            let pair = try await lab.protected { $0.primary == third }
            #expect(pair.generation == alone.generation)
            try await guest.goesOn(from: since)
            try await lab.expectNoLeak(pair)
        }

        /// The segment is lost with the primary, as when the power of all hosts fails: nothing is left to go on from, and
        /// the domain must be had back all the same.
        @Test func aGuestThatCannotGoOnIsGivenUp() async throws {
            let lab = try TestLab.here()
            let (_, before) = try await lab.protectedDemo()
            let refused = try await lab.attempt(["disable", TestLab.demo, "--discard-state"])
            #expect(refused.status == 6)
            #expect(refused.errorOutput.contains("need not be given up"))
            let segment = try #require(before.segment)
            // Lost at once: nobody else acts in between.
            let others = lab.hosts.filter { $0 != before.primary }
            for host in others { try await lab.freeze(host) }
            try await lab.presentQEMU(before.primary).kill()
            try FileManager.default.removeItem(
                atPath: "\(lab.layout.pool)/segments/\(segment.name)")
            for host in others { try await lab.thaw(host) }
            _ = try await lab.pair("waiting for a segment that is gone") {
                $0.state == .failingOver && $0.reason.contains("--discard-state")
            }
            let answer = try await lab.attempt(["disable", TestLab.demo, "--discard-state"])
            try #require(answer.status == 0, "\(answer.errorOutput)")
            // Shut off, known to libvirt in one place, and it starts like any other.
            let home = try await eventually("one host has it") { () async throws -> HostName? in
                var homes: [HostName] = []
                for host in lab.hosts where try await lab.domains(host).contains(TestLab.demo) {
                    homes.append(host)
                }
                return homes.count == 1 ? homes[0] : nil
            }
            for host in lab.hosts { #expect(try await lab.qemus(host).isEmpty) }
            _ = try await lab.virsh(home, "start", TestLab.demo)
            let guest = Guest(lab: lab, domain: GuestDomain())
            _ = try await guest.connect(seconds: 90)
            _ = try await lab.ftvm(PairView.self, "enable", TestLab.demo, on: home)
            _ = try await lab.protected()
        }

        /// A host that stands still cannot be told from a dead one, except by its lock. It must not be taken for dead.
        @Test func aFrozenHostIsNotReplacedWithoutProof() async throws {
            let lab = try TestLab.here()
            let (guest, before) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            let number = try await lab.lastEvent()
            try await lab.freeze(before.primary)
            let waiting = try await lab.pair("waiting for a fence", seconds: 30) {
                $0.state == .failingOver && $0.reason.contains("waiting for a fence")
            }
            #expect(waiting.reason.contains("waiting for a fence of \(before.primary) ("))
            #expect(waiting.generation == before.generation && waiting.promoting == nil)
            try await stillHeld(lab, before, seconds: 3)
            try await lab.thaw(before.primary)
            let pair = try await lab.protected()
            #expect(pair.generation == before.generation && pair.primary == before.primary)
            let kinds = try await lab.events(after: number).map(\.kind)
            #expect(!kinds.contains(.promotionStarted) && !kinds.contains(.promoted))
            try await guest.goesOn(from: covered)
            try await lab.expectNoLeak(pair)
        }

        /// The proof comes when the frozen host dies.
        @Test func aFrozenHostThatDiesIsReplaced() async throws {
            let lab = try TestLab.here()
            let (guest, before) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            try await lab.freeze(before.primary)
            _ = try await lab.pair("waiting for a fence", seconds: 30) {
                $0.reason.contains("waiting for a fence")
            }
            try await lab.kill(before.primary)
            let pair = try await lab.protected { $0.primary == before.secondary }
            #expect(pair.generation == before.generation.next)
            try await guest.goesOn(from: covered)
            try await lab.start(before.primary)
            try await lab.expectNoLeak(pair)
        }

        /// A cut network is not a death: in this version hosts find each other through the pool.
        @Test func aCutHostStaysThePrimary() async throws {
            let lab = try TestLab.here()
            let (guest, before) = try await lab.protectedDemo()
            let covered = try await guest.covered()
            try await lab.cut(before.primary)
            try await stillHeld(lab, before, seconds: 2)
            try await lab.heal(before.primary)
            let pair = try await lab.protected()
            #expect(pair.generation == before.generation && pair.primary == before.primary)
            try await guest.goesOn(from: covered)
        }

        /// Looks for some time: nobody promotes, and the primary's QEMU has the lock.
        private func stillHeld(_ lab: TestLab, _ before: PairView, seconds: Int) async throws {
            let until = ContinuousClock.now + .seconds(seconds)
            while ContinuousClock.now < until {
                let now = try await lab.present()
                try #require(now.generation == before.generation && now.promoting == nil)
                let pool = try await lab.ftvm(
                    PoolDetailView.self, "pool", "show", before.segment?.pool.text ?? "")
                try #require(pool.segments.map(\.primaryLockHeld) == [true])
                try await Task.sleep(for: .milliseconds(200))
            }
        }
    }

    /// The same in pools of other kinds.
    @Suite(.lab(LabShape(hugePages: 320)), .keepingLogs)
    struct Pools {
        @Test(arguments: [
            ("huge", PoolKind.hugetlbfs, UInt64(2 << 20)), ("memfd", PoolKind.memfd, 4096),
        ])
        func aGuestOutlivesItsHost(pool: String, kind: PoolKind, pageSize: UInt64) async throws {
            let lab = try TestLab.here()
            let pools = try await lab.ftvm([PoolView].self, "pool", "list")
            let guest = try await lab.runDemo(on: lab.hosts[0])
            _ = try await lab.ftvm(PairView.self, "enable", TestLab.demo, "--pool", pool)
            var pair = try await lab.protected()
            for _ in 1...2 {
                let covered = try await guest.covered()
                let killed = pair.primary
                try await lab.kill(killed)
                pair = try await lab.protected { $0.primary != killed && $0.secondary != killed }
                #expect(pair.pageSizeBytes == pageSize)
                let detail = try await lab.ftvm(PoolDetailView.self, "pool", "show", pool)
                #expect(detail.pool.kind == kind && detail.pool.pageSizeBytes == pageSize)
                #expect(detail.segments.map(\.pageSizeBytes) == [pageSize])
                try await lab.start(killed)
                try await guest.goesOn(from: covered)
            }
            try await lab.expectNoLeak(pair)
            try await lab.disableAndExpectNothing(pools)
            try await lab.removeDemo()
        }
    }
}
