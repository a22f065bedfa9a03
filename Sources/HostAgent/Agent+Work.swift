import ClusterStore
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
    private func fresh(_ name: PairName) async throws -> PairRecord {
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
        await progress(name, "reserving the segment")
        let reference = try await reserveSegment(record, domain)
        let segment = try environment.openSegment(reference, access: .write)
        try await environment.pairs.update(name) {
            $0.segment = reference
            $0.liveXML = domain.liveXML
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
            driver = try await worker.takeOver(record, domain, segment: segment) { told.yield($0) }
        } catch {
            await teller.value
            throw error
        }
        // The last word on progress is written before anybody can say that all is done.
        await teller.value
        try begin(driver, record)
        await tellLibvirt(record, .primary)
    }

    /// Makes the pair's segment, or finds the one in which the running guest's memory already is.
    private func reserveSegment(
        _ record: PairRecord, _ domain: PairWorker.RunningDomain
    ) async throws -> SegmentReference {
        let poolName = record.options.pool ?? environment.configuration.pools[0].name
        let pool = try environment.pool(poolName)
        let reference = SegmentReference(pool: poolName, name: record.uuid)
        if let old = record.segment {
            let oldPool = try environment.pool(old.pool)
            if try worker.runsOnSegment(domain, old) { return old }
            try await blocking { _ = try oldPool.removeSegment(name: old.name) }
        }
        let specification = SegmentSpecification(
            name: record.uuid, uuid: record.uuid, memoryBytes: record.memoryBytes,
            undoLogBytes: record.options.undoLogBytes, numaNodes: record.options.numaNodes,
            generation: record.generation)
        try await blocking {
            try pool.removeStaleCreations()
            // One without a record's word for it is left from a death right here.
            try pool.removeSegment(name: specification.name)
            _ = try pool.createSegment(specification)
        }
        return reference
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
        await emit(.adopted, "\(name) goes on under the ftvmd of \(host)", pair: name)
    }

    /// The driver is ours now and commits.
    private func begin(_ driver: PrimaryDriver, _ record: PairRecord) throws {
        let runtime = runtime(of: record.name)
        let name = record.name
        runtime.driver = driver
        runtime.driverFailure = nil
        runtime.guestEnded = false
        runtime.endedByUs = false
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
        guard let runtime = runtimes[name], runtime.driver != nil else { return }
        switch end {
        case .stopped: return
        case .fenced(let error): runtime.driverFailure = error
        case .hung(let error), .lost(let error):
            // Its end shows in the process. One that is still there was slow, or has lost only its monitor (libvirt's
            // daemon was restarted, say): it is adopted anew after a pause, unless it is ended before.
            if runtime.driver?.process.isRunning == true {
                runtime.driverFailure = error
                runtime.note(failure: error, nowNanoseconds: MonotonicClock.nowNanoseconds())
            }
        }
        logger.warning("epochs ended", metadata: ["pair": "\(name)", "end": "\(end)"])
        poke()
    }

    func handOver(_ name: PairName) async throws {
        let runtime = runtime(of: name)
        guard let driver = runtime.driver else { return }
        runtime.endedByUs = true
        do {
            try await blocking { try driver.commitAndStayStopped() }
        } catch {
            // The guest may stand still, or its epochs have ended: whoever adopts it puts both right.
            runtime.forgetQEMU()
            throw error
        }
        try await worker.destroy(name)
        runtime.forgetQEMU()
    }

    // MARK: - Secondary

    func makeSecondary(_ name: PairName) async throws {
        let record = try await fresh(name)
        guard record.secondary == host || record.promoting == host else { return }
        let runtime = runtime(of: name)
        runtime.endedByUs = true
        runtime.secondary = try await worker.makeSecondary(record)
        runtime.endedByUs = false
        if record.promoting == nil {
            await emit(.secondaryStarted, "\(name) has a waiting QEMU on \(host)", pair: name)
        }
    }

    func promote(_ name: PairName, _ generation: Generation) async throws {
        let runtime = runtime(of: name)
        let record = try await fresh(name)
        guard record.promoting == host, record.generation == generation,
            let secondary = runtime.secondary
        else { return }
        do {
            let (driver, report) = try await worker.promote(record, secondary)
            runtime.secondary = nil
            try begin(driver, record)
            await tellPromotion(name, generation, report)
            // Here and not after another look: until then nobody makes a new secondary.
            await change(name, .reportPromoted)
            await tellLibvirt(record, .primary)
        } catch {
            // Half-promoted, it is of no use: a fresh one begins from the same commit.
            runtime.endedByUs = true
            runtime.forgetQEMU()
            try? await worker.destroy(name)
            throw error
        }
    }

    private func tellPromotion(
        _ name: PairName, _ generation: Generation, _ report: PromotionReport
    ) async {
        func milliseconds(_ nanoseconds: UInt64) -> Double {
            (Double(nanoseconds) / 10_000).rounded() / 100
        }
        await emit(
            .fenced, "the old primary of \(name) is gone: its lock was free", pair: name)
        await emit(
            .guestRunning,
            "\(name) runs on \(host) from epoch \(report.rollback.commit.epoch), \(milliseconds(report.totalNanoseconds)) ms after the promotion began",
            pair: name,
            figures: [
                "generation": Double(generation.number),
                "rollbackPages": Double(report.rollback.distinctPages),
                "lockMilliseconds": milliseconds(report.lockNanoseconds),
                "rollbackMilliseconds": milliseconds(report.rollbackNanoseconds),
                "injectionMilliseconds": milliseconds(report.injectionNanoseconds),
                "protectionMilliseconds": milliseconds(report.protectionNanoseconds),
                "loadMilliseconds": milliseconds(report.loadNanoseconds),
                "resumeMilliseconds": milliseconds(report.resumeNanoseconds),
                "promotionMilliseconds": milliseconds(report.totalNanoseconds),
            ])
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
        try await worker.restoreDefinition(record)
        if let reference = record.segment {
            let pool = try environment.pool(reference.pool)
            try await blocking { _ = try pool.removeSegment(name: reference.name) }
        }
        try await environment.store.delete(statisticsKey(name), expecting: .any)
        await change(name, .finishDisable)
    }

    /// A pair's definition goes with its primary. One that stayed behind on a host that died, and came back, would be an
    /// invitation to start the guest twice. Only ours goes: it carries the pair's facts.
    func removeStaleDefinition(of name: PairName) async {
        guard let record = records[name]?.record, record.primary != host, record.promoting == nil,
            record.state == .protected || record.state == .needSecondary,
            runtimes[name]?.work == nil
        else { return }
        let identifier = DomainIdentifier.name(name.text)
        do {
            let definition = try DomainXML(try await environment.libvirt.inactiveXML(identifier))
            guard definition.pairFacts != nil, definition.uuid == record.uuid else { return }
            try await environment.libvirt.undefine(identifier)
            logger.notice("stale definition removed", metadata: ["pair": "\(name)"])
        } catch {
            logger.warning("stale definition stays", metadata: ["error": "\(error)"])
        }
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
