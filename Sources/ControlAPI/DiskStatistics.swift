/// The redo log of a pair's disks, as the primary's host sees it.
public struct DiskStatistics: Hashable, Sendable, Codable {
    /// Room for written data in the log.
    public var capacityBytes: UInt64
    /// Written data that are in the log and not yet in the images.
    public var waitingBytes: UInt64
    /// Writes, trims and flushes that wait, and those of them that no commit covers yet.
    public var waitingRecords: UInt64
    public var uncommittedRecords: UInt64
    /// For how long the oldest committed write has waited.
    public var ageMilliseconds: UInt64
    /// Brought into the images, over the last second and in all.
    public var appliedBytesPerSecond: Double
    public var appliedBytes: UInt64
    /// Times that an image or the journal was synced.
    public var syncs: UInt64
    /// Back-pressure: requests that are held until there is room, and for how long requests were held in all.
    public var heldRequests: UInt64
    public var heldMilliseconds: UInt64
    /// Why the images cannot be written; nil: they can.
    public var failure: String?

    public init(capacityBytes: UInt64) {
        self.capacityBytes = capacityBytes
        waitingBytes = 0
        waitingRecords = 0
        uncommittedRecords = 0
        ageMilliseconds = 0
        appliedBytesPerSecond = 0
        appliedBytes = 0
        syncs = 0
        heldRequests = 0
        heldMilliseconds = 0
    }
}
