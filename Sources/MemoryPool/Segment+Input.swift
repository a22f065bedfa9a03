import CLinux
import Model

/// A lock that is held as long as this object lives.
package final class SegmentLock: Sendable {
    private let lock: OwnedLock
    init(_ lock: OwnedLock) { self.lock = lock }
}

/// Who may add to the input log when a primary is dead: its `ftvmd` for a while still, until the next primary has
/// told the network where it is.
extension Segment {
    private var inputClosedWord: UnsafeMutablePointer<UInt64> {
        (control + Int(header.live.offset) + SegmentFormat.liveInputClosed)
            .assumingMemoryBound(to: UInt64.self)
    }

    /// Whether nobody who ran a primary of this generation adds to the input log any more.
    package func isInputClosed(_ generation: Generation) -> Bool {
        ftvm_atomic_load_u64(inputClosedWord) >= generation.number
    }

    /// From here on primaries of this generation, and of those before it, add nothing more.
    package func closeInput(upTo generation: Generation) {
        requireWriteAccess()
        while true {
            let present = ftvm_atomic_load_u64(inputClosedWord)
            if present >= generation.number { return }
            if ftvm_atomic_compare_exchange_u64(inputClosedWord, present, generation.number) {
                return
            }
        }
    }

    /// Becomes the one who adds a dead primary's last input, as long as the lock lives.
    /// - Returns: nil while somebody else is it.
    package func takeInputLock() throws -> SegmentLock? {
        let file = try storage.open(.lock, of: name, writable: true)
        return try OwnedLock.attempt(
            file, SegmentLockByte.input.range, "the input of segment \(pool)/\(name)"
        ).map { SegmentLock($0) }
    }
}
