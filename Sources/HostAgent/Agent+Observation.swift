import Foundation
import Hypervisor
import MemoryPool
import Model
import PairLogic
import Protection

/// What this host sees of a pair, freshly looked at.
extension Agent {
    func situation(of pair: PairName) async -> PairSituation {
        let runtime = runtime(of: pair)
        let record = records[pair]?.record
        let (segment, segmentGone) = look(at: record?.segment, runtime)
        let (lock, isOurs) = lockState(runtime, segment, record)
        let local = await observe(runtime, record, segment, ourQEMUHasTheLock: isOurs)
        return PairSituation(
            pair: pair, record: record, me: host, hosts: hostViews(for: pair), local: local,
            primaryLock: lock, segmentPresent: segment != nil,
            segmentGone: segmentGone,
            segmentPosition: segment?.position, fencing: cluster.fencing,
            claimIsFromBefore: record?.promoting == host && runtime.claimed != record?.generation)
    }

    func runtime(of pair: PairName) -> PairRuntime {
        if let known = runtimes[pair] { return known }
        let runtime = PairRuntime(name: pair)
        runtimes[pair] = runtime
        return runtime
    }

    /// - Parameter pair: whose recent failures count; nil for a pair that is not there yet.
    func hostViews(for pair: PairName? = nil) -> [HostName: PairLogic.HostView] {
        let now = MonotonicInstant(nanoseconds: MonotonicClock.nowNanoseconds())
        var views: [HostName: PairLogic.HostView] = [:]
        let states = detector.states
        let placed = records.values.map(\.record)
        for (name, record) in hostRecords {
            views[name] = PairLogic.HostView(
                state: name == host ? .online : states[name] ?? .suspect, pools: record.pools,
                memoryAvailableBytes: record.memoryAvailableBytes,
                maintenance: maintenance[name] != nil,
                pairs: placed.count { $0.primary == name || $0.secondary == name },
                recentFailure: pair.flatMap { recentFailures.reason($0, name, at: now) })
        }
        if views[host] == nil {
            views[host] = PairLogic.HostView(
                state: .online, pools: environment.pools.map(\.name),
                memoryAvailableBytes: HostMemory.availableBytes())
        }
        return views
    }

    private func observe(
        _ runtime: PairRuntime, _ record: PairRecord?, _ segment: Segment?,
        ourQEMUHasTheLock: Bool
    ) async -> LocalObservation {
        var local = LocalObservation(guestEnded: runtime.guestEnded, work: runtime.work)
        // Long work changes what is here under our feet: whoever decides must wait for its end.
        guard runtime.work == nil else {
            local.qemu = .unknown
            return local
        }
        let now = MonotonicClock.nowNanoseconds()
        if let failure = runtime.failure, now < runtime.retryAtNanoseconds {
            local.driver = .failed(failure)
        }
        if let driver = runtime.driver {
            local.domainPresent = true
            return observeDriver(runtime, driver, local, now)
        }
        if let secondary = runtime.secondary {
            local.domainPresent = true
            guard secondary.process.isRunning else {
                runtime.forgetQEMU()
                return local
            }
            local.qemu = .waiting
            if case .failed = local.driver { return local }
            let isFit = segment.map { secondary.isMade(for: $0) } ?? true
            local.driver = isFit ? .running : .none
            return local
        }
        if now < runtime.reasonDueAtNanoseconds {
            local.qemu = .unknown
            return local
        }
        if let record, record.primary == host, record.isUnderProtection, runtime.guestEnded {
            // libvirt is not asked: it may be waiting for this to be recorded, before it starts the domain again.
            local.qemu = .none
            return local
        }
        guard record != nil || runtime.domain != nil else { return local }
        return await observeDomain(
            runtime, local, record, ourQEMUHasTheLock: ourQEMUHasTheLock)
    }

    private func observeDriver(
        _ runtime: PairRuntime, _ driver: PrimaryDriver, _ observation: LocalObservation,
        _ now: UInt64
    ) -> LocalObservation {
        var local = observation
        guard driver.process.isRunning, !runtime.isEnding else {
            // A guest that shuts down, and a user who ends it, make QEMU say so before it goes. libvirt knows which it
            // was, but says it only a while later; of a QEMU that went without a word nothing more is to be learnt.
            let isSilent = driver.wentWithoutAWord()
            // The log's last entries were written by our tracker: it ends before anybody is told.
            runtime.forgetQEMU()
            let isClear = runtime.endedByUs || runtime.guestEnded || isSilent
            runtime.reasonDueAtNanoseconds = isClear ? 0 : now + 1_000_000_000
            local.qemu = runtime.reasonDueAtNanoseconds == 0 ? .none : .unknown
            return local
        }
        if let failure = runtime.driverFailure, failure.code != .conflict,
            now >= runtime.retryAtNanoseconds
        {
            // Without its driver it is found and adopted like after a restart of ftvmd.
            runtime.forgetQEMU()
            local.qemu = .unknown
            return local
        }
        local.qemu = .running
        local.driver = runtime.driverFailure.map { .failed($0) } ?? .running
        return local
    }

