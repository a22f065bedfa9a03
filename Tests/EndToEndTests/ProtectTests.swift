import ControlAPI
import EndToEndSupport
import Foundation
import Glibc
import Lab
import Model
import Testing

extension EndToEnd {
    /// Protecting a guest and giving it back.
    @Suite(.lab(LabShape()), .keepingLogs)
    struct Protect {
        /// `disable` is the inverse of `enable`: afterwards nothing shows that there ever was protection.
        @Test func aRunningGuestIsProtectedAndGivenBack() async throws {
            let lab = try TestLab.here()
            let home = lab.hosts[0]
            let original = try await lab.define(on: home)
            let guest = try await lab.runDemo(on: home)
            let live = try await lab.virsh(home, "dumpxml", TestLab.demo)
            let qemu = try #require(try await lab.qemu(home))
            var before = try await guest.covered()
            let pools = try await lab.ftvm([PoolView].self, "pool", "list")

            for _ in 1...2 {
                let pair = try await lab.ftvm(PairView.self, "enable", TestLab.demo)
                #expect(pair.state == .protected && pair.primary == home)
                let covered = try await guest.goesOn(from: before)
                try await checkProtected(lab, pair, qemu)
                let committed = try await guest.covered()
                #expect(committed.number > covered.number)

                try await lab.disable()
                before = try await guest.goesOn(from: committed)
                try await checkOrdinary(lab, home, qemu)
                expectSame(
                    try await lab.virsh(home, "dumpxml", "--inactive", TestLab.demo), original)
                // libvirt leaves the empty element behind when metadata goes out of a running domain.
                let after = try await lab.virsh(home, "dumpxml", TestLab.demo)
                expectSame(after.replacing("  <metadata/>\n", with: ""), live)
                let freed = try await lab.ftvm([PoolView].self, "pool", "list")
                #expect(freed.map(\.steady) == pools.map(\.steady))
            }
            try await lab.removeDemo()
        }

