import Dispatch
import Foundation
import GRDB
import Model
import Synchronization

/// Tells watches of changes to the store's file, by whichever process.
///
/// How: one thread asks SQLite for `PRAGMA data_version` on a connection of its own; the number
/// changes when any other connection has committed. It asks when inotify says that the `-wal` file
/// was written to (which is before the commit counts, so it asks again after 1, 2, 4, 8 and 16 ms
/// until the number has changed), when this store object itself has written, and otherwise every
/// 200 ms.
///
/// Why both: asking alone, every 20 ms, costs 0.4-0.6 % of a core for nothing (not the question, 3
/// us, but waking up with cold caches) and tells after 12 ms in the mean; inotify alone cannot be
/// relied on: the file comes and goes, and events tell of writes, not of commits. Together:
/// measured 0.07 % of a core while nothing happens, and a median of 0.2-0.4 ms, 3 ms at most.
/// Besides, everything is read again every two seconds, so that nothing depends on a change being
/// noticed.
final class StoreWatcher: Sendable {
    private struct Watch: Sendable {
        let prefix: String
        let continuation: AsyncStream<StoreChange>.Continuation
    }

    private struct State {
        var watches: [UInt64: Watch] = [:]
        var nextID: UInt64 = 1
        var closed = false
        var nudged = false
    }

    private let queue: DatabaseQueue
    private let state = Mutex(State())
    private let ended = DispatchSemaphore(value: 0)
    private let signal: WriteSignal
    private let pollMilliseconds: Int
    private let rereadMilliseconds: Int
    /// Looks after a write that is not committed yet.
    private static let settleMilliseconds = [1, 2, 4, 8, 16]
    /// The pause between looks where writes cannot be seen.
    private static let blindMilliseconds = 20
    private let path: String

    init(path: String, options: SQLiteStore.Options) throws {
        precondition(options.pollMilliseconds > 0 && options.rereadMilliseconds > 0)
        self.path = path
        self.signal = try WriteSignal(path: path)
        self.pollMilliseconds =
            signal.seesWrites
            ? options.pollMilliseconds : min(options.pollMilliseconds, Self.blindMilliseconds)
        self.rereadMilliseconds = options.rereadMilliseconds
        self.queue = try DatabaseQueue(
            path: path, configuration: SQLiteStore.configuration(options))
        let thread = Thread { [self] in run() }
        thread.name = "ftvm-store"
        thread.start()
    }

    /// Ends every watch and the thread. May be called more than once.
    /// - Parameter wait: until the thread has closed its connection: the last one to be closed
    /// holds
    ///   the file for a moment, which must not surprise who opens it next. Not for ever, as a read
    ///   may be stuck in the kernel.
    func close(wait: Bool) {
        let watches = state.withLock { state in
            state.closed = true
            defer { state.watches = [:] }
            return state.watches
        }
        for watch in watches.values { watch.continuation.finish() }
        signal.nudge()
        if wait, ended.wait(timeout: .now() + .seconds(5)) == .success { ended.signal() }
    }

    /// Something was written here: look at once.
    func nudge() {
        let first = state.withLock { state in
            defer { state.nudged = true }
            return !state.nudged && !state.watches.isEmpty
        }
        if first { signal.nudge() }
    }

    func watch(_ prefix: String) -> AsyncStream<StoreChange> {
        let (stream, continuation) = AsyncStream.makeStream(
            of: StoreChange.self, bufferingPolicy: .bufferingNewest(1))
        let (id, refusal) = state.withLock { state -> (UInt64, FtvmError?) in
            guard !state.closed else {
                return (0, FtvmError(.unavailable, "the cluster store \(path) is closed"))
            }
            guard state.watches.count < StoreLimits.watches else {
                return (
                    0,
                    FtvmError(
                        .resourceExhausted, "the cluster store \(path) is watched too often",
                        cause: "at most \(StoreLimits.watches) watches at a time")
                )
            }
            let id = state.nextID
            state.nextID += 1
            state.watches[id] = Watch(prefix: prefix, continuation: continuation)
            return (id, nil)
        }
        if let refusal {
            continuation.yield(.unavailable(refusal))
            continuation.finish()
            return stream
        }
        continuation.onTermination = { [weak self] _ in
            self?.state.withLock { $0.watches[id] = nil }
        }
        signal.nudge()
        return stream
    }

