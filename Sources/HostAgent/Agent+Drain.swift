import ClusterStore
import ControlAPI
import Foundation
import Hypervisor
import Model
import PairLogic
import Protection

/// Emptying hosts for maintenance.
extension Agent {
    /// After a move that failed, the next try of the same pair is so much later.
    private static let deferNanoseconds: UInt64 = 5_000_000_000

    /// Follows which hosts are out of service.
    func followMaintenance() async {
        for await change in MaintenanceRecords(store: environment.store).watch() {
            guard case .current(let listing) = change else { continue }
            let decoded = MaintenanceRecords.decode(listing)
            for bad in decoded.unreadable {
                logger.error("unreadable maintenance record", metadata: ["key": "\(bad.key)"])
            }
            maintenance = Dictionary(
                uniqueKeysWithValues: decoded.records.map { ($0.record.name, $0.record) })
            poke()
        }
    }

    private func plan(of name: HostName) -> Drain {
        let now = MonotonicClock.nowNanoseconds()
        let deferred = Set(drainDeferred.filter { $0.value > now }.keys)
        return Drain(
            of: name, pairs: records.values.map(\.record),
            parallel: maintenance[name]?.parallel ?? HostMaintenance.parallelDefault,
            deferred: deferred
        ) { hostViews(for: $0) }
    }

    /// This host is to be emptied: begins what is due. Asked after every look at the pairs.
    func drainThisHost() async {
        guard let order = maintenance[host] else {
            drainTold = false
            return
        }
        let plan = plan(of: host)
        if plan.remaining.isEmpty {
            if !drainTold {
                drainTold = true
                emit(.maintenance, "\(host) is drained: nothing of any pair is on it", pair: nil)
            }
            return
        }
        drainTold = false
        for step in plan.steps {
            switch step {
            case .switchOver(let name, let target): await moveAway(name, to: target, order)
            case .replaceSecondary(let name, let target):
                await change(name, .replaceSecondary(host, by: target))
            }
        }
    }

    private func moveAway(_ name: PairName, to target: HostName, _ order: HostMaintenance) async {
        // One that has just failed is not tried again at once, also when this one fails like it.
        drainDeferred[name] = MonotonicClock.nowNanoseconds() + Self.deferNanoseconds
        do {
            _ = try await requestSwitchover(
                name,
                SwitchoverRequest(
                    target: target, requestedBy: "drain of \(host)", reason: order.reason))
        } catch {
            logger.info(
                "drain: a move is not begun", metadata: ["pair": "\(name)", "error": "\(error)"])
        }
    }

    // MARK: - Wishes

    func drain(_ name: HostName, _ request: DrainRequest) async throws -> HostDrainView {
        guard hostRecords[name] != nil else { throw unknownHost(name) }
        let present = maintenance[name]
        let parallel = request.parallel ?? present?.parallel ?? HostMaintenance.parallelDefault
        guard HostMaintenance.parallelRange.contains(parallel) else {
            throw FtvmError(
                .invalidArgument, "\(parallel) moves at a time are out of range",
                advice: "choose \(HostMaintenance.parallelRange.lowerBound) to "
                    + "\(HostMaintenance.parallelRange.upperBound)")
        }
        let there = plan(of: name).remaining
        // One that can move is reason enough to begin; what stays is then shown.
        if !there.isEmpty, there.allSatisfy({ $0.progress == .stuck }) {
            throw FtvmError(
                .failedPrecondition, "host \(name) cannot be drained: nothing on it can move",
                cause: there.map { "\($0.pair): \($0.reason)" }.joined(separator: "; "),
                advice: "bring another host into service, or disable these pairs")
        }
        let order = HostMaintenance(
            name: name, since: present?.since ?? Date().timeIntervalSince1970,
            reason: request.reason.isEmpty ? present?.reason ?? "" : request.reason,
            parallel: parallel)
        try await MaintenanceRecords(store: environment.store).put(order)
        if present == nil {
            let why = request.reason.isEmpty ? "" : ": \(request.reason)"
            emit(.maintenance, "\(name) is being drained\(why)", pair: nil)
        }
        maintenance[name] = order
        poke()
        return try drainView(name)
    }

    func undrain(_ name: HostName) async throws -> HostDrainView {
        guard hostRecords[name] != nil else { throw unknownHost(name) }
        try await MaintenanceRecords(store: environment.store).delete(name)
        if maintenance[name] != nil {
            emit(.maintenance, "\(name) is in service again", pair: nil)
        }
        maintenance[name] = nil
        // Moves that the drain has asked for and that have not begun are not wanted any more.
        for (pair, record) in records
        where record.record.switchover?.requestedBy == "drain of \(name)" {
            _ = try? await cancelSwitchover(pair)
        }
        poke()
        return try drainView(name)
    }

    func drainView(_ name: HostName) throws -> HostDrainView {
        guard hostRecords[name] != nil else { throw unknownHost(name) }
        let state = name == host ? .online : detector.states[name] ?? .suspect
        var remaining = plan(of: name).remaining
        if state != .online {
            // Nobody there carries anything out.
            for index in remaining.indices where remaining[index].progress == .waiting {
                remaining[index].reason += "; \(name) is \(state.rawValue)"
            }
        }
        return HostDrainView(
            host: name, state: state, maintenance: maintenance[name], remaining: remaining)
    }
}