        /// The primary may write its memory, the secondary's kernel forbids it; both as ordinary QEMUs of libvirt.
        private func checkProtected(
            _ lab: TestLab, _ pair: PairView, _ primary: ProcessView
        ) async throws {
            let home = pair.primary
            let other = try #require(pair.secondary)
            #expect(other != home)
            #expect(pair.memoryBytes == 256 << 20 && pair.pageSizeBytes == 4096)
            #expect(try await lab.qemu(home) == primary, "the guest's QEMU is the same")
            let secondary = try #require(try await lab.qemu(other))
            let file = lab.ramFile(try #require(pair.segment))
            let mine = try primary.mappings(of: file)
            #expect(mine.allSatisfy { $0.permissions == "rw-s" })
            #expect(mine.contains { $0.bytes == 256 << 20 })
            let theirs = try secondary.mappings(of: file)
            #expect(theirs.allSatisfy { $0.permissions == "r--s" })
            // Not only the main memory: ROMs as well, the same in both.
            #expect(mine.count > 1 && mine.map(\.bytes).sorted() == theirs.map(\.bytes).sorted())
            let user = try #require(getpwnam("libvirt-qemu")).pointee.pw_uid
            for qemu in [primary, secondary] {
                #expect(qemu.status("Uid").allSatisfy { $0 == "\(user)" })
                #expect(qemu.arguments.contains("-sandbox"))
                #expect(qemu.status("Seccomp") == ["2"])
            }
            for host in [home, other] {
                #expect(try await lab.domains(host) == [TestLab.demo])
                #expect(try await lab.domains(host, onlyActive: true) == [TestLab.demo])
            }
            // A commit pauses the guest for a moment, and libvirt follows that.
            _ = try await eventually("virsh shows the guest running", seconds: 20) {
                try await lab.virsh(home, "domstate", TestLab.demo).hasPrefix("running")
                    ? true : nil
            }
            let xml = try await lab.virsh(home, "dumpxml", TestLab.demo)
            #expect(xml.contains("role='primary'") || xml.contains("role=\"primary\""), "\(xml)")
            let pools = try await lab.ftvm([PoolView].self, "pool", "list")
            #expect(pools.first?.segmentCount == 1)
            let detail = try await lab.ftvm(PoolDetailView.self, "pool", "show", "pool")
            let segment = try #require(detail.segments.first)
            #expect(segment.pair?.text == TestLab.demo && segment.primaryLockHeld == true)
        }

        /// Nothing of ours is in the QEMU or elsewhere.
        private func checkOrdinary(_ lab: TestLab, _ home: HostName, _ qemu: ProcessView)
            async throws
        {
            #expect(try await lab.qemu(home) == qemu, "the guest's QEMU is the same")
            #expect(qemu.traces == [])
            #expect(qemu.mappings.contains { $0.isPrivate && $0.bytes >= 256 << 20 })
            for host in lab.hosts where host != home {
                #expect(try await lab.qemu(host) == nil)
                #expect(try await lab.domains(host) == [])
            }
            let list = try await lab.ftvm([PairView].self, "list")
            #expect(list.isEmpty)
        }

        /// A definition may be enabled as well: then starting and ending the guest is the user's, as ever.
        @Test func aGuestThatIsShutOffIsProtectedWhenItRuns() async throws {
            let lab = try TestLab.here()
            let home = lab.hosts[0]
            let original = try await lab.define(on: home)
            let enabled = try await lab.ftvm(PairView.self, "enable", TestLab.demo)
            #expect(enabled.state == .unprotected && enabled.reason.contains("shut off"))
            let guest = Guest(lab: lab)
            var generation = enabled.generation
            var boots: Set<String> = []
            for ending in ["virsh shutdown", "power off", "virsh destroy"] {
                _ = try await lab.virsh(home, "start", TestLab.demo)
                let pair = try await lab.protected()
                #expect(pair.primary == home && pair.generation > generation)
                generation = pair.generation
                let qemu = try #require(try await lab.qemu(home))
                #expect(qemu.arguments.contains { $0.contains("id=ftvm-qmp") }, "our own monitor")
                _ = try await guest.connect(seconds: 90)
                let covered = try await guest.covered()
                boots.insert(covered.status.bootID)

                let number = try await lab.lastEvent()
                try await end(guest, ending)
                let ended = try await lab.pair("unprotected after \(ending)") {
                    $0.state == .unprotected
                }
                #expect(ended.reason.contains("the guest shut down"), "\(ending)")
                try await eventually("no QEMU is left") { () async throws -> Void? in
                    for host in lab.hosts {
                        if try await lab.qemu(host) != nil { return nil }
                    }
                    return ()
                }
                #expect(try await lab.present().generation == generation)
                let kinds = try await lab.events(after: number).map(\.kind)
                let wrong: [ClusterEvent.Kind] = [.promotionStarted, .promoted, .primaryLost]
                #expect(!kinds.contains(where: wrong.contains), "a failover after \(ending)")
            }
            #expect(boots.count == 3)
            try await lab.disable()
            expectSame(
                try await lab.virsh(home, "dumpxml", "--inactive", TestLab.demo), original)
            let pools = try await lab.ftvm([PoolView].self, "pool", "list")
            #expect(pools.first?.segmentCount == 0)
            try await lab.removeDemo()
        }

        private func end(_ guest: Guest, _ way: String) async throws {
            let home = guest.lab.hosts[0]
            switch way {
            case "virsh shutdown": try await guest.lab.shutDown(on: home)
            case "virsh destroy": _ = try await guest.lab.virsh(home, "destroy", TestLab.demo)
            default:
                // It may be gone before it has answered.
                _ = try? await guest.connect().ask("poweroff")
            }
        }

        /// Planned hand-overs lose nothing at all, and leave nothing behind in any ftvmd.
        @Test func aGuestIsHandedOver() async throws {
            let lab = try TestLab.here()
            let (guest, first) = try await lab.protectedDemo()
            try await guest.setDirtyRate(5_000)
            var pair = first
            var covered = try await guest.covered()
            var census = DescriptorCensus()
            for _ in 1...9 {
                let next = try #require(pair.secondary)
                let promoted = try await lab.ftvm(PairView.self, "promote", TestLab.demo, "--yes")
                #expect(promoted.primary == next)
                #expect(promoted.generation == pair.generation.next)
                pair = try await lab.protected { $0.primary == next }
                #expect(pair.generation == promoted.generation)
                // Nothing waits for a commit here: the last one of the old primary covers everything.
                covered = try await guest.goesOn(from: covered)
                try await census.take(lab, pair)
            }
            census.check()
            try await lab.removeDemo()
        }
    }
}
