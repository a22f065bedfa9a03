import Foundation
import GRDB
import Lab
import Model
import Testing

private let h1 = HostName("h1")
private let h2 = HostName("h2")
private let h3 = HostName("h3")

extension RealLabs {
    /// Real hosts on this machine. All tests use one lab, one after the other.
    @Suite struct Life {
        let layout: LabLayout
        let before: Traces

        init() async throws {
            layout = try LabLayout(name: "ftvm-lab-test")
            // What an earlier run may have left when it was ended.
            try await Lab.down(layout, progress: { _ in })
            before = Traces.now(layout)
        }

        private func up(_ specification: LabSpecification = LabSpecification()) async throws -> Lab
        {
            try await Lab.up(specification, layout: layout, progress: { _ in })
        }

        private func down() async throws {
            try await Lab.down(layout, progress: { _ in })
            #expect(Traces.now(layout) == before)
        }

        private func state(_ lab: Lab, _ host: HostName) async throws -> LabStatus.State? {
            try await lab.status().hosts.first { $0.name == host }?.state
        }

        /// Whether a client on the switch reaches a host. A bridge takes up to two seconds to use a
        /// port that has come up.
        private func reachable(_ lab: Lab, _ host: HostName, patience: Int = 10) async throws
            -> Bool
        {
            let address = try lab.host(host).address
            for _ in 1...patience {
                let ping = ["busybox", "ping", "-c", "1", "-W", "1", address]
                if try await Tool.attempt(try lab.clientCommand(ping)).status == 0 { return true }
            }
            return false
        }

        @Test func aLabComesAndGoesWithoutTrace() async throws {
            let lab = try await up()
            #expect(try Lab.running(layout).hosts == lab.hosts)
            let status = try await lab.status()
            #expect(status.hosts.map(\.state) == [.running, .running, .running])
            #expect(status.hosts.map(\.link) == [true, true, true])
            for host in lab.hosts {
                #expect(try await lab.virsh(host.name, ["hostname"]).hasPrefix(host.name.text))
                #expect(try await reachable(lab, host.name))
            }
            let namespaces = status.hosts.flatMap { host in
                host.pid.map { Traces.namespaces(of: String($0)) } ?? []
            }
            // Five each, and none shared: neither with another host nor with the machine.
            #expect(Set(namespaces).count == 15)
            #expect(Set(namespaces).isDisjoint(with: Traces.namespaces(of: "self")))
            try await down()
            #expect(Set(namespaces).isDisjoint(with: Traces.namespaces()))
        }

        @Test func upAndDownManyTimes() async throws {
            for round in 1...10 {
                let lab = try await up()
                #expect(try await lab.status().hosts.count == 3, "round \(round)")
                try await down()
            }
        }

        @Test func theSameShapeIsFoundAgainAndAnotherIsRefused() async throws {
            let lab = try await up()
            #expect(try await up().hosts == lab.hosts)
            var other = LabSpecification()
            other.hostCount = 2
            let error = await #expect(throws: FtvmError.self) { try await up(other) }
            #expect(error?.code == .alreadyExists)
            #expect(try await lab.status().hosts.map(\.state) == [.running, .running, .running])
            try await down()
            try await down()
            #expect(throws: FtvmError.self) { try Lab.running(layout) }
        }

        @Test func aKilledHostIsGoneAltogetherAndBootsAgain() async throws {
            let lab = try await up()
            let first = try #require(try await lab.status().hosts[0].pid)
            let namespaces = Traces.namespaces(of: String(first))
            // Something that only the host's death ends, run from outside and inside.
            let sleeper = Task {
                try await Tool.attempt(try lab.command(in: h1, ["sleep", "1000"]))
            }
            try await waitFor("the sleeper runs", limit: .seconds(10)) { () throws -> Void? in
                try lab.processes(of: h1).contains { $0.name == "sleep" } ? () : nil
            }
            let marks = ["/run/mark", "/var/lib/libvirt/mark"]
            _ = try await Tool.run(try lab.command(in: h1, ["touch"] + marks))
            try await lab.kill(h1)
            #expect(try await sleeper.value.status != 0)
            #expect(try lab.processes(of: h1).isEmpty)
            #expect(Set(namespaces).isDisjoint(with: Traces.namespaces()))
            #expect(try await state(lab, h1) == .dead)
            #expect(try await state(lab, h2) == .running)
            #expect(try await !reachable(lab, h1, patience: 2))
            let again = await #expect(throws: FtvmError.self) { try await lab.kill(h1) }
            #expect(again?.code == .failedPrecondition)

            try await lab.start(h1)
            #expect(try await reachable(lab, h1))
            // A disk outlives a crash, memory does not.
            let left = try await Tool.attempt(try lab.command(in: h1, ["ls"] + marks))
            #expect(left.output == "/var/lib/libvirt/mark\n")
            let running = await #expect(throws: FtvmError.self) { try await lab.start(h1) }
            #expect(running?.code == .failedPrecondition)
            try await down()
        }

        @Test func aFrozenHostStandsStill() async throws {
            let lab = try await up()
            let tick = "\(layout.directory(of: h1))/tick"
            let script = "while :; do echo x >>\(tick); sleep 0.01; done"
            let writer = Task {
                try await Tool.attempt(try lab.command(in: h1, ["bash", "-c", script]))
            }
            func size() -> Int { (try? Data(contentsOf: URL(fileURLWithPath: tick)).count) ?? 0 }
            try await waitFor("the writer writes", limit: .seconds(10)) { size() > 10 ? () : nil }
            try await lab.freeze(h1)
            #expect(try await state(lab, h1) == .frozen)
            let frozenAt = size()
            try await Task.sleep(for: .milliseconds(300))
            #expect(size() == frozenAt)
            try await lab.thaw(h1)
            try await waitFor("the writer goes on", limit: .seconds(10)) {
                size() > frozenAt ? () : nil
            }
            // Death comes to a frozen host as well.
            try await lab.freeze(h1)
            try await lab.kill(h1)
            _ = try await writer.value
            try await lab.freeze(h2)
            try await down()
        }

