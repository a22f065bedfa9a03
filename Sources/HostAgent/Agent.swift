import ClusterStore
import Dispatch
import Fencing
import Foundation
import Heartbeat
import Hypervisor
import Logging
import MemoryPool
import Model
import PairLogic
import Protection
import Synchronization

/// One host's part in the cluster: looks at all pairs whenever something changes (and regularly all the same), decides
/// with `PairLogic` what concerns this host, and does it. Everything it holds can be made anew from store, segment,
/// libvirt and QEMU.
package actor Agent {
    let environment: HostEnvironment
    let logger: Logger
    let worker: PairWorker
    var host: HostName { environment.host }

    /// The pairs as the store had them last, with their revisions.
    var records: [PairName: Versioned<PairRecord>] = [:]
    var recordsKnown = false
    var hasStartedAfterBoot = false
    /// Where domains went that are no pairs any more, by UUID; nil: to be read.
    var released: [String: HostName]?
    /// The newest revision of a pair's record that was read or written here.
    private var newestRevision: UInt64 = 0
    var hostRecords: [HostName: HostRecord] = [:]
    var runtimes: [PairName: PairRuntime] = [:]
    var detector: Detector
    /// Which hosts have failed which pair lately: they are tried last.
    var recentFailures = RecentFailures()
    /// When a pair's figures were published last, and how many commits there were then.
    var lastStatistics: [PairName: (atNanoseconds: UInt64, commits: UInt64)] = [:]
    /// Hosts that are out of service.
    var maintenance: [HostName: HostMaintenance] = [:]
    /// Pairs of which a move has been begun lately, and until when the drain leaves them alone.
    var drainDeferred: [PairName: UInt64] = [:]
    /// It has been told that nothing is on this host any more.
    var drainTold = false
    /// Looks that are under way; true: once more afterwards.
    var looking: [PairName: Bool] = [:]
    private var lastHostReport: UInt64 = 0
    private var reported: HostRecord?
    /// Members, leases and fences.
    var cluster: ClusterState
    let petPermit: PetPermit
    /// Looked at by the heartbeat: a daemon that is stuck must fall silent.
    private let aliveAt = Atomic<UInt64>(0)
    private let looks = WakeUps()
    let reports = WakeUps()
    let deviceLooks = WakeUps()
    let memberReads = WakeUps()
    private let toTell: AsyncStream<ClusterEvent>.Continuation
    private let told: AsyncStream<ClusterEvent>
    /// Events that wait to be written, at most; the newest are dropped for older ones, which led to them.
    private static let eventsWaiting = 1_024

    /// A daemon that has not gone round for this long is not alive, whatever its heartbeat thread says.
    static let stuckNanoseconds: UInt64 = 5_000_000_000

    init(environment: HostEnvironment) {
        self.environment = environment
        logger = environment.logger
        worker = PairWorker(environment: environment)
        let configuration = environment.configuration
        detector = Detector(
            me: environment.host,
            configuration: Detector.Configuration(
                periodNanoseconds: UInt64(configuration.heartbeatPeriodMilliseconds) * 1_000_000,
                missesUntilDead: UInt64(configuration.heartbeatMissesUntilDead),
                ways: environment.cluster.ways,
                leasePeriodNanoseconds: environment.timing.renewalNanoseconds))
        cluster = ClusterState(environment: environment)
        petPermit = PetPermit(limit: 2 * environment.timing.heartbeatNanoseconds)
        (told, toTell) = AsyncStream.makeStream(
            bufferingPolicy: .bufferingOldest(Self.eventsWaiting))
    }

    /// Something may have changed: look again soon. From any thread.
    nonisolated func poke() { looks.call() }

    /// Runs until the task is cancelled.
    func run() async throws {
        noteAlive(at: MonotonicClock.nowNanoseconds())
        environment.heartbeat.startBeating(
            periodNanoseconds: UInt64(environment.configuration.heartbeatPeriodMilliseconds)
                * 1_000_000,
            permit: { [weak self] in self?.isAlive ?? false && !TestSwitches.poolIsCut })
        await register()
        let keeper = environment.watchdog.map { watchdog in
            WatchdogKeeper(
                device: watchdog.device,
                periodMilliseconds: max(watchdog.timeoutSeconds * 250, 100),
                permit: { [petPermit] in petPermit.isPermitted })
        }
        // A host that has primaries is to be reset when nobody drives them any more; any other is not.
        defer { keeper?.stop(disarmed: runtimes.values.allSatisfy { $0.driver == nil }) }
        try await withThrowingTaskGroup(of: Void.self) { group in
            group.addTask { await self.followPairs() }
            group.addTask { await self.followHosts() }
            group.addTask { await self.followLibvirt() }
            group.addTask { await self.answerRequests() }
            group.addTask { await self.pulse() }
            group.addTask { await self.report() }
            group.addTask { await self.followDevices() }
            group.addTask { await self.followMembers() }
            group.addTask { await self.readMembers() }
            group.addTask { await self.followMaintenance() }
            group.addTask { await self.writeEvents() }
            group.addTask {
                for await _ in self.looks.stream {
                    await self.lookAtEverything()
                    await self.drainThisHost()
                }
            }
            try await group.next()
            group.cancelAll()
        }
    }

    nonisolated func noteAlive(at now: UInt64) { aliveAt.store(now, ordering: .relaxed) }

    private nonisolated var isAlive: Bool {
        MonotonicClock.nowNanoseconds() &- aliveAt.load(ordering: .relaxed) < Self.stuckNanoseconds
    }

    // MARK: - What makes it look

    private func followPairs() async {
        for await change in environment.pairs.watch() {
            switch change {
            case .current(let listing):
                // Read before our own last change, and delivered after it; the next one is on its way.
                guard listing.revision >= newestRevision else { continue }
                let decoded = PairRecords.decode(listing)
                for bad in decoded.unreadable {
                    logger.error("unreadable pair record", metadata: ["key": "\(bad.key)"])
                }
                let now = MonotonicInstant(nanoseconds: MonotonicClock.nowNanoseconds())
                var changed: [PairName] = []
                for fresh in decoded.records {
                    guard let old = records[fresh.record.name] else { continue }
                    recentFailures.note(old: old.record, new: fresh.record, at: now)
                    if old.revision != fresh.revision { changed.append(fresh.record.name) }
                }
                let before = Set(records.keys)
                records = Dictionary(
                    uniqueKeysWithValues: decoded.records.map { ($0.record.name, $0) })
                if !recordsKnown || !before.isSubset(of: records.keys) {
                    // Definitions may be leftovers now.
                    released = nil
                    reportSoon()
                }
                recordsKnown = true
                // A promotion may be due: these do not wait for the others' turn.
                for name in changed { await look(at: name) }
                poke()
            case .unavailable(let error):
                logger.warning("the store does not answer", metadata: ["error": "\(error)"])
            }
        }
    }

    /// Takes a record as it was just read or written, unless a newer one is known.
    func remember(_ record: Versioned<PairRecord>) {
        newestRevision = max(newestRevision, record.revision)
        let name = record.record.name
        if let known = records[name] {
            guard known.revision < record.revision else { return }
            let now = MonotonicInstant(nanoseconds: MonotonicClock.nowNanoseconds())
            recentFailures.note(old: known.record, new: record.record, at: now)
        }
        records[name] = record
    }

    private func followHosts() async {
        for await change in environment.hosts.watch() {
            guard case .current(let listing) = change else { continue }
            hostRecords = Dictionary(
                uniqueKeysWithValues: HostRecords.decode(listing).records.map {
                    ($0.record.name, $0.record)
                })
            poke()
        }
    }

    private func followLibvirt() async {
        for await event in environment.libvirt.events() {
            switch event {
            case .connected:
                for runtime in runtimes.values { runtime.domain = nil }
                reportSoon()
                poke()
            case .disconnected(let reason):
                logger.warning("libvirt is gone", metadata: ["reason": "\(reason)"])
                for runtime in runtimes.values { runtime.domain = nil }
                await reconnect()
            case .domain(let event):
                note(event)
            }
        }
    }

    private func reconnect() async {
        while !Task.isCancelled {
            do {
                try await environment.libvirt.connect()
                return
            } catch {
                try? await Task.sleep(for: .milliseconds(200))
            }
        }
    }

    private func note(_ event: DomainEvent) {
        let name = PairName(event.name)
        switch event.kind {
        case .suspended, .resumed:
            // Each commit makes two of these; they change nothing that we decide on.
            if runtimes[name]?.driver != nil { return }
        case .started:
            runtimes[name]?.guestEnded = false
            runtimes[name]?.endedByUs = false
        case .stopped(let reason):
            if let runtime = runtimes[name] {
                let asked: [DomainEvent.StopReason] = [.shutdown, .destroyed, .saved, .migrated]
                runtime.guestEnded = asked.contains(reason) && !runtime.endedByUs
                runtime.reasonDueAtNanoseconds = 0
                logger.info(
                    "domain stopped",
                    metadata: ["domain": "\(event.name)", "reason": "\(reason)"])
            }
        default: break
        }
        runtimes[name]?.domain = nil
        reportSoon()
        poke()
    }

    private func report() async {
        for await _ in reports.stream {
            await reportHost()
            await startAfterBoot()
            await publishStatistics()
        }
    }

    /// This host's record may have changed.
    private func reportSoon() {
        lastHostReport = 0
        reports.call()
    }

    // MARK: - Hosts

    /// Writes this host's record when it has changed, looked at every two seconds and after events.
    private func reportHost() async {
        let now = MonotonicClock.nowNanoseconds()
        guard now - lastHostReport > 2_000_000_000 else { return }
        lastHostReport = now
        do {
            let domains = try await environment.libvirt.listDomains()
            try await removeStaleDefinitions(domains)
            let versions = try await environment.libvirt.versions()
            let record = HostRecord(
                name: host, incarnation: environment.incarnation,
                heartbeatSlot: environment.heartbeat.slot, version: FtvmVersion.text,
                libvirtVersion: versions.libvirt, qemuVersion: versions.qemu,
                memoryAvailableBytes: (HostMemory.availableBytes() >> 26) << 26,
                pools: environment.pools.map(\.name), domains: domains.map(steady))
            guard record != reported else { return }
            try await environment.hosts.put(record)
            reported = record
        } catch {
            logger.warning("cannot report this host", metadata: ["error": "\(error)"])
        }
    }

    /// A commit pauses the guest for a moment: that must not make the record change all the time.
    private func steady(_ domain: DomainSummary) -> DomainSummary {
        var domain = domain
        let isPaused = domain.state == DomainState.paused.rawValue
        if isPaused, runtimes[PairName(domain.name)]?.driver != nil {
            domain.state = DomainState.running.rawValue
        }
        return domain
    }

    /// Tells what has happened; it is written in its turn, and nobody waits for that.
    func emit(
        _ kind: ClusterEvent.Kind, _ message: String, pair: PairName?,
        reason: EventReason? = nil, figures: [String: Double] = [:]
    ) {
        logger.notice("\(message)", metadata: ["event": "\(kind.rawValue)"])
        let event = ClusterEvent(
            time: Date().timeIntervalSince1970, kind: kind, host: host, pair: pair,
            message: message, reason: reason, figures: figures)
        if case .dropped = toTell.yield(event) {
            logger.warning("an event is not recorded: too many wait for the store")
        }
    }

    private func writeEvents() async {
        for await event in told {
            do {
                try await environment.store.appendEvent(event)
            } catch {
                logger.warning("cannot record an event", metadata: ["error": "\(error)"])
            }
        }
    }
}

/// This machine's memory.
enum HostMemory {
    /// What the kernel calls available (proc(5), MemAvailable), in bytes.
    static func availableBytes() -> UInt64 {
        guard let text = try? String(contentsOfFile: "/proc/meminfo", encoding: .utf8) else {
            return 0
        }
        for line in text.split(separator: "\n") where line.hasPrefix("MemAvailable:") {
            return (line.split(separator: " ").dropFirst().first.flatMap { UInt64($0) } ?? 0) * 1024
        }
        return 0
    }
}
