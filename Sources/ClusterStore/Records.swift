import Foundation
import Model

/// The keys of the store:
///
/// | key | value |
/// | --- | --- |
/// | `pairs/NAME` | `PairRecord` as JSON |
/// | `hosts/NAME` | `HostRecord` as JSON |
/// | `members/NAME` | `HostMembership` as JSON: lease and fence |
/// | `heartbeat-slots` | `HeartbeatSlots` as JSON |
///
/// Names may contain anything, slashes too: what follows the first slash is the name.
package enum StoreKeys {
    package static let pairs = "pairs/"
    package static let hosts = "hosts/"
    package static let maintenance = "maintenance/"
    package static let members = "members/"
    package static let released = "released/"
    package static let drills = "drills/"
    package static func pair(_ name: PairName) -> String { pairs + name.text }
    package static func host(_ name: HostName) -> String { hosts + name.text }
}

/// A record together with the revision that a compare-and-swap needs.
package struct Versioned<Record: Sendable>: Sendable {
    package let record: Record
    package let revision: UInt64

    package init(record: Record, revision: UInt64) {
        self.record = record
        self.revision = revision
    }
}

extension Versioned: Equatable where Record: Equatable {}

/// All records of one kind at one moment.
package struct RecordListing<Record: Sendable>: Sendable {
    /// Sorted by key.
    package let records: [Versioned<Record>]
    /// Records that cannot be understood: one of them must not hide the others.
    package let unreadable: [(key: String, error: FtvmError)]
    /// The store's revision at that moment.
    package let revision: UInt64
}

/// A kind of record: its type, its place in the store, and what a person calls it.
package protocol StoredRecord: Codable, Sendable, Equatable {
    associatedtype Name: Sendable, CustomStringConvertible
    static var keyPrefix: String { get }
    static var noun: String { get }
    static func key(_ name: Name) -> String
    var recordName: Name { get }
}

extension PairRecord: StoredRecord {
    package static var keyPrefix: String { StoreKeys.pairs }
    package static var noun: String { "pair" }
    package static func key(_ name: PairName) -> String { StoreKeys.pair(name) }
    package var recordName: PairName { name }
}

extension HostRecord: StoredRecord {
    package static var keyPrefix: String { StoreKeys.hosts }
    package static var noun: String { "host" }
    package static func key(_ name: HostName) -> String { StoreKeys.host(name) }
    package var recordName: HostName { name }
}

extension HostMaintenance: StoredRecord {
    package static var keyPrefix: String { StoreKeys.maintenance }
    package static var noun: String { "maintenance of host" }
    package static func key(_ name: HostName) -> String { StoreKeys.maintenance + name.text }
    package var recordName: HostName { name }
}

extension HostMembership: StoredRecord {
    package static var keyPrefix: String { StoreKeys.members }
    package static var noun: String { "membership of host" }
    package static func key(_ name: HostName) -> String { StoreKeys.members + name.text }
    package var recordName: HostName { name }
}

extension DrillReport: StoredRecord {
    package static var keyPrefix: String { StoreKeys.drills }
    package static var noun: String { "drill" }
    package static func key(_ id: String) -> String { StoreKeys.drills + id }
    package var recordName: String { id }
}

package typealias MaintenanceRecords = Records<HostMaintenance>
package typealias MemberRecords = Records<HostMembership>
package typealias DrillRecords = Records<DrillReport>
package typealias PairRecords = Records<PairRecord>
package typealias HostRecords = Records<HostRecord>

