import Foundation
import GRDB
import Glibc
import Model
import Synchronization

/// The embedded store: one SQLite file (in WAL mode) that every `ftvmd` of one machine opens.
///
/// Durable by default (`synchronous=FULL`: a write that has returned is on stable storage) and safe
/// with several processes: every write is one `BEGIN IMMEDIATE` transaction, and a busy file is
/// waited for. Watching: see `StoreWatcher`.
package final class SQLiteStore: ClusterStore {
    /// When a commit is on stable storage.
    package enum Durability: String, Sendable {
        /// `synchronous=FULL`: before it returns.
        case full = "FULL"
        /// `synchronous=NORMAL`: soon; for tests and benchmarks. A power failure may lose the last
        /// writes, a crash of the process cannot.
        case normal = "NORMAL"
    }

    package struct Options: Sendable {
        package var durability = Durability.full
        /// How long a write or read waits for other processes, in milliseconds.
        package var busyMilliseconds = 5_000
        /// How often watches look for changes of which they were not told, in milliseconds. Where
        /// nobody can tell them (no inotify), at most every 20 ms.
        package var pollMilliseconds = 200
        /// How often watches read everything again whether or not a change was noticed, in
        /// milliseconds.
        package var rereadMilliseconds = 2_000
        package init() {}
    }

    let pool: DatabasePool
    let watcher: StoreWatcher
    /// The file, as given.
    package let path: String

    /// Opens the store at `path`, making it (mode 0600, its directory 0700) when it does not exist.
    /// - Throws: `unsupported` for a file of a newer schema, `dataCorrupted` for a file that is no
    ///   store, `unavailable` or `permissionDenied` when it cannot be opened.
    package init(path: String, options: Options = Options()) throws(FtvmError) {
        self.path = path
        try SQLiteStore.makeFile(path)
        do {
            self.pool = try SQLiteStore.open(path, options)
            self.watcher = try StoreWatcher(path: path, options: options)
        } catch {
            throw SQLiteStore.failure(error, "the cluster store \(path) cannot be opened")
        }
    }

    /// Ends all watches and closes the file. Later calls throw `unavailable`.
    package func close() {
        watcher.close(wait: true)
        try? pool.close()
    }

    deinit { watcher.close(wait: false) }

    // MARK: Keys

    package func get(_ key: String) async throws(FtvmError) -> StoreEntry? {
        try StoreLimits.check(key: key)
        return try await read { db in
            try Row.fetchOne(
                db.cachedStatement(
                    sql: "SELECT key, value, revision FROM entries WHERE key = ?"),
                arguments: [key]
            ).map(SQLiteStore.entry)
        }
    }

    package func list(_ prefix: String) async throws(FtvmError) -> StoreListing {
        try await read { db in try SQLiteStore.list(db, prefix) }
    }

    @discardableResult
    package func put(
        _ key: String, _ value: Data, expecting: StoreExpectation, lease: StoreLease?
    ) async throws(FtvmError) -> UInt64 {
        try StoreLimits.check(key: key)
        try StoreLimits.check(value: value, of: key)
        return try await write { db in
            try SQLiteStore.require(db, key, expecting)
            if let lease { try SQLiteStore.require(db, lease) }
            let revision = try SQLiteStore.raiseRevision(db)
            try db.execute(
                sql: """
                    INSERT INTO entries (key, value, revision, lease) VALUES (?, ?, ?, ?)
                    ON CONFLICT (key) DO UPDATE
                    SET value = excluded.value, revision = excluded.revision, lease = excluded.lease
                    """,
                arguments: [key, value, Int64(revision), lease?.number])
            return revision
        }
    }

    package func delete(_ key: String, expecting: StoreExpectation) async throws(FtvmError) {
        try StoreLimits.check(key: key)
        guard expecting != .absent else {
            throw FtvmError(.invalidArgument, "a key that must be absent cannot be deleted")
        }
        try await write { db in
            try SQLiteStore.require(db, key, expecting)
            try db.execute(sql: "DELETE FROM entries WHERE key = ?", arguments: [key])
            if db.changesCount > 0 { _ = try SQLiteStore.raiseRevision(db) }
        }
    }

    package func watch(_ prefix: String) -> AsyncStream<StoreChange> {
        watcher.watch(prefix)
    }

    // MARK: Events

    @discardableResult
    package func appendEvent(_ event: ClusterEvent) async throws(FtvmError) -> UInt64 {
        let body = try StoreCoding.encode(event, "an event")
        try StoreLimits.check(value: body, of: "events")
        return try await write { db in
            try db.execute(sql: "INSERT INTO events (body) VALUES (?)", arguments: [body])
            let number = db.lastInsertedRowID
            try db.execute(
                sql: "DELETE FROM events WHERE number <= ?",
                arguments: [number - Int64(StoreLimits.events)])
            return UInt64(number)
        }
    }

    package func events(
        after number: UInt64, limit: Int
    ) async throws(FtvmError) -> [ClusterEvent] {
        precondition(limit >= 0, "a limit is not negative")
        let after = Int64(clamping: number)
        let rows = try await read { db in
            try Row.fetchAll(
                db,
                sql: "SELECT number, body FROM events WHERE number > ? ORDER BY number LIMIT ?",
                arguments: [after, limit]
            ).map { (number: $0["number"] as Int64, body: $0["body"] as Data) }
        }
        var events: [ClusterEvent] = []
        for row in rows {
            var event = try StoreCoding.decode(ClusterEvent.self, row.body, "event \(row.number)")
            event.number = UInt64(row.number)
            events.append(event)
        }
        return events
    }
}

