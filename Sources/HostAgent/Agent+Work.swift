import ClusterStore
import DiskLog
import Foundation
import Glibc
import Hypervisor
import MemoryPool
import Model
import PairLogic
import Protection

/// The long work on pairs. Every function may be repeated after a death at any point in it.
extension Agent {
    /// The pair's record, read now: what is decided on may be older.
    func fresh(_ name: PairName) async throws -> PairRecord {
        guard let present = try await environment.pairs.read(name) else {
            throw FtvmError(.notFound, "there is no pair \(name)")
        }
        remember(present)
        return present.record
    }

    private func progress(_ name: PairName, _ step: String, _ percent: Int? = nil) async {
        let progress = PairProgress(step: step, percent: percent)
        _ = try? await environment.pairs.update(name) { $0.progress = progress }
    }

    // MARK: - Primary

    func enable(_ name: PairName) async throws {
        let record = try await fresh(name)
        guard record.primary == host, record.desired == .protected, record.state == .starting else {
            return
        }
        let domain = try await worker.runningDomain(record)
        try await worker.abandonTakeOver(record, domain)
        // Devices may have been added since the pair was made.
        try DomainXML(domain.liveXML).requireProtectable()
        await progress(name, "reserving the segment")
        let (reference, layout, object) = try await reserveSegment(record, domain)
        let segment = try environment.openSegment(reference, access: .write)
        let memory = try GuestMemory(domain.blocks, layout: layout)
        // As they are in the XML that a secondary is made of: what is added from here on is a change.
        let devices = SeenDevices(
            generation: record.generation, lines: try DomainXML(domain.liveXML).deviceLines)
        try await environment.pairs.update(name) {
            $0.segment = reference
            $0.ramLayout = layout
            $0.liveXML = domain.liveXML
            $0.devices = devices
            $0.progress = PairProgress(step: "moving memory into the pool", percent: 0)
        }
        let (steps, told) = AsyncStream<PrimaryDriver.TakeOverStep>.makeStream(
            bufferingPolicy: .bufferingNewest(1))
        let teller = Task {
            for await step in steps {
                switch step {
                case .copyingMemory(let percent):
                    await self.progress(name, "moving memory into the pool", percent)
                case .switching: await self.progress(name, "switching over to the pool")
                }
            }
        }
        let driver: PrimaryDriver
        do {
            defer { told.finish() }
            driver = try await worker.takeOver(
                record, domain, segment: segment, memory: memory, object: object
            ) { told.yield($0) }
        } catch {
            await teller.value
            throw error
        }
        // The last word on progress is written before anybody can say that all is done.
        await teller.value
        try begin(driver, record)
        tellTakeOver(name, driver)
        await tellLibvirt(record, .primary)
    }

    private func tellTakeOver(_ name: PairName, _ driver: PrimaryDriver) {
        guard let figures = driver.takeOver else { return }
        let stopped = milliseconds(figures.stoppedNanoseconds)
        let what =
            figures.place == .elsewhere
            ? "was moved into the pool" : "was adopted where it is"
        emit(
            .adopted, "the memory of \(name) \(what); the guest stood still for \(stopped) ms",
            pair: name, figures: ["stoppedMilliseconds": stopped])
    }

