import Foundation
import Model
import Synchronization

/// The store for several machines: an etcd cluster (3.4 or later, as Debian has it), spoken to
/// through its JSON gateway with any member that answers.
///
/// Keys are under `PREFIXk/`, events under `PREFIXe/` with their number in twenty digits.
///
/// A write whose answer got lost may still be done, even after a later read (it may wait in a
/// member that is cut off): so it is never sent twice, and throws `timedOut`, which says that
/// nobody knows.
package final class EtcdStore: ClusterStore {
    let client: EtcdClient
    private let watcher: EtcdWatcher
    /// The number of the newest event that was seen here: the next one is tried without asking.
    private let newestEvent = Mutex<Int64>(0)
    private let keysPrefix: String
    private let eventsPrefix: String

    /// Talks to nobody yet; see `check`.
    /// - Throws: `invalidArgument` for options that cannot work; the certificates' failures.
    package init(options: EtcdOptions) throws(FtvmError) {
        client = try EtcdClient(options: options)
        keysPrefix = options.prefix + "k/"
        eventsPrefix = options.prefix + "e/"
        watcher = EtcdWatcher(client: client, root: keysPrefix)
    }

    /// Asks for one key, so that what is wrong with endpoints, certificates or user is said at the
    /// start.
    package func check() async throws(FtvmError) {
        _ = try await get("check")
    }

    /// Ends all watches and closes the connections. Later calls throw `unavailable`.
    package func close() {
        watcher.close()
        client.close()
    }

    deinit { close() }

    // MARK: Keys

    package func get(_ key: String) async throws(FtvmError) -> StoreEntry? {
        try StoreLimits.check(key: key)
        let answer: EtcdRangeAnswer = try await client.repeatable(
            "/v3/kv/range", EtcdRange(key: stored(key)))
        return try answer.kvs?.first.map { pair throws(FtvmError) in
            try Self.entry(pair, root: keysPrefix)
        }
    }

    package func list(_ prefix: String) async throws(FtvmError) -> StoreListing {
        try await Self.list(client, root: keysPrefix, prefix)
    }

    @discardableResult
    package func put(
        _ key: String, _ value: Data, expecting: StoreExpectation, lease: StoreLease?
    ) async throws(FtvmError) -> UInt64 {
        try StoreLimits.check(key: key)
        try StoreLimits.check(value: value, of: key)
        let stored = stored(key)
        let put = EtcdPut(key: stored, value: value, lease: lease.map { EtcdNumber($0.number) })
        guard let expected = Self.revision(expecting) else {
            let answer: EtcdWriteAnswer? = try await once("/v3/kv/put", put, lease)
            guard let answer else { throw Self.notKnown("write", key) }
            return Self.revision(answer.header)
        }
        let answer: EtcdTransactionAnswer? = try await once(
            "/v3/kv/txn",
            EtcdTransaction(
                compare: [EtcdCompare(key: stored, mod_revision: EtcdNumber(expected))],
                success: [EtcdOperation(request_put: put)],
                failure: [EtcdOperation(request_range: EtcdRange(key: stored, keys_only: true))]),
            lease)
        // Reading it now would not tell: the same value may be another host's.
        guard let answer else { throw Self.notKnown("write", key) }
        guard answer.succeeded == true else { throw Self.conflict(key, expected, answer) }
        return Self.revision(answer.header)
    }

    package func delete(_ key: String, expecting: StoreExpectation) async throws(FtvmError) {
        try StoreLimits.check(key: key)
        guard expecting != .absent else {
            throw FtvmError(.invalidArgument, "a key that must be absent cannot be deleted")
        }
        let stored = stored(key)
        guard let expected = Self.revision(expecting) else {
            let answer: EtcdWriteAnswer? = try await client.once(
                "/v3/kv/deleterange", EtcdDelete(key: stored))
            guard answer != nil else { throw Self.notKnown("removal", key) }
            return
        }
        let answer: EtcdTransactionAnswer? = try await client.once(
            "/v3/kv/txn",
            EtcdTransaction(
                compare: [EtcdCompare(key: stored, mod_revision: EtcdNumber(expected))],
                success: [EtcdOperation(request_delete_range: EtcdDelete(key: stored))],
                failure: [EtcdOperation(request_range: EtcdRange(key: stored, keys_only: true))]))
        guard let answer else {
            // Gone is what was asked for.
            if try await get(key) == nil { return }
            throw Self.notKnown("removal", key)
        }
        guard answer.succeeded == true else { throw Self.conflict(key, expected, answer) }
    }

    package func watch(_ prefix: String) -> AsyncStream<StoreChange> { watcher.watch(prefix) }

    // MARK: Leases

    package func grantLease(milliseconds: Int) async throws(FtvmError) -> StoreLease {
        precondition(milliseconds > 0, "a lease has a time to live")
        // Repeated, it leaves a lease behind that nobody uses and that ends by itself.
        let answer: EtcdLeaseAnswer = try await client.repeatable(
            "/v3/lease/grant", EtcdLeaseGrant(TTL: EtcdNumber(Int64((milliseconds + 999) / 1_000))))
        guard let number = answer.ID?.value, let seconds = answer.TTL?.value, seconds > 0 else {
            throw FtvmError(.internalError, "etcd granted a lease without a number")
        }
        return StoreLease(number: number, timeToLiveMilliseconds: Int(seconds) * 1_000)
    }

    package func keepAlive(_ lease: StoreLease) async throws(FtvmError) {
        let answer: EtcdStreamed<EtcdLeaseAnswer> = try await client.repeatable(
            "/v3/lease/keepalive", EtcdLeaseID(ID: EtcdNumber(lease.number)))
        guard let kept = answer.result else {
            throw FtvmError(
                .unavailable, "a lease in the cluster store cannot be kept alive",
                cause: answer.error?.text)
        }
        // A lease that is gone is answered for all the same, without a time.
        guard let seconds = kept.TTL?.value, seconds > 0 else { throw Self.leaseIsGone(lease) }
    }

    package func revoke(_ lease: StoreLease) async throws(FtvmError) {
        do throws(FtvmError) {
            let _: EtcdWriteAnswer = try await client.repeatable(
                "/v3/lease/revoke", EtcdLeaseID(ID: EtcdNumber(lease.number)))
        } catch {
            // It has ended already.
            guard error.code != .notFound else { return }
            throw error
        }
    }

    // MARK: Events

    private struct StoredEvent: Codable {
        /// Tells our own event from another's after an answer was lost.
        var id: String
        var event: ClusterEvent
    }

    @discardableResult
    package func appendEvent(_ event: ClusterEvent) async throws(FtvmError) -> UInt64 {
        let id = UUID().uuidString
        let body = try StoreCoding.encode(StoredEvent(id: id, event: event), "an event")
        try StoreLimits.check(value: body, of: "events")
        var known = newestEvent.withLock { $0 }
        for _ in 0..<PairRecords.updateTries {
            let number = known + 1
            let key = eventKey(number)
            let oldest = max(1, number - Int64(StoreLimits.events) + 1)
            let answer: EtcdTransactionAnswer? = try await client.once(
                "/v3/kv/txn",
                EtcdTransaction(
                    compare: [EtcdCompare(key: key, mod_revision: EtcdNumber(0))],
                    success: [
                        EtcdOperation(request_put: EtcdPut(key: key, value: body)),
                        EtcdOperation(
                            request_delete_range: EtcdDelete(
                                key: Data(eventsPrefix.utf8), range_end: eventKey(oldest))),
                    ],
                    failure: [
                        EtcdOperation(request_range: EtcdRange(key: key)),
                        EtcdOperation(
                            request_range: EtcdRange(
                                key: Data(eventsPrefix.utf8),
                                range_end: Data(eventsPrefix.utf8).etcdPrefixEnd,
                                limit: EtcdNumber(1), sort_order: "DESCEND", keys_only: true)),
                    ]))
            // Not known: the same number with the same id again, which cannot be done twice.
            guard let answer else { continue }
            if answer.succeeded == true {
                newestEvent.withLock { $0 = max($0, number) }
                return UInt64(number)
            }
            let responses = answer.responses ?? []
            if let there = responses.first?.response_range?.kvs?.first?.value,
                let other = try? JSONDecoder().decode(StoredEvent.self, from: there), other.id == id
            {
                return UInt64(number)
            }
            let last = responses.last?.response_range?.kvs?.first.flatMap { eventNumber($0.key) }
            known = max(known, last ?? number)
        }
        throw FtvmError(
            .timedOut, "an event could not be appended to the cluster store",
            cause: "\(PairRecords.updateTries) tries were lost or not answered")
    }

    package func events(
        after number: UInt64, limit: Int
    ) async throws(FtvmError) -> [ClusterEvent] {
        precondition(limit >= 0, "a limit is not negative")
        guard limit > 0, number < UInt64(Int64.max) else { return [] }
        let answer: EtcdRangeAnswer = try await client.repeatable(
            "/v3/kv/range",
            EtcdRange(
                key: eventKey(Int64(number) + 1),
                range_end: Data(eventsPrefix.utf8).etcdPrefixEnd, limit: EtcdNumber(Int64(limit))))
        var events: [ClusterEvent] = []
        for pair in answer.kvs ?? [] {
            guard let number = eventNumber(pair.key) else { continue }
            var event = try StoreCoding.decode(
                StoredEvent.self, pair.value ?? Data(), "event \(number)"
            ).event
            event.number = UInt64(number)
            events.append(event)
        }
        return events
    }

    private func eventKey(_ number: Int64) -> Data {
        let digits = String(number)
        return Data(
            (eventsPrefix + String(repeating: "0", count: 20 - digits.count) + digits).utf8)
    }

    private func eventNumber(_ key: Data) -> Int64? {
        Int64(String(decoding: key.dropFirst(eventsPrefix.utf8.count), as: UTF8.self))
    }
}

