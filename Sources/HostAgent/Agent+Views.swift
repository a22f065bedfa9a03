import ClusterStore
import ControlAPI
import DiskLog
import Foundation
import MemoryPool
import Model
import PairLogic
import Protection

/// What users are shown.
extension Agent {
    func versionView() -> VersionView { VersionView(version: FtvmVersion.text, host: host) }

    func pairViews() async throws -> [PairView] {
        var views: [PairView] = []
        for versioned in try await environment.pairs.list().records {
            views.append(await view(of: versioned.record))
        }
        return views.sorted { $0.name < $1.name }
    }

    func pairView(_ name: PairName) async throws -> PairView {
        guard let record = try await environment.pairs.read(name)?.record else {
            throw unknownPair(name)
        }
        return await view(of: record)
    }

    func view(of record: PairRecord) async -> PairView {
        let segment = record.segment.flatMap { try? environment.openSegment($0, access: .read) }
        let epoch = segment?.position.epoch
        return PairView(
            record: record, epoch: epoch.flatMap { $0.number > 0 ? $0 : nil },
            pageSizeBytes: segment.map { UInt64($0.pageSizeBytes) },
            statistics: await statistics(of: record))
    }

    // MARK: - Statistics

    func statisticsKey(_ name: PairName) -> String { "statistics/\(name)" }

    /// The primary's own figures; from its last report when it runs on another host.
    private func statistics(of record: PairRecord) async -> EpochStatistics? {
        if let driver = runtimes[record.name]?.driver {
            return EpochStatistics(
                driver.figures().figures, driver.gateFigures(), diskFigures(driver, of: record.name)
            )
        }
        guard record.primary != host, detector.states[record.primary] == .online,
            let entry = try? await environment.store.get(statisticsKey(record.name))
        else { return nil }
        return try? ControlJSON.decode(from: entry.value)
    }

    /// A little less than what is between two reports.
    private static let statisticsNanoseconds: UInt64 = 450_000_000
    /// Of an idle guest.
    private static let fewCommits: UInt64 = 4

    /// Twice a second and pair, so that every host can show them; once a second that of an idle guest.
    func publishStatistics() async {
        let now = MonotonicClock.nowNanoseconds()
        for (name, runtime) in runtimes {
            guard let driver = runtime.driver else { continue }
            let last = lastStatistics[name] ?? (0, 0)
            let isDue = now - last.atNanoseconds > Self.statisticsNanoseconds
            let commits = driver.commits
            // Each writing wakes every host. What hardly changes can wait.
            guard isDue,
                commits &- last.commits >= Self.fewCommits
                    || now - last.atNanoseconds > 2 * Self.statisticsNanoseconds
            else { continue }
            lastStatistics[name] = (now, commits)
            let (figures, failure) = driver.figures()
            if let failure, runtime.failure != failure {
                runtime.failure = failure
                emit(.failed, "a commit of \(name) failed: \(failure)", pair: name)
            }
            tell(ofDisks: driver.disks?.trouble, of: name, runtime)
            guard
                let data = try? ControlJSON.encode(
                    EpochStatistics(
                        figures, driver.gateFigures(), diskFigures(driver, of: name)),
                    pretty: false)
            else {
                continue
            }
            _ = try? await environment.store.put(
                statisticsKey(name), Data(data), expecting: .any)
        }
    }

    private func tell(
        ofDisks trouble: FtvmError?, of name: PairName, _ runtime: PairRuntime
    ) {
        guard trouble != runtime.diskTrouble else { return }
        runtime.diskTrouble = trouble
        emit(
            .disks,
            trouble.map { "disks of \(name): \($0)" }
                ?? "disks of \(name): what the guest writes reaches its images again",
            pair: name)
    }

    private func diskFigures(_ driver: PrimaryDriver, of name: PairName) -> DiskStatistics? {
        guard let status = driver.disks?.log.status else { return nil }
        let runtime = runtime(of: name)
        runtime.diskRate.note(
            applied: status.appliedBytes, at: MonotonicClock.nowNanoseconds())
        var figures = DiskStatistics(status, bytesPerSecond: runtime.diskRate.bytesPerSecond)
        figures.failure = figures.failure ?? driver.disks?.serverFailure?.description
        return figures
    }

    // MARK: - Hosts, events, pools

    func hostList() async throws -> [ControlAPI.HostView] {
        let pairs = try await environment.pairs.list().records.map(\.record)
        let now = MonotonicClock.nowNanoseconds()
        return hostRecords.values.map { record in
            let isMe = record.name == host
            let beat = detector.lastBeat(of: record.name)
            return ControlAPI.HostView(
                record: record,
                state: isMe ? .online : detector.states[record.name] ?? .suspect,
                heartbeatAgeMilliseconds: isMe
                    ? nil : beat.map { Double(now - min(now, $0.nanoseconds)) / 1_000_000 },
                pairs: pairs, maintenance: maintenance[record.name],
                ways: isMe ? [] : ways(of: record.name, at: now),
                membership: cluster.members[record.name]?.record)
        }.sorted { $0.name < $1.name }
    }