    // MARK: The thread

    private func run() {
        do {
            try queue.inDatabase { db in
                run(db, try db.makeStatement(sql: "PRAGMA data_version"))
            }
        } catch {
            // The connection is good and the statement is a constant: only memory can be short.
            fail(error)
        }
        try? queue.close()
        ended.signal()
    }

    private func run(_ db: Database, _ dataVersion: Statement) {
        /// What each watch was told last; only this thread knows.
        var told: [UInt64: StoreChange] = [:]
        var version: Int?
        var nextReread: UInt64 = 0
        /// Which look after a write is next.
        var settling = Self.settleMilliseconds.count
        while let watches = nextWatches() {
            if watches.isEmpty {
                told = [:]
                _ = signal.wait(milliseconds: nil)
                continue
            }
            told = told.filter { watches[$0.key] != nil }
            let now = DispatchTime.now().uptimeNanoseconds
            do {
                // Its own commits do not change its `data_version`.
                if try endLeases(db) { version = nil }
                let current = try Int.fetchOne(dataVersion) ?? 0
                if current != version { settling = Self.settleMilliseconds.count }
                let due = now >= nextReread || current != version
                for (id, watch) in watches where due || told[id] == nil {
                    tell(watch, try change(db, of: watch, since: told[id]), &told[id])
                }
                if due {
                    version = current
                    nextReread = now + UInt64(rereadMilliseconds) * 1_000_000
                }
            } catch {
                version = nil
                let failure = StoreChange.unavailable(understood(error))
                for (id, watch) in watches {
                    tell(watch, differs(failure, told[id]), &told[id])
                }
            }
            let isSettling = settling < Self.settleMilliseconds.count
            let untilReread = nextReread > now ? Int(nextReread - now) / 1_000_000 + 1 : 1
            let pause = isSettling ? Self.settleMilliseconds[settling] : pollMilliseconds
            switch signal.wait(milliseconds: min(pause, max(untilReread, 1))) {
            case .written: settling = 0
            case .timeout where isSettling: settling += 1
            case .timeout, .nudged: break
            }
        }
    }

    /// Ends leases whose time is over, which nobody else may come by to do; true if any.
    private func endLeases(_ db: Database) throws -> Bool {
        guard try SQLiteStore.isLeaseDue(db) else { return false }
        try db.inTransaction(.immediate) {
            try SQLiteStore.endLeases(db)
            return .commit
        }
        return true
    }

    /// The watches there are; nil when the store is closed.
    private func nextWatches() -> [UInt64: Watch]? {
        state.withLock { state in
            state.nudged = false
            return state.closed ? nil : state.watches
        }
    }

    private func understood(_ error: any Error) -> FtvmError {
        SQLiteStore.failure(error, "the cluster store \(path) cannot be watched")
    }

    /// Ends every watch with an error.
    private func fail(_ error: any Error) {
        let watches = state.withLock { state in
            state.closed = true
            defer { state.watches = [:] }
            return state.watches
        }
        for watch in watches.values {
            watch.continuation.yield(.unavailable(understood(error)))
            watch.continuation.finish()
        }
    }

    private func tell(_ watch: Watch, _ change: StoreChange?, _ told: inout StoreChange?) {
        guard let change else { return }
        told = change
        watch.continuation.yield(change)
    }

    /// `change`, unless a watch that was told `last` knows it already.
    private func differs(_ change: StoreChange, _ last: StoreChange?) -> StoreChange? {
        switch (change, last) {
        case (.current(let new), .current(let old)) where new.entries == old.entries: nil
        // Said once for one outage, whatever the words.
        case (.unavailable, .unavailable): nil
        default: change
        }
    }

    private func change(
        _ db: Database, of watch: Watch, since last: StoreChange?
    ) throws -> StoreChange? {
        var listing: StoreListing?
        // One transaction, so that the entries and the revision belong together.
        try db.inTransaction(.deferred) {
            listing = try SQLiteStore.list(db, watch.prefix)
            return .commit
        }
        return listing.flatMap { differs(.current($0), last) }
    }
}