    /// Makes the pair's segment, or finds the one in which the running guest's memory already is.
    /// - Returns: also the shared memory that the guest's has to be moved out of, if there is any.
    private func reserveSegment(
        _ record: PairRecord, _ domain: PairWorker.RunningDomain
    ) async throws -> (SegmentReference, RAMLayout, MemoryObject?) {
        let poolName = record.options.pool ?? environment.configuration.pools[0].name
        let pool = try environment.pool(poolName)
        let layout = try RAMLayout(
            domain.blocks, mainBytes: record.memoryBytes,
            pageSizeBytes: UInt64(pool.pageSizeBytes))
        let reference = SegmentReference(pool: poolName, name: record.uuid)
        if let old = record.segment {
            let oldPool = try environment.pool(old.pool)
            if try worker.runsOnSegment(domain, old, isForItsBlocks: record.ramLayout == layout) {
                return (old, record.ramLayout ?? layout.mainOnly, nil)
            }
            try await worker.settleDisksOrSay(record)
            try await blocking { _ = try oldPool.removeSegment(name: old.name) }
            FaultPoint.reached("enabling.old-segment-removed")
        }
        let object = try MemoryObject.behind(
            GuestMemory.mainBlock(among: domain.blocks, expectedBytes: record.memoryBytes),
            of: domain.process)
        let live = try DomainXML(domain.liveXML)
        let diskLog = try worker.diskLog(
            live.guestDisks, uuid: record.uuid, options: record.options,
            generation: record.generation, pageSizeBytes: pool.pageSizeBytes)
        var specification = SegmentSpecification(
            name: record.uuid, uuid: record.uuid, memoryBytes: layout.totalBytes,
            undoLogBytes: record.options.undoLogBytes, stateSlotBytes: live.deviceStateBytes,
            numaNodes: record.options.numaNodes,
            generation: record.generation)
        // Where it is, unless it is wanted on other nodes of the machine.
        let staysThere =
            try record.options.numaNodes.isEmpty
            && object.map { try pool.canAdopt($0.descriptor, bytes: $0.bytes) } ?? false
        if staysThere, let object { specification.objectBytes = object.bytes }
        if let object, !staysThere { try object.requireMovable(into: pool) }
        specification.diskLogFileBytes = try diskLog?.fileBytes ?? 0
        let wanted = specification
        try await blocking {
            try pool.removeStaleCreations()
            // One without a record's word for it is left from a death right here.
            try pool.removeSegment(name: wanted.name)
            _ = try pool.createSegment(
                wanted, adopting: staysThere ? object?.descriptor : nil
            ) { descriptor in
                if let diskLog { try DiskLogFile.create(in: descriptor, diskLog) }
            }
        }
        return (reference, layout, staysThere ? nil : object)
    }

    func adopt(_ name: PairName) async throws {
        let record = try await fresh(name)
        guard let reference = record.segment else {
            throw FtvmError(.internalError, "the record of \(name) names no segment")
        }
        let segment = try environment.openSegment(reference, access: .write)
        let driver = try await worker.adopt(record, segment: segment)
        try begin(driver, record)
        try await environment.pairs.update(name) { $0.lastError = nil }
        emit(.adopted, "\(name) goes on under the ftvmd of \(host)", pair: name)
    }

    /// The driver is ours now and commits.
    private func begin(_ driver: PrimaryDriver, _ record: PairRecord) throws {
        let runtime = runtime(of: record.name)
        let name = record.name
        runtime.driver = driver
        runtime.driverFailure = nil
        runtime.guestEnded = false
        runtime.endedByUs = false
        runtime.watch = ProcessWatch(driver.process) { [weak self] in self?.poke(name) }
        do {
            try driver.startEpochs(
                maximumMilliseconds: record.options.epochMaximumMilliseconds
            ) { [weak self] end in
                guard let self else { return }
                Task { await self.epochsEnded(name, end) }
            }
        } catch {
            runtime.forgetQEMU()
            throw error
        }
    }

    private func epochsEnded(_ name: PairName, _ end: EpochLoop.End) {
        guard let runtime = runtimes[name], let driver = runtime.driver else { return }
        switch end {
        case .stopped: return
        case .fenced(let error): runtime.driverFailure = error
        case .lost where driver.process.isEnding && !driver.process.mayHaveDirectIO:
            runtime.isEnding = true
        case .lost(let error):
            // A process that ends shows it only some milliseconds later; its watch tells.
            Task {
                try? await Task.sleep(for: .milliseconds(200))
                self.monitorLost(name, driver, error)
            }
        case .hung(let error): monitorLost(name, driver, error)
        }
        logger.warning("epochs ended", metadata: ["pair": "\(name)", "end": "\(end)"])
        poke(name)
    }

    private func monitorLost(_ name: PairName, _ driver: PrimaryDriver, _ error: FtvmError) {
        guard let runtime = runtimes[name], runtime.driver === driver,
            runtime.driverFailure == nil
        else { return }
        // One that is still there was slow, or has lost only its monitor (libvirt's daemon was restarted, say): it is
        // adopted anew after a pause, unless it is ended before.
        if driver.process.isRunning {
            runtime.driverFailure = error
            runtime.note(failure: error, nowNanoseconds: MonotonicClock.nowNanoseconds())
        }
        poke(name)
    }

