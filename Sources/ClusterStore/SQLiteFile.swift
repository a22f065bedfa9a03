import Foundation
import GRDB
import Glibc
import Model

/// The store's file: making it, opening it, its schema, and SQLite's failures as ours.
extension SQLiteStore {
    /// Raised with every change of the tables; kept in SQLite's `user_version`.
    static let schemaVersion = 2
    /// "ftvm", kept in SQLite's `application_id`, so that no other database is taken for a store.
    static let applicationID = 0x6674_766d

    /// Makes an empty file of mode 0600 before SQLite sees it; SQLite gives its `-wal` and `-shm`
    /// files the mode of the main file.
    static func makeFile(_ path: String) throws(FtvmError) {
        let directory = (path as NSString).deletingLastPathComponent
        if !directory.isEmpty {
            do {
                try FileManager.default.createDirectory(
                    atPath: directory, withIntermediateDirectories: true,
                    attributes: [.posixPermissions: 0o700])
            } catch {
                throw FtvmError(
                    .unavailable, "the cluster store's directory \(directory) cannot be made",
                    cause: "\(error)", advice: "make it, or set another `store` path")
            }
        }
        let descriptor = Glibc.open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else {
            let failure = errno
            throw FtvmError(
                failure == EACCES || failure == EPERM || failure == EROFS
                    ? .permissionDenied : .unavailable,
                "the cluster store \(path) cannot be opened",
                cause: String(cString: strerror(failure)),
                advice: "check the `store` path of this host's configuration")
        }
        Glibc.close(descriptor)
    }

    static func configuration(_ options: Options) -> Configuration {
        var configuration = Configuration()
        configuration.busyMode = .timeout(Double(options.busyMilliseconds) / 1_000)
        configuration.maximumReaderCount = 2
        configuration.label = "ftvm.store"
        let synchronous = options.durability.rawValue
        configuration.prepareDatabase { db in
            try db.execute(sql: "PRAGMA synchronous = \(synchronous)")
        }
        return configuration
    }

    /// Opens the file and brings it to the present schema. Changing a new file to WAL mode needs it
    /// alone for a moment and does not wait for others who try the same, so that is tried again.
    static func open(_ path: String, _ options: Options) throws -> DatabasePool {
        let waitMicroseconds: UInt32 = 10_000
        var triesLeft = max(1, options.busyMilliseconds * 1_000 / Int(waitMicroseconds))
        while true {
            do {
                let pool = try DatabasePool(path: path, configuration: configuration(options))
                try pool.write { db in try makeSchema(db, path) }
                return pool
            } catch let error as DatabaseError
                where error.resultCode == .SQLITE_BUSY && triesLeft > 1
            {
                triesLeft -= 1
                usleep(waitMicroseconds)
            }
        }
    }

    private static func makeSchema(_ db: Database, _ path: String) throws {
        let version = try Int.fetchOne(db, sql: "PRAGMA user_version") ?? 0
        let application = try Int.fetchOne(db, sql: "PRAGMA application_id") ?? 0
        if version == 0 && application == 0 {
            let tables = try Int.fetchOne(db, sql: "SELECT count(*) FROM sqlite_schema") ?? 0
            guard tables == 0 else {
                throw FtvmError(
                    .dataCorrupted, "\(path) is not a cluster store of ftvm",
                    cause: "it is another program's SQLite database",
                    advice: "set another `store` path")
            }
            try db.execute(
                sql: """
                    CREATE TABLE store (
                        id INTEGER PRIMARY KEY CHECK (id = 1),
                        revision INTEGER NOT NULL);
                    INSERT INTO store (id, revision) VALUES (1, 0);
                    CREATE TABLE entries (
                        key TEXT PRIMARY KEY NOT NULL,
                        value BLOB NOT NULL,
                        revision INTEGER NOT NULL,
                        lease INTEGER) WITHOUT ROWID;
                    \(leaseSchema)
                    CREATE TABLE events (
                        number INTEGER PRIMARY KEY AUTOINCREMENT,
                        body BLOB NOT NULL);
                    PRAGMA application_id = \(applicationID);
                    PRAGMA user_version = \(schemaVersion);
                    """)
            return
        }
        guard application == applicationID else {
            throw FtvmError(
                .dataCorrupted, "\(path) is not a cluster store of ftvm",
                cause: "its application id is \(application)", advice: "set another `store` path")
        }
        if version == 1 {
            try db.execute(
                sql: """
                    ALTER TABLE entries ADD COLUMN lease INTEGER;
                    \(leaseSchema)
                    PRAGMA user_version = \(schemaVersion);
                    """)
            return
        }
        guard version <= schemaVersion else {
            throw FtvmError(
                .unsupported, "the cluster store \(path) was made by a newer ftvm",
                cause: "its schema is version \(version), this ftvm knows \(schemaVersion)",
                advice: "run the same version of ftvm on every host")
        }
    }

    /// GRDB's and SQLite's failures as ours.
    static func failure(_ error: any Error, _ message: String) -> FtvmError {
        if let known = error as? FtvmError { return known }
        if error is CancellationError {
            return FtvmError(.unavailable, message, cause: "the task was cancelled")
        }
        guard let database = error as? DatabaseError else {
            return FtvmError(wrapping: error, message)
        }
        let cause = database.message ?? database.resultCode.description
        switch database.resultCode {
        case .SQLITE_BUSY, .SQLITE_LOCKED:
            return FtvmError(
                .unavailable, message, cause: "another process holds it for too long: \(cause)",
                advice: "look for a stuck process that has the file open")
        case .SQLITE_FULL:
            return FtvmError(
                .resourceExhausted, message, cause: cause,
                advice: "make room on the store's file system")
        case .SQLITE_CORRUPT, .SQLITE_NOTADB:
            return FtvmError(
                .dataCorrupted, message, cause: cause,
                advice: "stop every ftvmd and restore the file, or remove it to begin anew")
        case .SQLITE_READONLY, .SQLITE_PERM, .SQLITE_AUTH:
            return FtvmError(
                .permissionDenied, message, cause: cause, advice: "ftvmd must run as root")
        case .SQLITE_CANTOPEN, .SQLITE_IOERR, .SQLITE_MISUSE, .SQLITE_INTERRUPT:
            return FtvmError(
                .unavailable, message, cause: cause,
                advice: "check the store's directory and its storage")
        default:
            return FtvmError(.internalError, message, cause: cause)
        }
    }
}
