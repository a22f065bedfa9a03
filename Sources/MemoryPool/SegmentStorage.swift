import Model

/// The files of a segment.
enum SegmentFile: String, CaseIterable, Sendable {
    /// Guest RAM from offset 0: what QEMU maps.
    case ram
    /// Header, live words, commit records, device states, undo log.
    case control
    /// Empty; carries locks only, see `SegmentLockByte`.
    case lock
    /// The guest's main memory, where a running QEMU had it already: it stands before `ram`. Only in a segment that was
    /// adopted in place.
    case object
    /// The redo log of the guest's disks (`DiskLog`); only where it has disks to protect.
    case disk

    /// Whether a segment may be without it.
    var mayBeAbsent: Bool { self == .object || self == .disk }
}

/// Where a pool keeps the files of its segments: a directory, or the memory of a keeper process.
protocol SegmentStorage: Sendable {
    /// Names of the complete segments, sorted.
    func names() throws -> [String]

    /// Opens a file of a complete segment with an open file description of its own. Throws
    /// `.notFound` if there is no such segment.
    func open(_ file: SegmentFile, of name: String, writable: Bool) throws -> OwnedDescriptor

    /// Path of a file, for storages that have paths.
    func path(of file: SegmentFile, of name: String) -> String?

    /// Begins a segment that nobody sees before it is complete. Throws `.alreadyExists`.
    func beginCreation(of name: String) throws -> any SegmentCreation

    /// Removes a segment, whose locks the caller has; no error if it is gone already.
    func remove(_ name: String) throws

    /// Removes what crashed creations and removals left; returns what was removed.
    func removeLeftovers() throws -> [String]
}

/// A segment that is being made. If its process dies, it never was.
protocol SegmentCreation: AnyObject {
    /// An empty file, opened for reading and writing.
    func makeFile(_ file: SegmentFile) throws -> OwnedDescriptor
    /// Takes a memory object of somebody else's in as the segment's `object`, without moving it.
    /// - Returns: false when this storage cannot keep such an object.
    func take(_ object: OwnedDescriptor) throws -> Bool
    /// Makes the segment visible under its name. Throws `.alreadyExists`.
    func complete() throws
    /// Removes what was made, as far as possible. No effect after `complete`.
    func abandon()
}