// MARK: - Statements

extension SQLiteStore {
    static func entry(_ row: Row) -> StoreEntry {
        StoreEntry(
            key: row["key"], value: row["value"], revision: UInt64(row["revision"] as Int64))
    }

    static func list(_ db: Database, _ prefix: String) throws -> StoreListing {
        // U+10FFFF is not allowed in keys, so it sorts after every key with the prefix.
        let rows = try Row.fetchAll(
            db.cachedStatement(
                sql: """
                    SELECT key, value, revision FROM entries WHERE key >= ? AND key < ? ORDER BY key
                    """),
            arguments: [prefix, prefix + "\u{10FFFF}"])
        let revision = try Int64.fetchOne(
            db.cachedStatement(sql: "SELECT revision FROM store"))
        return StoreListing(entries: rows.map(entry), revision: UInt64(revision ?? 0))
    }

    private static func require(
        _ db: Database, _ key: String, _ expectation: StoreExpectation
    ) throws {
        let revision = try Int64.fetchOne(
            db.cachedStatement(sql: "SELECT revision FROM entries WHERE key = ?"),
            arguments: [key]
        ).map(UInt64.init)
        switch expectation {
        case .any:
            return
        case .absent:
            guard revision != nil else { return }
            throw FtvmError(.conflict, "the key \(key) exists already")
        case .revision(let expected):
            guard revision != expected else { return }
            throw FtvmError(
                .conflict, "the key \(key) was changed by somebody else",
                cause: revision.map { "revision \($0), expected \(expected)" }
                    ?? "it does not exist, expected revision \(expected)",
                advice: "read it again and retry")
        }
    }

    static func raiseRevision(_ db: Database) throws -> UInt64 {
        let revision = try Int64.fetchOne(
            db.cachedStatement(
                sql: "UPDATE store SET revision = revision + 1 RETURNING revision"))
        guard let revision else {
            throw FtvmError(.dataCorrupted, "the cluster store has lost its revision")
        }
        return UInt64(revision)
    }

    /// Ends leases whose time is over first: what is read and the revision then belong together.
    private func read<Value: Sendable>(
        _ body: @escaping @Sendable (Database) throws -> Value
    ) async throws(FtvmError) -> Value {
        do {
            let (value, isDue) = try await pool.read { db in
                (try body(db), try SQLiteStore.isLeaseDue(db))
            }
            guard isDue else { return value }
            return try await pool.write { db in
                try SQLiteStore.endLeases(db)
                return try body(db)
            }
        } catch {
            throw SQLiteStore.failure(error, "the cluster store \(path) cannot be read")
        }
    }

    func write<Value: Sendable>(
        _ body: @escaping @Sendable (Database) throws -> Value
    ) async throws(FtvmError) -> Value {
        do {
            let value = try await pool.write { db in
                try SQLiteStore.endLeases(db)
                return try body(db)
            }
            watcher.nudge()
            return value
        } catch {
            throw SQLiteStore.failure(error, "the cluster store \(path) cannot be written")
        }
    }
}
