import MemoryPool

/// How much the gate wants the running epoch to be committed.
package enum GateDemand: Int, Sendable, Comparable {
    /// Nothing of the guest waits.
    case none
    /// Frames wait: commit as soon as the epoch has run its minimum time.
    case soon
    /// A log is past its high-water mark: commit at once.
    case now

    package static func < (left: GateDemand, right: GateDemand) -> Bool {
        left.rawValue < right.rawValue
    }
}

/// The network gate as the epoch thread sees it (`Documentation/NetworkGate.md`). One thread at a time uses it.
package protocol PacketGate: AnyObject, Sendable {
    /// Readable when frames wait to be collected; never changes.
    var descriptors: [Int32] { get }

    /// Takes everything that waits into the segment's logs, without blocking. Once `stop` has returned, one call has
    /// all that belongs to the epoch.
    /// - Throws: `.unavailable` when QEMU is gone.
    func collect() throws -> GateDemand

    /// The ends of the logs, after `collect`: with the guest stopped they are the commit's positions.
    var positions: LogPositions { get }

    /// Sends what the last published commit covers, but nothing behind `limit`, an end of the output log; in order and
    /// without blocking. A network that does not take it all has the rest sent by a later call.
    /// - Returns: whether everything up to there has been sent.
    func release(upTo limit: UInt64) throws -> Bool

    /// Frames that wait for their commit or for the network.
    var heldFrames: UInt64 { get }
}

extension PacketGate {
    /// Everything that the last published commit covers.
    package func release() throws -> Bool { try release(upTo: .max) }
}
