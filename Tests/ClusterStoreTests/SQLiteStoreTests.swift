import ClusterStore
import Foundation
import GRDB
import Glibc
import Model
import Testing

private func fast() -> SQLiteStore.Options {
    var options = SQLiteStore.Options()
    options.durability = .normal
    return options
}

@Suite struct SQLiteStoreTests {
    @Test func keepsTheContract() async throws {
        let directory = try Directory()
        let contract = StoreContract {
            try SQLiteStore(path: directory.path + "/store.sqlite", options: fast())
        }
        try await contract.all()
    }

    @Test func theFileIsForRootOnlyAndItsDirectoryIsMade() async throws {
        let directory = try Directory()
        let path = directory.path + "/var/lib/ftvm/store.sqlite"
        let store = try SQLiteStore(path: path)
        try await store.put("a", Data(), expecting: .any)
        for suffix in ["", "-wal", "-shm"] {
            let mode = try FileManager.default.attributesOfItem(atPath: path + suffix)[
                .posixPermissions]
            #expect(mode as? Int == 0o600, "\(suffix)")
        }
        let mode = try FileManager.default.attributesOfItem(
            atPath: directory.path + "/var/lib/ftvm")[.posixPermissions]
        #expect(mode as? Int == 0o700)
    }

    @Test func everythingIsThereAgainAfterReopening() async throws {
        let directory = try Directory()
        let path = directory.path + "/store.sqlite"
        let store = try SQLiteStore(path: path)
        let revision = try await store.put("a", Data("1".utf8), expecting: .absent)
        store.close()
        do throws(FtvmError) {
            _ = try await store.get("a")
            Issue.record("read from a closed store")
        } catch {
            #expect(error.code == .unavailable)
        }
        let again = try SQLiteStore(path: path)
        #expect(try await again.get("a")?.revision == revision)
        #expect(try await again.put("a", Data(), expecting: .revision(revision)) > revision)
    }

    @Test func onlyTheNewestEventsAreKept() async throws {
        let directory = try Directory()
        let path = directory.path + "/store.sqlite"
        let store = try SQLiteStore(path: path, options: fast())
        let event = ClusterEvent(time: 0, kind: .failed, host: HostName("h1"), message: "x")
        let first = try await store.appendEvent(event)
        // As many as there may be, put there directly for speed; then one more.
        let body = try JSONEncoder().encode(event)
        let queue = try DatabaseQueue(path: path)
        try await queue.write { db in
            for _ in 1..<StoreLimits.events {
                try db.execute(sql: "INSERT INTO events (body) VALUES (?)", arguments: [body])
            }
        }
        #expect(try await store.events(after: 0, limit: 20_000).count == StoreLimits.events)
        let last = try await store.appendEvent(event)
        let kept = try await store.events(after: 0, limit: 20_000)
        #expect(kept.count == StoreLimits.events)
        #expect(kept.first?.number == first + 1)
        #expect(kept.last?.number == last)
    }

    private func opening(_ path: String) -> FtvmError.Code? {
        do throws(FtvmError) {
            _ = try SQLiteStore(path: path)
            return nil
        } catch {
            return error.code
        }
    }

    @Test func aNewerSchemaIsRefused() throws {
        let directory = try Directory()
        let path = directory.path + "/store.sqlite"
        try SQLiteStore(path: path).close()
        let queue = try DatabaseQueue(path: path)
        try queue.write { try $0.execute(sql: "PRAGMA user_version = 3") }
        try queue.close()
        #expect(opening(path) == .unsupported)
    }

    /// What the first version wrote is kept.
    @Test func anOlderSchemaIsBroughtUpToDate() async throws {
        let directory = try Directory()
        let path = directory.path + "/store.sqlite"
        let first = try SQLiteStore(path: path)
        let revision = try await first.put("a", Data("1".utf8), expecting: .absent)
        first.close()
        let queue = try DatabaseQueue(path: path)
        try await queue.write { db in
            try db.execute(
                sql: """
                    ALTER TABLE entries DROP COLUMN lease;
                    DROP TABLE leases;
                    PRAGMA user_version = 1;
                    """)
        }
        try queue.close()
        let store = try SQLiteStore(path: path)
        #expect(try await store.get("a")?.revision == revision)
        let lease = try await store.grantLease(milliseconds: 10_000)
        try await store.put("b", Data(), expecting: .absent, lease: lease)
        try await store.revoke(lease)
        #expect(try await store.get("b") == nil)
    }

    /// The machine was started again since: nobody can have kept it alive.
    @Test func aLeaseOfAnotherBootHasEnded() async throws {
        let directory = try Directory()
        let path = directory.path + "/store.sqlite"
        let store = try SQLiteStore(path: path)
        let lease = try await store.grantLease(milliseconds: 3_600_000)
        try await store.put("a", Data(), expecting: .absent, lease: lease)
        let queue = try DatabaseQueue(path: path)
        try await queue.write { try $0.execute(sql: "UPDATE leases SET boot = 'another'") }
        #expect(try await store.get("a") == nil)
    }

