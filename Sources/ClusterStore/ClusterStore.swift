import Foundation
import Model

/// One key of the store.
package struct StoreEntry: Sendable, Hashable {
    package let key: String
    package let value: Data
    /// The store's revision when this value was written (etcd's `mod_revision`).
    package let revision: UInt64

    package init(key: String, value: Data, revision: UInt64) {
        self.key = key
        self.value = value
        self.revision = revision
    }
}

/// All keys under a prefix at one moment, sorted by key.
package struct StoreListing: Sendable, Hashable {
    package let entries: [StoreEntry]
    /// The store's revision at that moment.
    package let revision: UInt64

    package init(entries: [StoreEntry], revision: UInt64) {
        self.entries = entries
        self.revision = revision
    }
}

/// What a writer demands of a key before its write counts.
package enum StoreExpectation: Sendable, Hashable {
    /// The key does not exist.
    case absent
    /// The key's value is the one that was written at this revision.
    case revision(UInt64)
    /// No demand.
    case any
}

/// What a watcher is told: never what changed, always how things are now.
package enum StoreChange: Sendable, Hashable {
    /// Something under the prefix changed (or the watch just began): this is all there is now.
    case current(StoreListing)
    /// The store does not answer; said once, then tried again until `current` follows.
    case unavailable(FtvmError)
}

/// The cluster's memory: a small key-value store with revisions and compare-and-swap, and an
/// append-only list of events. Every host sees the same one.
///
/// It promises what etcd promises, so that etcd can stand behind it: one revision that grows with
/// every successful change of any key; reads that see every earlier write; a write that has
/// returned survives a power failure. `Tests/ClusterStoreTests/StoreContract.swift` is the contract
/// in code.
///
/// Keys are 1...512 bytes of UTF-8 without U+0000 and U+10FFFF, values at most 1 MiB. All functions
/// throw `unavailable` when the store does not answer in time, and then nothing was changed;
/// `dataCorrupted` when it is damaged; `invalidArgument` for a key or value outside the limits.
/// A write throws `timedOut` when its answer was lost: whether it was done is not known then, and it
/// may be done later. Whoever gets that reads again and decides anew.
package protocol ClusterStore: Sendable {
    /// The key's value, or nil.
    func get(_ key: String) async throws(FtvmError) -> StoreEntry?

    /// All keys that begin with `prefix`; everything for "".
    func list(_ prefix: String) async throws(FtvmError) -> StoreListing

    /// Writes a key and returns its new revision. With a lease the key goes when that ends;
    /// without, it stays, also if it was bound to a lease before.
    /// - Throws: `conflict` when the expectation does not hold; nothing has changed then.
    /// `notFound`
    ///   when the lease has ended; nothing has changed then.
    @discardableResult
    func put(
        _ key: String, _ value: Data, expecting: StoreExpectation, lease: StoreLease?
    ) async throws(FtvmError) -> UInt64

    /// Removes a key. With `.any` a key that does not exist is no error and no change; `.absent` is
    /// an `invalidArgument`.
    /// - Throws: `conflict` when the expectation does not hold.
    func delete(_ key: String, expecting: StoreExpectation) async throws(FtvmError)

    /// The keys under `prefix` now and after every change. Slow readers skip intermediate states
    /// and always get the last one. Ends when the store is closed or the task is cancelled.
    func watch(_ prefix: String) -> AsyncStream<StoreChange>

    /// A new lease of at least that time to live; see `StoreLease`.
    func grantLease(milliseconds: Int) async throws(FtvmError) -> StoreLease

    /// Gives the lease its full time again.
    /// - Throws: `notFound` when it has ended; its keys are gone then.
    func keepAlive(_ lease: StoreLease) async throws(FtvmError)

    /// Ends the lease and removes its keys. No error when it has ended already.
    func revoke(_ lease: StoreLease) async throws(FtvmError)

    /// Appends an event; its `number` is ignored, the one assigned is returned. Only the newest
    /// `StoreLimits.events` are kept.
    @discardableResult
    func appendEvent(_ event: ClusterEvent) async throws(FtvmError) -> UInt64

    /// The oldest `limit` events whose number is above `number`, oldest first.
    func events(after number: UInt64, limit: Int) async throws(FtvmError) -> [ClusterEvent]
}

extension ClusterStore {
    /// Writes a key that stays.
    @discardableResult
    package func put(
        _ key: String, _ value: Data, expecting: StoreExpectation
    ) async throws(FtvmError) -> UInt64 {
        try await put(key, value, expecting: expecting, lease: nil)
    }
}

/// Bounds that every store keeps.
package enum StoreLimits {
    package static let keyBytes = 512
    package static let valueBytes = 1 << 20
    package static let events = 10_000
    /// Watches of one store object at a time.
    package static let watches = 64

    /// - Throws: `invalidArgument`.
    package static func check(key: String) throws(FtvmError) {
        guard (1...keyBytes).contains(key.utf8.count) else {
            throw FtvmError(
                .invalidArgument, "a key of \(key.utf8.count) bytes cannot be stored",
                cause: "keys have 1 to \(keyBytes) bytes", advice: "use a shorter name")
        }
        let forbidden: [Unicode.Scalar] = ["\0", "\u{10FFFF}"]
        guard !key.unicodeScalars.contains(where: forbidden.contains) else {
            throw FtvmError(
                .invalidArgument, "a key with the character U+0000 or U+10FFFF cannot be stored",
                advice: "use another name")
        }
    }

    /// - Throws: `invalidArgument`.
    package static func check(value: Data, of key: String) throws(FtvmError) {
        guard value.count <= valueBytes else {
            throw FtvmError(
                .invalidArgument, "\(value.count) bytes are too much for the key \(key)",
                cause: "values have at most \(valueBytes) bytes")
        }
    }
}