    /// A primary whose QEMU answers nothing any more, although a secondary could go on, is ended. Its epochs' own
    /// call would wait longer; and where nobody could go on, it may.
    func lookForHangs() {
        let limit = UInt64(environment.configuration.hangTimeoutMilliseconds) * 1_000_000
        for (name, runtime) in runtimes {
            guard let driver = runtime.driver, runtime.driverFailure == nil,
                runtime.work == nil, !runtime.isProbed, let record = records[name]?.record,
                record.secondaryReady, record.primary == host,
                record.secondary.map({ detector.states[$0] == .online }) ?? false
            else { continue }
            guard let last = driver.lastCommitNanoseconds else { continue }
            let age = MonotonicClock.nowNanoseconds() &- last
            guard age > limit else { continue }
            runtime.isProbed = true
            Task {
                let answers = await (try? blocking { driver.answersMonitor() }) ?? true
                self.judge(name, driver, answers, age)
            }
        }
    }

    private func judge(
        _ name: PairName, _ driver: PrimaryDriver, _ answers: Bool, _ age: UInt64
    ) {
        guard let runtime = runtimes[name] else { return }
        runtime.isProbed = false
        guard !answers, runtime.driver === driver, runtime.driverFailure == nil,
            runtime.work == nil, driver.process.isRunning
        else { return }
        let error = FtvmError(
            .timedOut, "the QEMU of \(name) on \(host) hangs",
            cause: "its last commit was \(age / 1_000_000) ms ago, and its monitor does not answer",
            advice: "'hang_timeout_milliseconds' in ftvmd's configuration says how long it may")
        runtime.driverFailure = error
        runtime.note(failure: error, nowNanoseconds: MonotonicClock.nowNanoseconds())
        emit(.failed, "\(error)", pair: name)
        poke(name)
    }

    // MARK: - Secondary

    func makeSecondary(_ name: PairName) async throws {
        let record = try await fresh(name)
        guard record.secondary == host || record.promoting == host else { return }
        let runtime = runtime(of: name)
        runtime.endedByUs = true
        runtime.forgetQEMU()
        let secondary = try await worker.makeSecondary(record)
        runtime.secondary = secondary
        guard let present = try? await fresh(name), present.liveXML == record.liveXML else {
            // The pair is gone, or was enabled anew meanwhile, with other devices.
            runtime.forgetQEMU()
            return try await worker.destroy(name)
        }
        runtime.endedByUs = false
        runtime.watch = ProcessWatch(secondary.process) { [weak self] in self?.poke(name) }
        if record.promoting == nil {
            emit(.secondaryStarted, "\(name) has a waiting QEMU on \(host)", pair: name)
        }
    }

    /// For so long after a promotion nothing is begun that can wait, a new secondary and what people are told: clients
    /// have been waiting, and the guest answers all of them now, on caches that are cold.
    private static let quietNanoseconds: UInt64 = 250_000_000

    func promote(_ name: PairName, _ generation: Generation) async throws {
        let runtime = runtime(of: name)
        let record = try await fresh(name)
        guard record.promoting == host, record.generation == generation, runtime.secondary != nil
        else { return }
        try await promote(name, record, claimNanoseconds: nil)
    }

    /// - Parameter claimNanoseconds: how long the claim took, where it was made in the same go.
    func promote(_ name: PairName, _ record: PairRecord, claimNanoseconds: UInt64?) async throws {
        let runtime = runtime(of: name)
        guard let secondary = runtime.secondary else { return }
        do {
            let (driver, report, releasedTooFar) = try await worker.promote(record, secondary)
            runtime.secondary = nil
            try begin(driver, record)
            var more: [String: Double] = [:]
            more["claimMilliseconds"] = claimNanoseconds.map { milliseconds($0) }
            if driver.gateFigures() != nil {
                more["releasedFramesLost"] = releasedTooFar ? 1 : 0
                more["gateMilliseconds"] = milliseconds(report.gateNanoseconds)
                more["sentFrames"] = Double(report.gate.sentFrames)
                more["replayedFrames"] = Double(report.gate.replayedFrames)
                more["refusedFrames"] = Double(report.gate.refusedFrames)
            }
            tellPromotion(name, record, report, more)
            runtime.quietUntilNanoseconds =
                MonotonicClock.nowNanoseconds() + Self.quietNanoseconds
            // Here and not after another look: until then nobody makes a new secondary.
            await change(name, .reportPromoted)
            Task {
                try? await Task.sleep(for: .nanoseconds(Self.quietNanoseconds))
                await self.tellLibvirt(record, .primary)
                await self.look(at: name)
            }
        } catch {
            // Half-promoted, it is of no use: a fresh one begins from the same commit.
            runtime.endedByUs = true
            runtime.forgetQEMU()
            try? await worker.destroy(name)
            throw error
        }
    }