    /// No driver, no secondary of ours: asks libvirt, once until something changes. A QEMU that holds the primary lock is
    /// not asked itself: until its tracker has been adopted, its main thread may be waiting for a page.
    private func observeDomain(
        _ runtime: PairRuntime, _ observation: LocalObservation, _ record: PairRecord?,
        ourQEMUHasTheLock: Bool
    ) async -> LocalObservation {
        var local = observation
        let name = runtime.name.text
        do {
            if runtime.domain == nil {
                runtime.domain = .init(
                    status: try await environment.libvirt.find(.name(name)), runState: nil)
            }
            let isActive = runtime.domain?.status?.isActive == true
            local.domainPresent = runtime.domain?.status != nil
            guard isActive else {
                local.qemu = .none
                return local
            }
            if ourQEMUHasTheLock, let record {
                // Without a commit of its own it is half taken over, or half promoted.
                let isTakenOver = record.primary == host && record.promoting == nil
                local.qemu = isTakenOver || lastCommitIsOf(record) ? .running : .waiting
                return local
            }
            if runtime.domain?.runState == nil {
                struct State: Decodable { let status: String }
                runtime.domain?.runState = try await environment.libvirt.monitorCommand(
                    .name(name), "query-status"
                ).decode(State.self).status
            }
        } catch {
            local.qemu = .unknown
            return local
        }
        switch runtime.domain?.runState {
        case "inmigrate": local.qemu = .waiting
        case "running": local.qemu = .running
        case nil: local.qemu = .unknown
        default: local.qemu = .paused
        }
        return local
    }

    /// Whether the segment's last commit was made under the record's generation: then the QEMU that holds the
    /// lock is a whole primary.
    private func lastCommitIsOf(_ record: PairRecord) -> Bool {
        guard let segment = look(at: record.segment, runtime(of: record.name)).segment,
            let commit = try? segment.latestCommit()
        else { return false }
        return commit.generation == record.generation
    }

    /// The segment, mapped anew for each look: one that was removed and made again must not be seen through an
    /// old mapping. Costs some 50 us, and nothing while this host has the primary.
    /// - Returns: also whether it is gone: the pool is here, and the segment is not in it.
    func look(
        at reference: SegmentReference?, _ runtime: PairRuntime
    ) -> (segment: Segment?, isGone: Bool) {
        if let driver = runtime.driver { return (driver.segment, false) }
        guard let reference else { return (nil, false) }
        do {
            let segment = try environment.presentSegment(reference)
            return (segment, segment == nil)
        } catch {
            return (nil, false)
        }
    }

    /// The primary lock, and whether it is this host's QEMU of the pair that holds it.
    private func lockState(
        _ runtime: PairRuntime, _ segment: Segment?, _ record: PairRecord?
    ) -> (state: PrimaryLockState, isOurs: Bool) {
        guard let record, record.segment != nil else { return (.free, false) }
        if runtime.driver != nil { return (.heldHere, true) }
        guard let segment else { return (.unknown, false) }
        guard let isHeld = try? segment.isLocked(.primary) else { return (.unknown, false) }
        guard isHeld else {
            // Whoever wrote the log and the commits must be gone as well: the ftvmd of a host that dies may end some
            // milliseconds after its QEMU.
            guard let isManaged = try? segment.isLocked(.manager) else { return (.unknown, false) }
            return (isManaged ? .held : .free, false)
        }
        guard let process = try? QEMUProcess.find(domain: record.name.text, uuid: record.uuid)
        else { return (.held, false) }
        guard let descriptor = try? segment.openLock() else { return (.unknown, false) }
        defer { close(descriptor) }
        if process.descriptors(ofSameFileAs: descriptor).isEmpty { return (.held, false) }
        // A take-over that was interrupted has the lock and nothing to go on from: it is begun anew.
        let isInterrupted = record.promoting != host && !lastCommitIsOf(record)
        return (isInterrupted ? .held : .heldHere, true)
    }
}