    private func ways(of name: HostName, at now: UInt64) -> [ControlAPI.HostView.Way] {
        detector.ways(of: name, at: MonotonicInstant(nanoseconds: now)).map {
            ControlAPI.HostView.Way(
                way: $0.way, ageMilliseconds: milliseconds($0.age),
                jitterMilliseconds: milliseconds($0.jitter), heard: $0.heard)
        }
    }

    func events(_ query: EventQuery) async throws -> [ClusterEvent] {
        let all = try await environment.store.events(
            after: query.after ?? 0, limit: StoreLimits.events)
        let wanted = all.filter { query.pair == nil || $0.pair == query.pair }
        return Array(query.after == nil ? wanted.suffix(query.limit) : wanted.prefix(query.limit))
    }

    func poolViews() -> [PoolView] { environment.pools.map(view) }

    func poolView(_ name: PoolName) async throws -> PoolDetailView {
        let pool = try environment.pool(name)
        let pairs = try await environment.pairs.list().records.map(\.record)
        let segments = try pool.segmentNames().map { segmentName in
            SegmentView(
                pool: pool, name: segmentName,
                pair: pairs.first { $0.uuid == segmentName }?.name)
        }
        return PoolDetailView(pool: view(of: pool), segments: segments)
    }

    private func view(of pool: Pool) -> PoolView {
        let usage: PoolUsage?
        let problem: FtvmError?
        do {
            usage = try pool.usage()
            problem = nil
        } catch {
            usage = nil
            problem = FtvmError(ours: error)
        }
        return PoolView(
            name: pool.name, kind: pool.configuration.kind, path: pool.configuration.path,
            host: host, pageSizeBytes: UInt64(pool.pageSizeBytes),
            capacityBytes: usage?.totalBytes, freeBytes: usage?.freeBytes,
            segmentCount: usage?.segmentCount ?? 0,
            hosts: hostRecords.values.filter { $0.pools.contains(pool.name) }.map(\.name).sorted(),
            problem: problem)
    }
}

extension EpochStatistics {
    /// - Parameter gate: nil for a guest without NICs: then there are no packets to hold.
    init(_ figures: EpochFigures, _ gate: GateFigures?, _ disks: DiskStatistics?) {
        self.init(
            commits: figures.commits, epochRatePerSecond: figures.epochRatePerSecond,
            pauseMedianMicroseconds: figures.pauseMedianMicroseconds,
            pauseP99Microseconds: figures.pauseP99Microseconds,
            dirtyPagesMedian: UInt64(figures.dirtyPagesMedian),
            lastCommitAgeMilliseconds: figures.lastCommitAgeMilliseconds,
            undoUsedEntries: figures.undoUsedEntries,
            undoCapacityEntries: figures.undoCapacityEntries, faults: figures.faults,
            overflows: figures.overflows)
        self.disks = disks
        guard let gate else { return }
        heldFrames = gate.heldFrames
        releasedFrames = gate.releasedFrames
        // None has left yet: nothing is known.
        guard figures.holdP99Microseconds > 0 else { return }
        holdMedianMicroseconds = figures.holdMedianMicroseconds
        holdP99Microseconds = figures.holdP99Microseconds
    }
}

extension DiskStatistics {
    init(_ status: DiskLogStatus, bytesPerSecond: Double) {
        self.init(capacityBytes: status.dataBytes)
        waitingBytes = status.waitingBytes
        waitingRecords = status.waitingRecords
        uncommittedRecords = status.unsealedRecords
        ageMilliseconds = status.ageMilliseconds
        appliedBytesPerSecond = bytesPerSecond
        appliedBytes = status.appliedBytes
        syncs = status.syncs
        heldRequests = status.heldNow
        heldMilliseconds = status.heldMilliseconds
        failure = status.failure
    }
}

extension SegmentView {
    /// The segment as it is found; one that cannot be read is shown with its problem.
    init(pool: Pool, name: String, pair: PairName?) {
        let segment: Segment
        do {
            segment = try pool.openSegment(name: name, access: .read)
        } catch {
            self.init(
                name: name, pair: pair, ramBytes: 0, reservedBytes: 0,
                pageSizeBytes: UInt64(pool.pageSizeBytes), generation: nil, epoch: nil,
                undoUsedEntries: nil, undoCapacityEntries: nil, primaryLockHeld: nil,
                numaNodes: [], placement: [], problem: FtvmError(ours: error))
            return
        }
        let record = try? segment.latestCommit()
        self.init(
            name: name, pair: pair, ramBytes: segment.memoryBytes,
            reservedBytes: segment.header.ramFileBytes + segment.header.controlFileBytes,
            pageSizeBytes: UInt64(segment.pageSizeBytes),
            generation: segment.position.generation, epoch: segment.position.epoch,
            undoUsedEntries: segment.undoHead - (record?.undoStart ?? 0),
            undoCapacityEntries: segment.undoCapacity,
            primaryLockHeld: try? segment.isLocked(.primary), numaNodes: segment.header.numaNodes,
            placement: segment.sampledNodes().map {
                NodePlacement(node: $0.node, bytes: $0.bytes)
            })
    }
}
