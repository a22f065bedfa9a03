import ClusterStore
import ControlAPI
import Foundation
import MemoryPool
import Model
import PairLogic
import Protection

/// Planned moves, as the source and as the target.
extension Agent {
    /// How long the source waits for the target's claim before it tells everybody that its primary is gone.
    private static let claimPatience = Duration.milliseconds(1_500)

    // MARK: - Source

    func handOver(_ name: PairName) async throws {
        let runtime = runtime(of: name)
        guard let driver = runtime.driver else { return }
        // Read now: the wish may have been taken back.
        let record = try await fresh(name)
        guard record.primary == host, record.promoting == nil, !record.primaryLost,
            record.secondaryReady, let switchover = record.switchover, switchover.armed,
            record.secondary == switchover.target, record.desired == .protected
        else { return }
        runtime.endedByUs = true
        let report: HandOverReport
        do {
            report = try await worker.handOver(driver)
        } catch {
            // The guest may stand still, or its epochs have ended: whoever adopts it puts both right.
            runtime.endedByUs = false
            runtime.forgetQEMU()
            let reason = "the last commit on \(host) failed: \(FtvmError(ours: error).message)"
            await change(name, .endSwitchover(.failed, reason: reason))
            throw error
        }
        runtime.driver = nil
        runtime.forgetQEMU()
        tellHandOver(name, switchover, report)
        if cluster.fencing.lockTells(of: switchover.target) {
            await claimed(name)
        } else if report.releasedEarly {
            // The target sees no lock of ours: our word is what it waits for.
            await change(name, .reportPrimaryLost(reason: "handed over by \(host)"))
        }
        // libvirt's side; nobody waits for it.
        try await worker.destroy(name)
    }

    private func tellHandOver(
        _ name: PairName, _ switchover: Switchover, _ report: HandOverReport
    ) {
        emit(
            .handedOver,
            "\(name) has made its last commit on \(host) and is handed over to "
                + "\(switchover.target), \(milliseconds(report.totalNanoseconds)) ms after its stop",
            pair: name,
            figures: [
                "lastCommitMilliseconds": milliseconds(report.lastCommitNanoseconds),
                "endMilliseconds": milliseconds(report.endNanoseconds),
                "releaseMilliseconds": milliseconds(report.releaseNanoseconds),
                "handOverMilliseconds": milliseconds(report.totalNanoseconds),
            ])
    }

    /// Waits a moment for somebody's claim. Without it the record would have to be changed twice, and the target's
    /// compare-and-swap might lose against ours.
    private func claimed(_ name: PairName) async {
        let deadline = ContinuousClock.now + Self.claimPatience
        while ContinuousClock.now < deadline {
            guard let record = records[name]?.record, record.primary == host,
                record.promoting == nil, !record.primaryLost, record.switchover != nil
            else { return }
            try? await Task.sleep(for: .milliseconds(10))
        }
    }

    // MARK: - Target

    /// Everything ready, the lock watched; then the claim and the promotion at once.
    func awaitHandOver(_ name: PairName) async throws {
        let runtime = runtime(of: name)
        guard runtime.secondary != nil, let reference = records[name]?.record.segment else {
            return
        }
        let segment = try environment.openSegment(reference, access: .write)
        await change(name, .armSwitchover)
        guard let armed = records[name]?.record, armed.switchover?.armed == true else { return }
        FaultPoint.reached("switchover.armed")
        guard cluster.fencing.lockTells(of: armed.primary) else {
            // Between machines the source's word is what tells; then the ordinary rules decide.
            while awaitsHandOver(name) { try await Task.sleep(for: .milliseconds(5)) }
            return
        }
        let wait = LockWait()
        let watcher = Task {
            while !Task.isCancelled, self.awaitsHandOver(name) {
                try? await Task.sleep(for: .milliseconds(20))
            }
            wait.giveUp()
        }
        let isFree = try await blocking { try wait.untilFree(segment) }
        watcher.cancel()
        let noticed = MonotonicClock.nowNanoseconds()
        // Ended in another way, by the guest's own shutdown for example: the ordinary rules decide.
        guard isFree, segment.flags.contains(.pausedByCommit),
            let next = records[name]?.record.nextGeneration
        else { return await change(name, .disarmSwitchover) }
        await change(name, .claimPromotion(next))
        guard let record = records[name]?.record, record.promoting == host,
            record.generation == next
        else { return }
        FaultPoint.reached("switchover.claimed")
        runtime.work = .promoting
        let claimed = MonotonicClock.nowNanoseconds()
        try await promote(name, record, claimNanoseconds: claimed - noticed)
    }

    private func awaitsHandOver(_ name: PairName) -> Bool {
        guard let record = records[name]?.record else { return false }
        return PairSituation(
            pair: name, record: record, me: host, hosts: hostViews(for: name),
            local: LocalObservation(), primaryLock: .unknown, segmentPresent: true,
            segmentPosition: nil
        ).awaitsHandOver
    }

    // MARK: - Wishes

    func requestSwitchover(
        _ name: PairName, _ request: SwitchoverRequest
    ) async throws -> PairRecord {
        if let target = request.target { try requireFit(target, for: name) }
        let id = UUID().uuidString
        let record = try await update(name) { record throws(FtvmError) in
            if let refusal = record.refusal(ofSwitchoverTo: request.target) { throw refusal }
            guard let target = request.target ?? record.secondary else {
                throw FtvmError(.internalError, "pair \(name) has a ready secondary nowhere")
            }
            record.switchover = Switchover(
                id: id, target: target, requestedBy: request.requestedBy, reason: request.reason)
        }
        if let switchover = record.switchover {
            let why = switchover.reason.isEmpty ? "" : ": \(switchover.reason)"
            emit(
                .switchoverRequested,
                "\(name) is to move to \(switchover.target) (\(switchover.requestedBy)\(why))",
                pair: name)
        }
        poke()
        return record
    }

    /// The host could have the pair's primary, as far as anybody can tell.
    private func requireFit(_ target: HostName, for name: PairName) throws {
        guard hostRecords[target] != nil else { throw unknownHost(target) }
        guard let record = records[name]?.record else { return }
        let views = hostViews(for: name).filter { $0.key == target }
        let placement = Placement(PlacementNeed(pool: record.segment?.pool), hosts: views)
        guard let refusal = placement.rejected.first, target != record.primary else { return }
        throw FtvmError(
            .failedPrecondition, "pair \(name) cannot be moved to \(target)",
            cause: "\(target): \(refusal.reason)", advice: "see 'ftvm hosts'")
    }

    func cancelSwitchover(_ name: PairName) async throws -> PairRecord {
        let record = try await update(name) { record throws(FtvmError) in
            if let promoting = record.promoting, record.switchover != nil {
                throw FtvmError(
                    .failedPrecondition, "the switchover of \(name) cannot be cancelled any more",
                    cause: "\(promoting) is being promoted", advice: "it is over in a moment")
            }
            guard record.cancelSwitchover("by a user") else {
                throw FtvmError(
                    .failedPrecondition, "pair \(name) is not being switched over",
                    advice: "see 'ftvm status \(name)'")
            }
        }
        emit(.refused, "the switchover of \(name) is cancelled by a user", pair: name)
        poke()
        return record
    }
}

/// In milliseconds with two digits after the point, as events have them.
func milliseconds(_ nanoseconds: UInt64) -> Double {
    (Double(nanoseconds) / 10_000).rounded() / 100
}