// MARK: - Words

extension EtcdStore {
    private func stored(_ key: String) -> Data { Data((keysPrefix + key).utf8) }

    /// All keys under `prefix`, which is under `root`.
    static func list(
        _ client: EtcdClient, root: String, _ prefix: String, keysOnly: Bool = false
    ) async throws(FtvmError) -> StoreListing {
        let start = Data((root + prefix).utf8)
        let answer: EtcdRangeAnswer = try await client.repeatable(
            "/v3/kv/range",
            EtcdRange(
                key: start, range_end: start.etcdPrefixEnd, keys_only: keysOnly ? true : nil))
        var entries: [StoreEntry] = []
        for pair in answer.kvs ?? [] { entries.append(try entry(pair, root: root)) }
        return StoreListing(entries: entries, revision: revision(answer.header))
    }

    static func entry(_ pair: EtcdKeyValue, root: String) throws(FtvmError) -> StoreEntry {
        let name = pair.key.dropFirst(root.utf8.count)
        guard let key = String(validating: name, as: UTF8.self) else {
            throw FtvmError(
                .dataCorrupted, "the cluster store has a key that is no text",
                cause: "\(Array(name.prefix(64)))", advice: "something else writes under its prefix"
            )
        }
        return StoreEntry(
            key: key, value: pair.value ?? Data(),
            revision: UInt64(pair.mod_revision?.value ?? 0))
    }