/// Records of one kind in a store. Every change is a compare-and-swap on the whole record.
package struct Records<Record: StoredRecord>: Sendable {
    /// Compare-and-swaps lost in a row before `update` gives up. Somebody else succeeded each time,
    /// so this many means that something writes without end.
    package static var updateTries: Int { 32 }

    package let store: any ClusterStore

    package init(store: any ClusterStore) {
        self.store = store
    }

    /// The record, or nil when there is none.
    package func read(_ name: Record.Name) async throws(FtvmError) -> Versioned<Record>? {
        guard let entry = try await store.get(Record.key(name)) else { return nil }
        return try Self.decode(entry)
    }

    package func list() async throws(FtvmError) -> RecordListing<Record> {
        Self.decode(try await store.list(Record.keyPrefix))
    }

    /// Writes a record that must not exist yet; returns its revision.
    /// - Throws: `alreadyExists`.
    @discardableResult
    package func create(_ record: Record) async throws(FtvmError) -> UInt64 {
        let name = record.recordName
        let data = try StoreCoding.encode(record, "\(Record.noun) \(name)")
        do {
            return try await store.put(Record.key(name), data, expecting: .absent)
        } catch {
            guard error.code == .conflict else { throw error }
            throw FtvmError(.alreadyExists, "\(Record.noun) \(name) exists already")
        }
    }

    /// Writes a record whatever is there: for what only one host writes (its own `HostRecord`).
    @discardableResult
    package func put(_ record: Record) async throws(FtvmError) -> UInt64 {
        let name = record.recordName
        let data = try StoreCoding.encode(record, "\(Record.noun) \(name)")
        return try await store.put(Record.key(name), data, expecting: .any)
    }

    /// Reads, lets `change` change, writes if nobody else wrote in between, or else begins again:
    /// so `change` may run more than once and must look at the record that it is given. A record
    /// that it leaves as it was is not written. An error thrown by `change` is passed on; nothing
    /// is written then.
    /// - Returns: the record as it stands in the store afterwards.
    /// - Throws: `notFound`; `conflict` after `updateTries` lost races.
    @discardableResult
    package func update(
        _ name: Record.Name, _ change: (inout Record) throws(FtvmError) -> Void
    ) async throws(FtvmError) -> Versioned<Record> {
        for _ in 0..<Self.updateTries {
            guard let present = try await read(name) else {
                throw FtvmError(.notFound, "there is no \(Record.noun) \(name)")
            }
            var record = present.record
            try change(&record)
            if record == present.record { return present }
            if let revision = try await replace(name, present, by: record) {
                return Versioned(record: record, revision: revision)
            }
        }
        throw FtvmError(
            .conflict, "\(Record.noun) \(name) is being changed by others without end",
            cause: "\(Self.updateTries) compare-and-swaps lost in a row",
            advice: "look at `ftvm events` for hosts that disagree")
    }

    /// One compare-and-swap: nil when somebody else changed or removed the record since.
    package func replace(
        _ name: Record.Name, _ present: Versioned<Record>, by record: Record
    ) async throws(FtvmError) -> UInt64? {
        let data = try StoreCoding.encode(record, "\(Record.noun) \(name)")
        do {
            return try await store.put(
                Record.key(name), data, expecting: .revision(present.revision))
        } catch {
            guard error.code == .conflict else { throw error }
            return nil
        }
    }

    /// Removes the record.
    /// - Parameter revision: nil to remove it whatever it says (no error when it is gone already).
    /// - Throws: `conflict` when it was changed or removed since `revision`.
    package func delete(
        _ name: Record.Name, revision: UInt64? = nil
    ) async throws(FtvmError) {
        try await store.delete(
            Record.key(name), expecting: revision.map { .revision($0) } ?? .any)
    }

    /// The records now and after every change.
    package func watch() -> AsyncStream<StoreChange> { store.watch(Record.keyPrefix) }

    /// What a watch or a list gave, understood.
    package static func decode(_ listing: StoreListing) -> RecordListing<Record> {
        var records: [Versioned<Record>] = []
        var unreadable: [(key: String, error: FtvmError)] = []
        for entry in listing.entries {
            do throws(FtvmError) {
                records.append(try decode(entry))
            } catch {
                unreadable.append((entry.key, error))
            }
        }
        return RecordListing(
            records: records, unreadable: unreadable, revision: listing.revision)
    }

    private static func decode(_ entry: StoreEntry) throws(FtvmError) -> Versioned<Record> {
        let record = try StoreCoding.decode(
            Record.self, entry.value,
            "\(Record.noun) \(entry.key.dropFirst(Record.keyPrefix.count))")
        return Versioned(record: record, revision: entry.revision)
    }
}
