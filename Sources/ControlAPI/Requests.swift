import Model

/// Body of `POST /v1/pairs`: protect a domain.
public struct EnableRequest: Hashable, Sendable, Codable {
    /// The libvirt domain's name.
    public var domain: String
    /// The host that has the domain; nil: the daemon looks for it on every host.
    public var host: HostName?
    /// What differs from the defaults; nil: nothing.
    public var options: PairOptionsRequest?

    public init(domain: String, host: HostName? = nil, options: PairOptionsRequest? = nil) {
        self.domain = domain
        self.host = host
        self.options = options
    }
}

/// The options of a new pair that the user chose; what is nil comes from the daemon's configuration.
public struct PairOptionsRequest: Hashable, Sendable, Codable {
    public static let epochMaximumMillisecondsRange = 1...10_000

    /// The oldest an epoch gets before it is committed, in milliseconds.
    public var epochMaximumMilliseconds: Int?
    public var pool: PoolName?
    public var numaNodes: [Int]?
    /// Capacity of the undo log in bytes.
    public var undoLogBytes: UInt64?
    public var secondaryHost: HostName?
    /// Room for written data in the disk log, in bytes.
    public var diskLogBytes: UInt64?
    /// Disks whose flushes do not wait for stable storage.
    public var poolDurableDisks: [String]?

    public static let diskLogBytesRange: ClosedRange<UInt64> = (1 << 20)...(1 << 40)

    public init(
        epochMaximumMilliseconds: Int? = nil, pool: PoolName? = nil, numaNodes: [Int]? = nil,
        undoLogBytes: UInt64? = nil, secondaryHost: HostName? = nil, diskLogBytes: UInt64? = nil,
        poolDurableDisks: [String]? = nil
    ) {
        self.diskLogBytes = diskLogBytes
        self.poolDurableDisks = poolDurableDisks
        self.epochMaximumMilliseconds = epochMaximumMilliseconds
        self.pool = pool
        self.numaNodes = numaNodes
        self.undoLogBytes = undoLogBytes
        self.secondaryHost = secondaryHost
    }

    /// Nothing was chosen.
    public var isEmpty: Bool { self == PairOptionsRequest() }

    /// The full options, with the daemon's defaults where nothing was chosen.
    ///
    /// - Throws: `FtvmError` `invalidArgument` for a value out of its range.
    public func options(
        epochMaximumMillisecondsDefault: Int
    ) throws(FtvmError) -> PairOptions {
        let epoch = epochMaximumMilliseconds ?? epochMaximumMillisecondsDefault
        let range = PairOptionsRequest.epochMaximumMillisecondsRange
        guard range.contains(epoch) else {
            throw FtvmError(
                .invalidArgument, "an epoch of \(epoch) ms is out of range",
                advice: "choose \(range.lowerBound) to \(range.upperBound) ms")
        }
        if let bytes = diskLogBytes, !PairOptionsRequest.diskLogBytesRange.contains(bytes) {
            throw FtvmError(
                .invalidArgument, "a disk log of \(bytes) bytes is out of range",
                advice: "choose 1 MiB or more")
        }
        if let node = numaNodes?.first(where: { $0 < 0 }) {
            throw FtvmError(.invalidArgument, "\(node) is not the number of a NUMA node")
        }
        return PairOptions(
            epochMaximumMilliseconds: epoch, pool: pool, numaNodes: numaNodes ?? [],
            undoLogBytes: undoLogBytes, secondaryHost: secondaryHost, diskLogBytes: diskLogBytes,
            poolDurableDisks: poolDurableDisks)
    }
}
