import CLinux
import Glibc
import Model

/// Who has taken note of whose heartbeat: the file `heartbeats.noted` beside a pool's `heartbeats`. A host that sees its
/// beats taken note of knows that it is heard, and, where the note is backed by the store, that it was not fenced then.
///
/// 64 rows (who notes, by slot) of 64 columns (whose heartbeat) of 32 bytes: a sequence number, odd while the entry is
/// written; the incarnation seen; its newest beat seen; its newest beat that was seen before the store said that it
/// is not fenced. A row is written by the owner of its slot only.
package final class HeartbeatNotes: @unchecked Sendable {
    // @unchecked: words of the mapping are read and written atomically, each row by one writer.
    package struct Note: Sendable, Hashable {
        package var incarnation: UInt64
        package var seen: UInt64
        package var backed: UInt64

        package init(incarnation: UInt64, seen: UInt64, backed: UInt64) {
            self.incarnation = incarnation
            self.seen = seen
            self.backed = backed
        }
    }

    private static let entryBytes = 32
    private static let bytes = HeartbeatLayout.slotCount * HeartbeatLayout.slotCount * entryBytes
    private let base: UnsafeMutableRawPointer

    package init(path: String) throws(FtvmError) {
        let descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw HeartbeatFile.failure(path, "open", errno) }
        defer { close(descriptor) }
        let reserved = posix_fallocate(descriptor, 0, off_t(Self.bytes))
        guard reserved == 0 else { throw HeartbeatFile.failure(path, "fallocate", reserved) }
        let mapping = mmap(nil, Self.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
        guard let mapping, mapping != MAP_FAILED else {
            throw HeartbeatFile.failure(path, "mmap", errno)
        }
        base = mapping
    }

    deinit { munmap(base, Self.bytes) }

    private func word(_ row: Int, _ column: Int, _ index: Int) -> UnsafeMutablePointer<UInt64> {
        let slots = 0..<HeartbeatLayout.slotCount
        precondition(slots.contains(row) && slots.contains(column))
        let entry = (row * HeartbeatLayout.slotCount + column) * Self.entryBytes
        return (base + entry + 8 * index).assumingMemoryBound(to: UInt64.self)
    }

    /// Forgets what an earlier owner of the slot has noted.
    package func clear(row: Int) {
        for column in 0..<HeartbeatLayout.slotCount {
            write(Note(incarnation: 0, seen: 0, backed: 0), row: row, column: column)
        }
    }

    package func write(_ note: Note, row: Int, column: Int) {
        let sequence = word(row, column, 0)
        // Odd, whatever a writer that was killed has left.
        let open = ftvm_atomic_load_u64(sequence) | 1
        ftvm_atomic_store_u64(sequence, open)
        ftvm_atomic_store_u64(word(row, column, 1), note.incarnation)
        ftvm_atomic_store_u64(word(row, column, 2), note.seen)
        ftvm_atomic_store_u64(word(row, column, 3), note.backed)
        ftvm_atomic_store_u64(sequence, open &+ 1)
    }

    /// nil: nothing is noted, or it is just being written.
    package func read(row: Int, column: Int) -> Note? {
        let sequence = word(row, column, 0)
        let before = ftvm_atomic_load_u64(sequence)
        guard before & 1 == 0 else { return nil }
        let note = Note(
            incarnation: ftvm_atomic_load_u64(word(row, column, 1)),
            seen: ftvm_atomic_load_u64(word(row, column, 2)),
            backed: ftvm_atomic_load_u64(word(row, column, 3)))
        guard ftvm_atomic_load_u64(sequence) == before, note.incarnation != 0 else { return nil }
        return note
    }
}
