/// How far the segment's logs belong to a commit. Positions count bytes since the segment was made and only grow; a byte
/// stands at `position % size` of its log's area.
package struct LogPositions: Hashable, Sendable, Codable {
    /// Frames that the guest sent before this position may leave once the commit is published.
    package var output: UInt64
    /// Frames that reached the guest before this position are part of the committed state.
    package var input: UInt64
    /// Disk writes before this position are part of the committed state.
    package var disk: UInt64

    package init(output: UInt64 = 0, input: UInt64 = 0, disk: UInt64 = 0) {
        self.output = output
        self.input = input
        self.disk = disk
    }
}