    @Test func anotherProgramsFileIsRefusedAndLeftAlone() throws {
        let directory = try Directory()
        let text = directory.path + "/text"
        let words = Data(String(repeating: "this is not a database at all. ", count: 99).utf8)
        try words.write(to: URL(fileURLWithPath: text))
        #expect(opening(text) == .dataCorrupted)
        #expect(try Data(contentsOf: URL(fileURLWithPath: text)) == words)

        let other = directory.path + "/other.sqlite"
        let queue = try DatabaseQueue(path: other)
        try queue.write { try $0.execute(sql: "CREATE TABLE theirs (x)") }
        try queue.close()
        #expect(opening(other) == .dataCorrupted)
        let tables = try DatabaseQueue(path: other).read {
            try String.fetchAll($0, sql: "SELECT name FROM sqlite_schema")
        }
        #expect(tables == ["theirs"])

        #expect(opening(directory.path) != nil)
        #expect(opening("/proc/ftvm/store.sqlite") == .unavailable)
    }

    @Test func aBusyFileIsAnErrorAfterTheTimeAllowed() async throws {
        let directory = try Directory()
        let path = directory.path + "/store.sqlite"
        var options = fast()
        options.busyMilliseconds = 50
        let store = try SQLiteStore(path: path, options: options)
        var configuration = Configuration()
        configuration.allowsUnsafeTransactions = true
        let queue = try DatabaseQueue(path: path, configuration: configuration)
        try queue.inDatabase { try $0.execute(sql: "BEGIN IMMEDIATE") }
        do throws(FtvmError) {
            try await store.put("a", Data(), expecting: .any)
            Issue.record("written past another's transaction")
        } catch {
            #expect(error.code == .unavailable)
        }
        #expect(try await store.list("").entries == [])  // readers do not wait for writers
        try queue.inDatabase { try $0.execute(sql: "ROLLBACK") }
        try await store.put("a", Data(), expecting: .any)
    }

    @Test func closingEndsTheWatches() async throws {
        let directory = try Directory()
        let store = try SQLiteStore(path: directory.path + "/store.sqlite", options: fast())
        let stream = store.watch("a/")
        let reader = Task {
            var told = 0
            for await _ in stream { told += 1 }
            return told
        }
        store.close()
        store.close()
        #expect(await reader.value <= 1)
        var after: [StoreChange] = []
        for await change in store.watch("a/") { after.append(change) }
        guard case .unavailable = after.first, after.count == 1 else {
            Issue.record("\(after)")
            return
        }
    }

    @Test func tooManyWatchesAreRefused() async throws {
        let directory = try Directory()
        let store = try SQLiteStore(path: directory.path + "/store.sqlite", options: fast())
        var held = (0..<StoreLimits.watches).map { store.watch("\($0)") }
        var refused: [StoreChange] = []
        for await change in store.watch("more") { refused.append(change) }
        guard case .unavailable(let error) = refused.first else {
            Issue.record("\(refused)")
            return
        }
        #expect(error.code == .resourceExhausted)
        // One that is let go of makes room.
        held.removeLast()
        let seen = Seen(store.watch("more"))
        #expect(await seen.reaches([:]))
        #expect(held.count == StoreLimits.watches - 1)
    }

    /// Everything is read again from time to time even if no change was noticed: here the look for
    /// changes practically never comes.
    @Test func aMissedChangeIsHealedByReadingAgain() async throws {
        let directory = try Directory()
        let path = directory.path + "/store.sqlite"
        var options = fast()
        options.pollMilliseconds = 3_600_000
        options.rereadMilliseconds = 30
        let store = try SQLiteStore(path: path, options: options)
        let seen = Seen(store.watch(""))
        #expect(await seen.reaches([:]))
        try await SQLiteStore(path: path).put("a", Data("1".utf8), expecting: .any)
        #expect(await seen.reaches(["a": "1"]))
    }
}

@Suite struct ManyProcessesTests {
    /// All of them also race to make the file.
    @Test func processesCountTogetherWithoutLoss() async throws {
        let directory = try Directory()
        let path = directory.path + "/store.sqlite"
        let helpers = try (0..<4).map { _ in try Helper("count", path, "50") }
        for helper in helpers {
            let said = helper.sayAll()
            #expect(said.hasPrefix("counted"), "\(said)")
        }
        let store = try SQLiteStore(path: path)
        #expect(try await store.get("counter")?.value == Data("200".utf8))
        #expect(try await store.get("counter")?.revision == 200)
    }

    @Test func whatAKilledProcessHadWrittenIsThere() async throws {
        let directory = try Directory()
        let path = directory.path + "/store.sqlite"
        for round in 1...5 {
            let helper = try Helper("write-on", path)
            var said = ""
            while said.split(separator: "\n").count < 10 * round { said += helper.said() }
            helper.end()
            said += helper.sayAll()
            // The last line may be torn: the one before it was said whole.
            let lines = said.split(separator: "\n", omittingEmptySubsequences: false).dropLast()
            let last = try #require(lines.last.flatMap { Int($0) })
            let store = try SQLiteStore(path: path)
            let entry = try #require(try await store.get("written"))
            let written = try #require(Int(String(decoding: entry.value, as: UTF8.self)))
            #expect(written == last || written == last + 1)
            try await store.delete("written", expecting: .any)
            store.close()
        }
    }

    @Test func aWatchSeesAnotherProcess() async throws {
        let directory = try Directory()
        let path = directory.path + "/store.sqlite"
        let store = try SQLiteStore(path: path)
        let seen = Seen(store.watch("counter"))
        #expect(await seen.reaches([:]))
        _ = try Helper("count", path, "20").sayAll()
        #expect(await seen.reaches(["counter": "20"]))
    }
}
