import Foundation
import Model

/// Which slot of the pools' heartbeat files is whose, decided once for each host by a compare-and-swap. The locks on the
/// files tell only processes under one kernel of each other, and neither does the order of a configuration: two machines
/// that start together, or with two versions of it, would both take the same slot.
package struct HeartbeatSlots: Codable, Sendable, Equatable {
    package static let key = "heartbeat-slots"
    private static let tries = 64

    /// By the host's name. A host keeps its slot for ever.
    package private(set) var slots: [String: Int] = [:]

    /// The slot of a host, which is given one if it has none.
    /// - Parameters:
    ///   - limit: the number of slots.
    ///   - found: whose names are in which slots of the file now. In a store that is new, or not the one that the cluster
    ///     had before, every host so keeps the slot that it has, and gets nobody else's.
    /// - Throws: `resourceExhausted` when all are given away; what the store throws.
    package static func slot(
        of host: HostName, in store: any ClusterStore, limit: Int, found: [Int: HostName] = [:]
    ) async throws(FtvmError) -> Int {
        for _ in 0..<tries {
            let entry = try await store.get(key)
            var known = HeartbeatSlots()
            if let entry { known = try StoreCoding.decode(Self.self, entry.value, key) }
            if let slot = known.slots[host.text] { return slot }
            let given = Set(known.slots.values)
            let free = (0..<limit).filter { !given.contains($0) }
            let slot =
                free.first { found[$0] == host } ?? free.first { found[$0] == nil } ?? free.first
            guard let slot else {
                throw FtvmError(
                    .resourceExhausted, "all \(limit) heartbeat slots are given away",
                    cause: "to \(known.slots.keys.sorted().joined(separator: ", "))",
                    advice: "give this host the name of one that is no more")
            }
            known.slots[host.text] = slot
            do throws(FtvmError) {
                try await store.put(
                    key, try StoreCoding.encode(known, key),
                    expecting: entry.map { .revision($0.revision) } ?? .absent)
            } catch {
                // Somebody else was first, or nobody knows: it is read again.
                guard error.code == .conflict || error.code == .timedOut else { throw error }
            }
        }
        throw FtvmError(
            .conflict, "host \(host) gets no heartbeat slot",
            cause: "\(tries) compare-and-swaps lost in a row")
    }
}
