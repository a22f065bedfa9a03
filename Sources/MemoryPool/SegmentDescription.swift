import CLinux
import Model

/// Everything in a segment but its contents, for people and for `ftvm pool dump`. Reading it
/// changes nothing and needs nothing to be in order: what is damaged is named in `problems`.
package struct SegmentDescription: Hashable, Sendable, Codable {
    package struct Header: Hashable, Sendable, Codable {
        package let formatVersion: String
        package let uuid: String
        package let memoryBytes: UInt64
        package let ramFileBytes: UInt64
        package let controlFileBytes: UInt64
        package let pageSizeBytes: UInt64
        package let pageCount: UInt64
        package let undoCapacity: UInt64
        package let stateSlotBytes: UInt64
        package let creationGeneration: Generation
        package let areas: [String: SegmentArea]
        package let numaNodes: [Int]
    }

    package struct Record: Hashable, Sendable, Codable {
        package let slot: Int
        /// The position names this record's epoch: it is what a failover goes back to.
        package let isCurrent: Bool
        /// nil if it was never written or is damaged.
        package let record: CommitRecord?
        package let problem: String?
    }

    package struct Undo: Hashable, Sendable, Codable {
        /// Entries ever published.
        package let head: UInt64
        /// The first entry that a rollback would use; nil if the current record is damaged.
        package let start: UInt64?
        package let used: UInt64?
        package let capacity: UInt64?
        /// The first entries from `start` on.
        package let entries: [Entry]
    }

    package struct Entry: Hashable, Sendable, Codable {
        package let sequence: UInt64
        package let entry: UndoEntry?
        package let problem: String?
    }

    /// A log of frames.
    package struct FrameLogDescription: Hashable, Sendable, Codable {
        package let capacityBytes: UInt64
        /// Where the next frame will be put.
        package let head: UInt64
        /// How far it belongs to the last commit; nil if the current record is damaged.
        package let committed: UInt64?
        /// The output log: how far it has been sent.
        package let released: UInt64?
        /// Frames not sent yet (output), or of the epoch that is not committed (input).
        package let frames: UInt64
        package let frameBytes: UInt64
    }

    package var outputLog: FrameLogDescription?
    package var inputLog: FrameLogDescription?
    package var pool: PoolName
    package var name: String
    /// What is wrong, one sentence each; empty for a sound segment.
    package var problems: [String] = []
    package var header: Header?
    package var position: SegmentPositionDescription?
    package var flags: [String] = []
    package var overflowEpoch: Epoch?
    package var records: [Record] = []
    package var undo: Undo?
    /// Whether somebody holds the lock; nil if it could not be asked.
    package var primaryLocked: Bool?
    package var managerLocked: Bool?
    /// Sampled pages of guest RAM on each NUMA node; empty where the kernel cannot say.
    package var sampledPagesOnNodes: [Int: Int] = [:]
}

/// A segment's position as two numbers.
package struct SegmentPositionDescription: Hashable, Sendable, Codable {
    package let generation: Generation
    package let epoch: Epoch
}

extension SegmentDescription: CustomStringConvertible {
    /// The dump as text, a field a line.
    package var description: String {
        var lines = ["segment \(name) of pool \(pool)"]
        func add(_ label: String, _ value: String) {
            let padding = String(repeating: " ", count: max(1, 22 - label.count))
            lines.append("  \(label)\(padding)\(value)")
        }
        for problem in problems { add("PROBLEM", problem) }
        if let header { describe(header, add) }
        if let position {
            add("position", "generation \(position.generation), epoch \(position.epoch)")
        }
        add("flags", flags.isEmpty ? "none" : flags.joined(separator: ", "))
        add("overflow epoch", overflowEpoch.map { "\($0)" } ?? "none")
        func held(_ lock: Bool?) -> String { lock.map { $0 ? "held" : "free" } ?? "unknown" }
        add("locks", "primary \(held(primaryLocked)), manager \(held(managerLocked))")
        for record in records {
            add("record \(record.slot)\(record.isCurrent ? " (current)" : "")", describe(record))
        }
        if let undo {
            let used = undo.used.map { "\($0)" } ?? "unknown"
            add(
                "undo log",
                "\(used) of \(undo.capacity.map { "\($0)" } ?? "unknown") entries used, "
                    + "start \(undo.start.map { "\($0)" } ?? "unknown"), head \(undo.head)")
            for entry in undo.entries { add("entry \(entry.sequence)", describe(entry)) }
        }
        for (label, log) in [("output log", outputLog), ("input log", inputLog)] {
            guard let log else { continue }
            add(
                label,
                "\(log.frames) frames, \(log.frameBytes) bytes "
                    + (log.released == nil ? "after the commit" : "not sent yet")
                    + "; head \(log.head), committed \(log.committed.map { "\($0)" } ?? "unknown")"
                    + (log.released.map { ", sent \($0)" } ?? ""))
        }
        return lines.joined(separator: "\n")
    }

    private func describe(_ header: Header, _ add: (String, String) -> Void) {
        add("format", header.formatVersion)
        add("domain", header.uuid)
        add("guest RAM", "\(header.memoryBytes) bytes, \(header.pageCount) pages")
        add("page size", "\(header.pageSizeBytes) bytes")
        add("files", "ram \(header.ramFileBytes) bytes, control \(header.controlFileBytes) bytes")
        add("created in", "generation \(header.creationGeneration)")
        for (name, area) in header.areas.sorted(by: { $0.value.offset < $1.value.offset }) {
            add("area \(name)", "offset \(area.offset), \(area.bytes) bytes")
        }
        let asked = header.numaNodes.map(String.init).joined(separator: ", ")
        let found = sampledPagesOnNodes.sorted { $0.key < $1.key }
            .map { "node \($0.key): \($0.value)" }.joined(separator: ", ")
        add("NUMA nodes", asked.isEmpty ? "no wish" : "bound to \(asked)")
        if !found.isEmpty { add("pages sampled", found) }
    }

    private func describe(_ slot: Record) -> String {
        guard let record = slot.record else { return slot.problem ?? "never written" }
        return "epoch \(record.epoch), generation \(record.generation), "
            + "state \(record.stateLengthBytes) bytes, undo start \(record.undoStart)"
            + (slot.problem.map { ", \($0)" } ?? "")
    }

    private func describe(_ entry: Entry) -> String {
        guard let found = entry.entry else { return entry.problem ?? "damaged" }
        return "page \(found.page), epoch \(found.epoch), generation \(found.generation)"
            + (entry.problem.map { ", \($0)" } ?? "")
    }
}