    private func tellPromotion(
        _ name: PairName, _ record: PairRecord, _ report: PromotionReport,
        _ more: [String: Double]
    ) {
        let figures = [
            "generation": Double(record.generation.number),
            "epoch": Double(report.rollback.commit.epoch.number),
            "rollbackPages": Double(report.rollback.distinctPages),
            "lockMilliseconds": milliseconds(report.lockNanoseconds),
            "rollbackMilliseconds": milliseconds(report.rollbackNanoseconds),
            "injectionMilliseconds": milliseconds(report.injectionNanoseconds),
            "protectionMilliseconds": milliseconds(report.protectionNanoseconds),
            "loadMilliseconds": milliseconds(report.loadNanoseconds),
            "resumeMilliseconds": milliseconds(report.resumeNanoseconds),
            "promotionMilliseconds": milliseconds(report.totalNanoseconds),
            "firstCommitMilliseconds": milliseconds(report.firstCommitNanoseconds),
        ].merging(more) { _, new in new }
        let method = record.primaryGone ?? .primaryLock
        emit(
            .fenced, "the old primary of \(name) is gone: \(method.words)", pair: name,
            reason: .promotion(record.generation, method))
        emit(
            .guestRunning,
            "\(name) runs on \(host) from epoch \(report.rollback.commit.epoch), \(milliseconds(report.totalNanoseconds)) ms after the promotion began",
            pair: name,
            figures: figures)
    }

    func raiseSegmentGeneration(_ name: PairName, _ generation: Generation) async {
        guard let reference = records[name]?.record.segment else { return }
        do {
            let segment = try environment.openSegment(reference, access: .write)
            try segment.raiseGeneration(to: generation)
        } catch {
            logger.info("generation not raised", metadata: ["error": "\(error)"])
        }
    }

    // MARK: - Ending

    func cleanUp(_ name: PairName, _ reason: String) async throws {
        logger.notice("ending a stale QEMU", metadata: ["pair": "\(name)", "reason": "\(reason)"])
        let runtime = runtime(of: name)
        runtime.endedByUs = true
        // QEMU first: a tracker that ends before it would leave its vCPUs waiting, but no harm is done either way.
        if let driver = runtime.driver {
            try await blocking { try driver.process.kill() }
            runtime.forgetQEMU()
            // Here and not after libvirt has looked: somebody may be waiting to go on.
            await change(name, .reportPrimaryLost(reason: reason))
        }
        // Or its supervisor would start the disk server again that goes with it.
        runtime.secondary?.disks?.close(endingPlugin: false)
        try await worker.destroy(name)
        runtime.forgetQEMU()
    }

    func release(_ name: PairName) async throws {
        let runtime = runtime(of: name)
        guard let driver = runtime.driver else { return try await adopt(name) }
        await progress(name, "moving memory out of the pool", 0)
        do {
            try await worker.release(driver) { _ in }
        } catch {
            runtime.forgetQEMU()
            throw error
        }
        runtime.driver = nil
        runtime.forgetQEMU()
    }

    func finishDisable(_ name: PairName) async throws {
        let record = try await fresh(name)
        guard record.state == .disabled, record.primary == host else { return }
        try await worker.resumeReleased(record)
        try await worker.settleDisksOrSay(record)
        let plugin = worker.diskPlugin(name)
        try await blocking { try plugin.end() }
        try await worker.restoreDefinition(record)
        FaultPoint.reached("release.definition-restored")
        if let reference = record.segment {
            let pool = try environment.pool(reference.pool)
            try await blocking { _ = try pool.removeSegment(name: reference.name) }
            FaultPoint.reached("release.segment-removed")
        }
        try await environment.store.delete(statisticsKey(name), expecting: .any)
        try await noteReleased(record)
        FaultPoint.reached("release.noted")
        await change(name, .finishDisable)
    }

    /// Writes the pair's facts, and the definition for the next start, where `virsh` shows them. For people: nothing
    /// is decided by it, so a failure is only logged.
    private func tellLibvirt(_ record: PairRecord, _ role: Role) async {
        do {
            try await worker.describe(record, role)
        } catch {
            logger.warning("cannot write the domain's metadata", metadata: ["error": "\(error)"])
        }
    }
}
