import Foundation
import GRDB
import Glibc
import Model

/// Leases of the embedded store. Their clock is CLOCK_BOOTTIME, the same for all processes of one
/// kernel and going on while it sleeps; a lease of another boot has ended.
///
/// The end of a lease is a write like any other (its keys go, the revision grows), made by whoever
/// comes by first: every write, a read that finds one due, and the watching thread.
extension SQLiteStore {
    static let leaseSchema = """
        CREATE TABLE leases (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            boot TEXT NOT NULL,
            milliseconds INTEGER NOT NULL,
            until INTEGER NOT NULL);
        """

    /// Nanoseconds since the machine started.
    static func bootNanoseconds() -> Int64 {
        var now = timespec()
        let result = clock_gettime(CLOCK_BOOTTIME, &now)
        precondition(result == 0, "every Linux has CLOCK_BOOTTIME")
        return Int64(now.tv_sec) * 1_000_000_000 + Int64(now.tv_nsec)
    }

    /// Differs from boot to boot (random(4)).
    static let bootID: String = {
        let text = try? String(contentsOfFile: "/proc/sys/kernel/random/boot_id", encoding: .utf8)
        return text?.trimmingCharacters(in: .whitespacesAndNewlines) ?? "unknown"
    }()

    package func grantLease(milliseconds: Int) async throws(FtvmError) -> StoreLease {
        precondition(milliseconds > 0, "a lease has a time to live")
        return try await write { db in
            try db.execute(
                sql: "INSERT INTO leases (boot, milliseconds, until) VALUES (?, ?, ?)",
                arguments: [Self.bootID, milliseconds, Self.until(milliseconds)])
            return StoreLease(
                number: db.lastInsertedRowID, timeToLiveMilliseconds: milliseconds)
        }
    }

    package func keepAlive(_ lease: StoreLease) async throws(FtvmError) {
        try await write { db in
            try Self.require(db, lease)
            try db.execute(
                sql: "UPDATE leases SET until = ? WHERE number = ?",
                arguments: [Self.until(lease.timeToLiveMilliseconds), lease.number])
        }
    }

    package func revoke(_ lease: StoreLease) async throws(FtvmError) {
        try await write { db in try Self.end(db, [lease.number]) }
    }

    private static func until(_ milliseconds: Int) -> Int64 {
        bootNanoseconds() + Int64(milliseconds) * 1_000_000
    }

    /// - Throws: `notFound`.
    static func require(_ db: Database, _ lease: StoreLease) throws {
        let found = try Int64.fetchOne(
            db.cachedStatement(sql: "SELECT number FROM leases WHERE number = ?"),
            arguments: [lease.number])
        guard found == nil else { return }
        throw FtvmError(
            .notFound, "the lease \(lease.number) in the cluster store has ended",
            cause: "it was not kept alive for \(lease.timeToLiveMilliseconds) ms",
            advice: "ask for a new one")
    }

    /// Whether `endLeases` would end one.
    static func isLeaseDue(_ db: Database) throws -> Bool {
        try Int64.fetchOne(
            db.cachedStatement(
                sql: "SELECT number FROM leases WHERE until <= ? OR boot <> ? LIMIT 1"),
            arguments: [bootNanoseconds(), bootID]) != nil
    }

    /// Ends the leases whose time is over and removes their keys, raising the revision if there
    /// were any. Within a write transaction.
    static func endLeases(_ db: Database) throws {
        let due = try Int64.fetchAll(
            db.cachedStatement(sql: "SELECT number FROM leases WHERE until <= ? OR boot <> ?"),
            arguments: [bootNanoseconds(), bootID])
        if !due.isEmpty { try end(db, due) }
    }

    private static func end(_ db: Database, _ numbers: [Int64]) throws {
        var removed = 0
        for number in numbers {
            try db.execute(sql: "DELETE FROM entries WHERE lease = ?", arguments: [number])
            removed += db.changesCount
            try db.execute(sql: "DELETE FROM leases WHERE number = ?", arguments: [number])
        }
        if removed > 0 { _ = try raiseRevision(db) }
    }
}
