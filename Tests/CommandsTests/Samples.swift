import ControlAPI
import Model

/// Values for goldens.
enum Samples {
    static func record(
        _ name: String = "demo", state: PairState = .protected, desired: DesiredState = .protected
    ) -> PairRecord {
        var record = PairRecord(
            name: PairName(name), uuid: "0d2a2c1e-6f3b-4c67-9a43-5a1f0c7d9e10",
            primary: HostName("h1"), options: PairOptions(), domainXML: "<domain/>",
            persistent: true, memoryBytes: 256 << 20)
        record.state = state
        record.desired = desired
        return record
    }

    /// A pair that is protected on h1 with its secondary on h2.
    static func protectedPair(_ name: String = "demo") -> PairView {
        var record = record(name)
        record.secondary = HostName("h2")
        record.secondaryReady = true
        record.segment = SegmentReference(pool: PoolName("default"), name: "\(name)-0d2a2c1e")
        return PairView(
            record: record, epoch: Epoch(48213), pageSizeBytes: 4096, statistics: statistics)
    }

    static func pair(
        _ state: PairState, step: String? = nil, percent: Int? = nil, error: FtvmError? = nil,
        desired: DesiredState = .protected, generation: UInt64 = 1, primary: String = "h1",
        requested: Bool = false
    ) -> PairView {
        var record = record(state: state, desired: desired)
        record.progress = step.map { PairProgress(step: $0, percent: percent) }
        record.lastError = error
        record.generation = Generation(generation)
        record.primary = HostName(primary)
        record.promotionRequested = requested
        return PairView(record: record)
    }

    static let statistics = EpochStatistics(
        commits: 48213, epochRatePerSecond: 19.84, pauseMedianMicroseconds: 1712,
        pauseP99Microseconds: 2941.4, dirtyPagesMedian: 812, lastCommitAgeMilliseconds: 12.4,
        undoUsedEntries: 655, undoCapacityEntries: 65536, faults: 123_456, overflows: 1)

    static let poolFull = FtvmError(
        .resourceExhausted, "demo was not enabled: pool default is full",
        cause: "a segment of 338 MiB is needed, 120 MiB are free",
        advice: "free room or choose another pool: 'ftvm pool list'")

    static let hosts = [
        HostView(
            record: HostRecord(
                name: HostName("h1"), incarnation: 3, heartbeatSlot: 0, version: "0.1.0",
                libvirtVersion: "9.0.0", qemuVersion: "7.2.17",
                memoryAvailableBytes: 20_100_000_000, pools: [PoolName("default")],
                domains: [
                    DomainSummary(name: "web", uuid: "u1", state: "running"),
                    DomainSummary(name: "demo", uuid: "u2", state: "running"),
                ]), state: .online, heartbeatAgeMilliseconds: 48,
            pairs: [protectedRecord]),
        HostView(
            record: HostRecord(
                name: HostName("h2"), incarnation: 1, heartbeatSlot: 1, version: "0.1.0",
                libvirtVersion: "9.0.0", qemuVersion: "7.2.17", memoryAvailableBytes: 3 << 30,
                pools: [PoolName("default"), PoolName("huge")],
                domains: [DomainSummary(name: "demo", uuid: "u2", state: "paused")]),
            state: .dead, heartbeatAgeMilliseconds: 75_400, pairs: [protectedRecord]),
    ]

    private static var protectedRecord: PairRecord {
        var record = record()
        record.secondary = HostName("h2")
        return record
    }

    static let events = [
        ClusterEvent(
            number: 7, time: 1_700_000_000.25, kind: .promoted, host: HostName("h2"),
            pair: PairName("demo"), message: "h2 is the primary",
            figures: ["rollback-pages": 812, "promotion-milliseconds": 41.26]),
        ClusterEvent(
            number: 12, time: 1_700_000_001, kind: .hostDead, host: HostName("h2"),
            message: "h1 has not been heard of for 500 ms"),
    ]

    static let pool = PoolView(
        name: PoolName("default"), kind: .tmpfs, path: "/var/lib/ftvm/pool", host: HostName("h1"),
        pageSizeBytes: 4096, capacityBytes: 8 << 30, freeBytes: 7 << 30, segmentCount: 2,
        hosts: [HostName("h1"), HostName("h2")])

    static let poolDetail = PoolDetailView(
        pool: pool,
        segments: [
            SegmentView(
                name: "demo-0d2a2c1e", pair: PairName("demo"), ramBytes: 256 << 20,
                reservedBytes: 338 << 20, pageSizeBytes: 4096, generation: Generation(2),
                epoch: Epoch(48213), undoUsedEntries: 655, undoCapacityEntries: 16384,
                primaryLockHeld: true, numaNodes: [0, 1],
                placement: [
                    .init(node: 0, bytes: 128 << 20), .init(node: 1, bytes: 128 << 20),
                ]),
            SegmentView(
                name: "old", pair: nil, ramBytes: 1 << 30, reservedBytes: 1 << 30,
                pageSizeBytes: 4096, generation: nil, epoch: nil, undoUsedEntries: nil,
                undoCapacityEntries: nil, primaryLockHeld: nil, numaNodes: [], placement: [],
                problem: FtvmError(.dataCorrupted, "the header's checksum is wrong")),
        ])
}