        /// It would keep the others from the store for as long as it stands still.
        @Test func noHostIsFrozenWhileItWritesToTheStore() async throws {
            let lab = try await up()
            var configuration = Configuration()
            configuration.allowsUnsafeTransactions = true
            configuration.journalMode = .wal
            let store = try DatabaseQueue(path: layout.store, configuration: configuration)
            try await store.writeWithoutTransaction { db in
                try db.execute(sql: "CREATE TABLE t (x)")
                try db.beginTransaction(.immediate)
            }
            let freezing = Task { try await lab.freeze(h1) }
            try await Task.sleep(for: .milliseconds(500))
            #expect(try await state(lab, h1) == .running)
            try await store.writeWithoutTransaction { db in
                try db.execute(sql: "INSERT INTO t VALUES (1)")
                try db.commit()
            }
            try await freezing.value
            #expect(try await state(lab, h1) == .frozen)
            try await store.write { try $0.execute(sql: "INSERT INTO t VALUES (2)") }
            let rows = try await store.read { try Int.fetchOne($0, sql: "SELECT count(*) FROM t") }
            #expect(rows == 2)
            try store.close()
            try await down()
        }

        @Test func aCutHostIsOffTheNetworkOnly() async throws {
            let lab = try await up()
            #expect(try await reachable(lab, h2))
            try await lab.cut(h2)
            #expect(try await !reachable(lab, h2, patience: 2))
            #expect(try await reachable(lab, h3))
            #expect(try await lab.status().hosts[1].link == false)
            #expect(try await lab.virsh(h2, ["hostname"]).hasPrefix("h2"))
            try await lab.heal(h2)
            #expect(try await reachable(lab, h2))
            try await down()
        }

        @Test func hugePagesAreTakenAndGivenBack() async throws {
            func total() throws -> Int {
                let text = try String(
                    contentsOfFile: "/proc/sys/vm/nr_hugepages", encoding: .utf8)
                return try #require(Int(text.trimmingCharacters(in: .whitespacesAndNewlines)))
            }
            let before = try total()
            var specification = LabSpecification()
            specification.hostCount = 1
            specification.hugePages = 16
            let lab = try await up(specification)
            let hugePool = try #require(try await lab.status().hugePool)
            let kind = try await Tool.run(
                try lab.command(in: h1, ["stat", "-f", "-c", "%T", hugePool]))
            #expect(kind.hasPrefix("hugetlbfs"))
            #expect(try total() == before + 16)
            try await down()
            #expect(try total() == before)
        }

        /// libvirtd does not start where it hears of a hugetlbfs that it cannot find.
        @Test func anotherLabsHugePagesDisturbNobody() async throws {
            var specification = LabSpecification()
            specification.hostCount = 2
            let lab = try await up(specification)
            let other = try LabLayout(name: "ftvm-lab-test-other")
            try await Lab.down(other, progress: { _ in })
            specification.hugePages = 2
            let second = try await Lab.up(specification, layout: other, progress: { _ in })
            for (one, name) in [(lab, h2), (second, h1)] {
                try await one.kill(name)
                try await one.start(name)
                #expect(try await state(one, name) == .running)
            }
            try await Lab.down(other, progress: { _ in })
            try await down()
        }

        @Test func orphansAreReaped() async throws {
            let lab = try await up()
            let script = "for i in 1 2 3 4 5; do (setsid sleep 0.05 &) ; done"
            _ = try await Tool.run(try lab.command(in: h1, ["bash", "-c", script]))
            try await waitFor("all orphans are gone", limit: .seconds(10)) { () throws -> Void? in
                try lab.processes(of: h1).contains { $0.name == "sleep" } ? nil : ()
            }
            let states = try await Tool.run(try lab.command(in: h1, ["ps", "axo", "stat,comm"]))
            #expect(!states.contains("Z"), "\(states)")
            try await down()
        }

        @Test func whatAnEndedUpLeftIsRemoved() async throws {
            _ = try await up()
            let record = "\(layout.directory)/lab.json"
            let text = try String(contentsOfFile: record, encoding: .utf8)
            let half = text.replacingOccurrences(
                of: "\"complete\" : true", with: "\"complete\" : false")
            #expect(half != text)
            try half.write(toFile: record, atomically: true, encoding: .utf8)
            let error = #expect(throws: FtvmError.self) { try Lab.running(layout) }
            #expect(error?.code == .failedPrecondition)
            #expect(try await up().hosts.count == 3)
            // Not even a record is left.
            try FileManager.default.removeItem(atPath: record)
            try await down()
        }

        @Test func filesOfOthersAreNotTouched() async throws {
            let file = "\(layout.directory)/precious"
            try FileManager.default.createDirectory(
                atPath: layout.directory, withIntermediateDirectories: true)
            try "mine".write(toFile: file, atomically: true, encoding: .utf8)
            await #expect(throws: FtvmError.self) { try await up() }
            await #expect(throws: FtvmError.self) { try await Lab.down(layout, progress: { _ in }) }
            #expect(try String(contentsOfFile: file, encoding: .utf8) == "mine")
            try FileManager.default.removeItem(atPath: layout.directory)
            try await down()
        }
    }
}
