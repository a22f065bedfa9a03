import ClusterStore
import Foundation
import Model
import Testing

private func pair(_ name: String) -> PairRecord {
    PairRecord(
        name: PairName(name), uuid: "u", primary: HostName("h1"), options: PairOptions(),
        domainXML: "<domain type='qemu'>\n</domain>", persistent: true, memoryBytes: 1 << 30)
}

@Suite struct RecordsTests {
    private let directory: Directory
    private let store: SQLiteStore
    private let pairs: PairRecords

    init() throws {
        directory = try Directory()
        var options = SQLiteStore.Options()
        options.durability = .normal
        store = try SQLiteStore(path: directory.path + "/store.sqlite", options: options)
        pairs = PairRecords(store: store)
    }

    @Test func aPairComesBackAsItWasWritten() async throws {
        var record = pair("demo")
        record.segment = SegmentReference(pool: PoolName("ram0"), name: "demo")
        record.liveXML = "<domain id='1'/>"
        record.lastError = FtvmError(.timedOut, "a", cause: "b", advice: "c")
        record.progress = PairProgress(step: "copying memory", percent: 40)
        record.generation = Generation(3)
        let revision = try await pairs.create(record)
        let read = try await pairs.read(record.name)
        #expect(read == Versioned(record: record, revision: revision))
        #expect(try await pairs.read(PairName("other")) == nil)
        #expect(try await store.get("pairs/demo") != nil)
    }

    @Test func aHostComesBackAsItWasWritten() async throws {
        let hosts = HostRecords(store: store)
        let record = HostRecord(
            name: HostName("h1"), incarnation: 4, heartbeatSlot: 2, version: "0.1.0",
            libvirtVersion: "9.0.0", qemuVersion: "7.2.0", memoryAvailableBytes: 1 << 34,
            pools: [PoolName("ram0")],
            domains: [DomainSummary(name: "demo", uuid: "u", state: "running")])
        try await hosts.put(record)
        try await hosts.put(record)
        #expect(try await hosts.read(HostName("h1"))?.record == record)
        #expect(try await hosts.list().records.map(\.record) == [record])
        #expect(try await store.get("hosts/h1") != nil)
    }