    private static func revision(_ header: EtcdHeader?) -> UInt64 {
        UInt64(header?.revision?.value ?? 0)
    }

    /// The revision that is demanded of a key; 0 that it does not exist, nil no demand.
    private static func revision(_ expectation: StoreExpectation) -> Int64? {
        switch expectation {
        case .any: nil
        case .absent: 0
        // A key cannot have revision 0, which would mean "absent" to etcd.
        case .revision(let revision): revision == 0 ? .max : Int64(clamping: revision)
        }
    }

    private static func conflict(
        _ key: String, _ expected: Int64, _ answer: EtcdTransactionAnswer
    ) -> FtvmError {
        guard expected != 0 else {
            return FtvmError(.conflict, "the key \(key) exists already")
        }
        let present = answer.responses?.first?.response_range?.kvs?.first?.mod_revision?.value
        return FtvmError(
            .conflict, "the key \(key) was changed by somebody else",
            cause: present.map { "revision \($0), expected \(expected)" }
                ?? "it does not exist, expected revision \(expected)",
            advice: "read it again and retry")
    }

    private static func notKnown(_ what: String, _ key: String) -> FtvmError {
        FtvmError(
            .timedOut, "it is not known whether the \(what) of \(key) was done",
            cause: "the cluster store (etcd) got the request and did not answer in time",
            advice: "read it again and decide anew")
    }

    static func leaseIsGone(_ lease: StoreLease) -> FtvmError {
        FtvmError(
            .notFound, "the lease \(lease.number) in the cluster store has ended",
            cause: "it was not kept alive for \(lease.timeToLiveMilliseconds) ms",
            advice: "ask for a new one")
    }

    /// A write that may be bound to a lease, which may have ended.
    private func once<Answer: Decodable & Sendable>(
        _ path: String, _ request: some Encodable & Sendable, _ lease: StoreLease?
    ) async throws(FtvmError) -> Answer? {
        do throws(FtvmError) {
            return try await client.once(path, request)
        } catch {
            if let lease, error.code == .notFound { throw Self.leaseIsGone(lease) }
            throw error
        }
    }
}
