import Model

/// A pool as the answering host sees it.
public struct PoolView: Hashable, Sendable, Codable {
    public var name: PoolName
    public var kind: PoolKind
    /// The pool's directory on `host`.
    public var path: String
    /// The host that answers.
    public var host: HostName
    /// Page size of guest RAM in this pool, in bytes.
    public var pageSizeBytes: UInt64
    /// Size of the file system in bytes; nil if it has no limit of its own.
    public var capacityBytes: UInt64?
    /// What a new segment may still take, in bytes; nil if not known.
    public var freeBytes: UInt64?
    /// Number of segments in the pool.
    public var segmentCount: Int
    /// Hosts that say that they can map the pool.
    public var hosts: [HostName]
    /// Why the pool cannot be used on `host`; nil when it can.
    public var problem: FtvmError?

    public init(
        name: PoolName, kind: PoolKind, path: String, host: HostName, pageSizeBytes: UInt64,
        capacityBytes: UInt64?, freeBytes: UInt64?, segmentCount: Int, hosts: [HostName],
        problem: FtvmError? = nil
    ) {
        self.name = name
        self.kind = kind
        self.path = path
        self.host = host
        self.pageSizeBytes = pageSizeBytes
        self.capacityBytes = capacityBytes
        self.freeBytes = freeBytes
        self.segmentCount = segmentCount
        self.hosts = hosts
        self.problem = problem
    }
}

/// A pool and what is in it.
public struct PoolDetailView: Hashable, Sendable, Codable {
    public var pool: PoolView
    /// By name.
    public var segments: [SegmentView]

    public init(pool: PoolView, segments: [SegmentView]) {
        self.pool = pool
        self.segments = segments
    }
}

/// A segment: one VM's place in a pool.
public struct SegmentView: Hashable, Sendable, Codable {
    /// Pages of a segment's guest RAM that are on one NUMA node.
    public struct NodePlacement: Hashable, Sendable, Codable {
        public var node: Int
        public var bytes: UInt64
        public init(node: Int, bytes: UInt64) {
            self.node = node
            self.bytes = bytes
        }
    }

    public var name: String
    /// The pair whose record names the segment; nil: none does, it is left over.
    public var pair: PairName?
    /// Guest RAM in bytes.
    public var ramBytes: UInt64
    /// All that the segment takes from the pool, in bytes: guest RAM and what is needed to go on from it.
    public var reservedBytes: UInt64
    /// Page size of the guest RAM in bytes.
    public var pageSizeBytes: UInt64
    /// The generation that may commit, as the segment has it; nil if its header cannot be read.
    public var generation: Generation?
    /// The epoch that was committed last; nil if its header cannot be read.
    public var epoch: Epoch?
    /// Entries of the undo log: used by the epoch that is not yet committed, and room.
    public var undoUsedEntries: UInt64?
    public var undoCapacityEntries: UInt64?
    /// A primary holds the segment's lock; nil if that could not be asked.
    public var primaryLockHeld: Bool?
    /// NUMA nodes that the segment was bound to; empty: to none.
    public var numaNodes: [Int]
    /// Where its guest RAM really is; empty if the kernel could not be asked.
    public var placement: [NodePlacement]
    /// Why the segment cannot be used; nil when its header is sound.
    public var problem: FtvmError?

    public init(
        name: String, pair: PairName?, ramBytes: UInt64, reservedBytes: UInt64,
        pageSizeBytes: UInt64, generation: Generation?, epoch: Epoch?, undoUsedEntries: UInt64?,
        undoCapacityEntries: UInt64?, primaryLockHeld: Bool?, numaNodes: [Int],
        placement: [NodePlacement], problem: FtvmError? = nil
    ) {
        self.name = name
        self.pair = pair
        self.ramBytes = ramBytes
        self.reservedBytes = reservedBytes
        self.pageSizeBytes = pageSizeBytes
        self.generation = generation
        self.epoch = epoch
        self.undoUsedEntries = undoUsedEntries
        self.undoCapacityEntries = undoCapacityEntries
        self.primaryLockHeld = primaryLockHeld
        self.numaNodes = numaNodes
        self.placement = placement
        self.problem = problem
    }
}