    /// Hosts that start together, each with a connection of its own.
    @Test func everyHostHasAHeartbeatSlotOfItsOwn() async throws {
        let path = directory.path + "/store.sqlite"
        let hosts = (1...16).map { HostName("h\($0)") }
        let slots = try await withThrowingTaskGroup(of: (HostName, Int).self) { group in
            for host in hosts {
                group.addTask {
                    let store = try SQLiteStore(path: path)
                    defer { store.close() }
                    return (host, try await HeartbeatSlots.slot(of: host, in: store, limit: 16))
                }
            }
            return try await group.reduce(into: [:]) { $0[$1.0] = $1.1 }
        }
        #expect(slots.values.sorted() == Array(0..<16))
        for host in hosts {
            #expect(
                try await HeartbeatSlots.slot(of: host, in: store, limit: 16) == slots[host])
        }
        // Another store: everybody keeps what it has, and nobody gets what another one still has.
        let other = try SQLiteStore(path: directory.path + "/other.sqlite")
        defer { other.close() }
        let found = [0: HostName("a"), 1: HostName("b"), 3: HostName("c")]
        for (host, slot) in [("b", 1), ("new", 2), ("c", 3), ("a", 0), ("later", 4)] {
            let given = try await HeartbeatSlots.slot(
                of: HostName(host), in: other, limit: 16, found: found)
            #expect(given == slot, "\(host)")
        }
        do throws(FtvmError) {
            _ = try await HeartbeatSlots.slot(of: HostName("one more"), in: store, limit: 16)
            Issue.record("a 17th slot of 16")
        } catch {
            #expect(error.code == .resourceExhausted)
        }
    }

    @Test func aPairIsCreatedOnce() async throws {
        try await pairs.create(pair("demo"))
        do throws(FtvmError) {
            try await pairs.create(pair("demo"))
            Issue.record("created twice")
        } catch {
            #expect(error.code == .alreadyExists)
            #expect(error.message == "pair demo exists already")
        }
    }

    @Test func updatesOfManyAllCount() async throws {
        var record = pair("demo")
        record.memoryBytes = 0
        try await pairs.create(record)
        try await withThrowingTaskGroup(of: Void.self) { group in
            for _ in 0..<4 {
                group.addTask { [pairs] in
                    for _ in 0..<20 {
                        try await pairs.update(PairName("demo")) { $0.memoryBytes += 1 }
                    }
                }
            }
            try await group.waitForAll()
        }
        #expect(try await pairs.read(PairName("demo"))?.record.memoryBytes == 80)
    }

    @Test func anUpdateSeesWhatAnotherWroteInBetween() async throws {
        let created = try await pairs.create(pair("demo"))
        let present = try #require(try await pairs.read(PairName("demo")))
        var theirs = present.record
        theirs.reason = "theirs"
        let revision = try await pairs.replace(PairName("demo"), present, by: theirs)
        #expect(revision ?? 0 > created)
        var ours = present.record
        ours.reason = "ours"
        #expect(try await pairs.replace(PairName("demo"), present, by: ours) == nil)
        #expect(try await pairs.read(PairName("demo"))?.record.reason == "theirs")
    }

    @Test func anUpdateThatChangesNothingWritesNothing() async throws {
        let revision = try await pairs.create(pair("demo"))
        let after = try await pairs.update(PairName("demo")) { $0.reason = "" }
        #expect(after.revision == revision)
        #expect(try await store.list("").revision == revision)
    }

    @Test func anUpdateThatThrowsWritesNothing() async throws {
        let revision = try await pairs.create(pair("demo"))
        do throws(FtvmError) {
            try await pairs.update(PairName("demo")) { record throws(FtvmError) in
                record.reason = "changed"
                throw FtvmError(.failedPrecondition, "not now")
            }
            Issue.record("no error")
        } catch {
            #expect(error.code == .failedPrecondition)
        }
        #expect(try await pairs.read(PairName("demo"))?.revision == revision)
    }

    @Test func anUpdateOfWhatIsNotThereIsAnError() async throws {
        do throws(FtvmError) {
            try await pairs.update(PairName("demo")) { $0.reason = "x" }
            Issue.record("no error")
        } catch {
            #expect(error.code == .notFound)
        }
    }

    @Test func aWriterWithoutEndEndsAnUpdate() async throws {
        let restless = Restless(store: store)
        let records = PairRecords(store: restless)
        try await pairs.create(pair("demo"))
        do throws(FtvmError) {
            try await records.update(PairName("demo")) { $0.reason += "x" }
            Issue.record("a swap won")
        } catch {
            #expect(error.code == .conflict)
        }
    }

    @Test func deleting() async throws {
        let revision = try await pairs.create(pair("demo"))
        do throws(FtvmError) {
            try await pairs.delete(PairName("demo"), revision: revision + 1)
            Issue.record("deleted another revision")
        } catch {
            #expect(error.code == .conflict)
        }
        try await pairs.delete(PairName("demo"), revision: revision)
        #expect(try await pairs.read(PairName("demo")) == nil)
        try await pairs.delete(PairName("demo"))
    }

    @Test func oneBadRecordDoesNotHideTheOthers() async throws {
        try await pairs.create(pair("a"))
        try await pairs.create(pair("c"))
        try await store.put("pairs/b", Data("{}".utf8), expecting: .any)
        let listing = try await pairs.list()
        #expect(listing.records.map(\.record.name.text) == ["a", "c"])
        #expect(listing.unreadable.map(\.key) == ["pairs/b"])
        #expect(listing.unreadable.first?.error.code == .dataCorrupted)
        do throws(FtvmError) {
            _ = try await pairs.read(PairName("b"))
            Issue.record("read")
        } catch {
            #expect(error.code == .dataCorrupted)
        }
    }

    @Test func namesMayContainAnything() async throws {
        for name in ["a/b", "ä ö", "'; DROP TABLE entries; --", "%", "pairs/"] {
            try await pairs.create(pair(name))
            #expect(try await pairs.read(PairName(name))?.record.name.text == name)
        }
        #expect(try await pairs.list().records.count == 5)
    }

    @Test func watching() async throws {
        var changes = pairs.watch().makeAsyncIterator()
        _ = await changes.next()
        try await pairs.create(pair("demo"))
        guard case .current(let listing) = await changes.next() else {
            Issue.record("no listing")
            return
        }
        #expect(PairRecords.decode(listing).records.map(\.record.name.text) == ["demo"])
    }
}

/// A store in which somebody else writes between every read and the write that follows.
private struct Restless: ClusterStore {
    let store: SQLiteStore

    func grantLease(milliseconds: Int) async throws(FtvmError) -> StoreLease {
        try await store.grantLease(milliseconds: milliseconds)
    }
    func keepAlive(_ lease: StoreLease) async throws(FtvmError) { try await store.keepAlive(lease) }
    func revoke(_ lease: StoreLease) async throws(FtvmError) { try await store.revoke(lease) }

    func get(_ key: String) async throws(FtvmError) -> StoreEntry? {
        let entry = try await store.get(key)
        if let entry { try await store.put(key, entry.value, expecting: .any) }
        return entry
    }
    func list(_ prefix: String) async throws(FtvmError) -> StoreListing {
        try await store.list(prefix)
    }
    func put(
        _ key: String, _ value: Data, expecting: StoreExpectation, lease: StoreLease?
    ) async throws(FtvmError) -> UInt64 {
        try await store.put(key, value, expecting: expecting)
    }
    func delete(_ key: String, expecting: StoreExpectation) async throws(FtvmError) {
        try await store.delete(key, expecting: expecting)
    }
    func watch(_ prefix: String) -> AsyncStream<StoreChange> { store.watch(prefix) }
    func appendEvent(_ event: ClusterEvent) async throws(FtvmError) -> UInt64 {
        try await store.appendEvent(event)
    }
    func events(after: UInt64, limit: Int) async throws(FtvmError) -> [ClusterEvent] {
        try await store.events(after: after, limit: limit)
    }
}
