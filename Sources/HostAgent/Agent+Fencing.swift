import ClusterStore
import ConfigurationFiles
import ControlAPI
import Fencing
import Foundation
import Glibc
import Hypervisor
import Model
import PairLogic
import Protection

/// Fences: of others by this host, and of this host by others.
extension Agent {
    private static let writeTries = 16
    /// After it has told the store that all its QEMUs have ended a fenced ftvmd ends as well, and is started anew.
    private static let rejoinStatus: Int32 = 75

    /// The pair's look has found that it cannot go on without these hosts' fences.
    func noteFences(needed hosts: [HostName], by name: PairName) {
        cluster.needs[name] = hosts.isEmpty ? nil : hosts
    }

    // MARK: - Deciding

    func pursueFences() {
        guard cluster.isRegistered else { return }
        let needed = Set(cluster.needs.values.joined())
        for (target, member) in cluster.members where !cluster.writing.contains(target) {
            let record = member.record.fence
            guard record != nil || needed.contains(target) || cluster.plans[target] != nil else {
                continue
            }
            // Whoever is fenced itself fences nobody.
            if cluster.selfFence.isFencedNow, target != host { continue }
            var hosts = detector.states
            for name in cluster.members.keys where hosts[name] == nil { hosts[name] = .suspect }
            hosts[host] = .online
            let situation = FenceSituation(
                me: host, target: target, hosts: hosts, incarnation: member.record.incarnation,
                judgedIncarnation: detector.incarnation(of: target), record: record,
                isNeeded: needed.contains(target), hasSelfFence: member.record.hasSelfFence,
                ownIncarnation: environment.incarnation,
                ownQEMUs: target == host ? ownWriters() : 0)
            for action in FenceDecision.decide(situation) { begin(action, target) }
        }
    }

    /// What may still write to guests' memory or disks on this host, or is about to: QEMUs, disk servers, work that makes them.
    func ownWriters() -> Int { ownQEMUs().count + workThatMakesQEMUs + diskServers().count }

    private var workThatMakesQEMUs: Int {
        runtimes.values.count {
            switch $0.work {
            case .makingSecondary, .promoting, .enabling, .adopting, .awaitingHandOver: true
            default: false
            }
        }
    }

    private func begin(_ action: FenceAction, _ target: HostName) {
        switch action {
        case .rest:
            cluster.plans[target] = nil
        case .pursue:
            pursue(target, .look)
        case .stopGuests:
            cluster.selfFence.fenced()
            stopGuests("it has been fenced")
        case .rejoin: rejoin()
        case .note, .takeOver:
            // Obeyed first, then written.
            cluster.refused[target] = cluster.members[target]?.record.fence?.incarnation
            write(action, target)
        case .mark(let incarnation):
            cluster.refused[target] = incarnation
            write(action, target)
        default:
            write(action, target)
        }
    }

    /// Whoever starts this ftvmd anew (systemd) gives it a new incarnation: there is no other way back.
    private func rejoin() {
        logger.critical("\(host) has been fenced and has ended its guests: it begins anew")
        environment.close()
        _exit(Self.rejoinStatus)
    }

    // MARK: - Writing

    private func write(_ action: FenceAction, _ target: HostName) {
        guard !cluster.writing.contains(target) else { return }
        cluster.writing.insert(target)
        let lease = cluster.members[target]?.record.lease
        Task {
            do {
                try await change(target, action, lease: lease)
            } catch {
                logger.warning(
                    "cannot write of a fence",
                    metadata: ["host": "\(target)", "error": "\(error)"])
                // An unreachable store is not asked again at once.
                try? await Task.sleep(for: .milliseconds(200))
            }
            cluster.writing.remove(target)
            poke()
        }
    }

    /// Swaps what the action does to the fence into the target's membership.
    /// - Parameter lease: as it was when this was decided; nil: whatever it is.
    /// - Returns: the membership afterwards; nil: the action does not fit any more.
    @discardableResult
    func change(
        _ target: HostName, _ action: FenceAction, lease: UInt64?
    ) async throws -> HostMembership? {
        for _ in 0..<Self.writeTries {
            guard let present = try await environment.members.read(target) else { return nil }
            remember(present)
            var member = present.record
            switch action.change(
                to: member.fence, target: target, incarnation: member.incarnation,
                leaseHasMoved: lease.map { $0 != member.lease } ?? false, by: host)
            {
            case .none: return member
            case .outdated:
                if case .prove = action { cluster.plans[target] = nil }
                return nil
            case .delete: member.fence = nil
            case .update(let record, let reason):
                let isNew = member.fence == nil
                member.fence = record
                action.reachFaultPoint(isDone: false)
                guard
                    let revision = try await environment.members.replace(
                        target, present, by: member)
                else { continue }
                action.reachFaultPoint(isDone: true)
                remember(Versioned(record: member, revision: revision))
                tell(record, reason, isNew: isNew)
                return member
            }
            if let revision = try await environment.members.replace(target, present, by: member) {
                remember(Versioned(record: member, revision: revision))
                return member
            }
        }
        throw FtvmError(
            .conflict, "the membership of \(target) is being changed by others without end")
    }

    private func tell(_ record: FenceRecord, _ reason: EventReason?, isNew: Bool) {
        if isNew {
            emit(
                .waitingForFence, "\(host) begins to fence \(record.host)", pair: nil,
                reason: .fenceTried(record.host, level: "", result: record.status))
        }
        guard let reason else { return }
        let message =
            switch reason {
            case .fenceProven(let name, let method):
                "\(name) is fenced (\(method.rawValue)): \(record.detail)"
            default: "waiting for a fence of \(record.host) (\(record.status))"
            }
        emit(reason.kind, message, pair: nil, reason: reason)
    }

    // MARK: - The plan

    private func pursue(_ target: HostName, _ event: FencePlan.Event) {
        guard let member = cluster.members[target]?.record, let record = member.fence,
            record.incarnation == member.incarnation, record.method == nil, record.by == host
        else { return }
        let now = BootClock.now()
        var plan = cluster.plans[target] ?? newPlan(record, member, at: now)
        var actions: [FencePlan.Action] = []
        let hosts = max(environment.cluster.hosts.count, cluster.members.count)
        if member.hasSelfFence, record.notedBy.count >= FenceQuorum.notesNeeded(hosts: hosts) {
            actions += plan.handle(.noted, at: now)
        }
        actions += plan.handle(event, at: now)
        cluster.plans[target] = plan
        for action in actions { carryOut(action, target) }
    }

    private func newPlan(
        _ record: FenceRecord, _ member: HostMembership, at now: MonotonicInstant
    ) -> FencePlan {
        var devices: [String: FenceConfiguration] = [:]
        var levels: [[FencePlan.Device]] = []
        for level in environment.cluster.fenceLevels(of: record.host) {
            var found: [FencePlan.Device] = []
            for device in level {
                let (method, name) = device.method.named
                if method == .libvirt, record.withoutLibvirt { continue }
                // Two of one name, such as two power supplies, are told apart.
                var unique = name
                var number = 2
                while devices[unique] != nil {
                    unique = "\(name) (\(number))"
                    number += 1
                }
                devices[unique] = device
                let milliseconds = UInt64(device.offMilliseconds + device.statusMilliseconds)
                found.append(
                    FencePlan.Device(
                        method: method, name: unique,
                        timeoutNanoseconds: (milliseconds + 1_000) * 1_000_000))
            }
            if !found.isEmpty { levels.append(found) }
        }
        cluster.devices[record.host] = devices
        return FencePlan(
            host: record.host,
            configuration: FencePlan.Configuration(
                levels: levels,
                selfFenceNanoseconds: member.hasSelfFence
                    ? environment.timing.proofNanoseconds : nil), at: now)
    }

    private func carryOut(_ action: FencePlan.Action, _ target: HostName) {
        switch action {
        case .run(let device, let token):
            guard let configuration = cluster.devices[target]?[device.name] else { return }
            logger.notice("fencing", metadata: ["host": "\(target)", "device": "\(device.text)"])
            Task {
                let result = await run(configuration, target)
                pursue(target, .finished(token: token, result))
            }
        // The device has its own time-outs, which end it; what it may still say has an old token.
        case .end: break
        case .proven(let method, let detail):
            writeInTurn(.prove(method, detail: detail), target)
        case .say(let text): writeInTurn(.say(text), target)
        case .roundFailed(let text): writeInTurn(.roundFailed(text), target)
        }
    }

    /// What a plan says is said once, so it waits for a change that is being written.
    private func writeInTurn(_ action: FenceAction, _ target: HostName) {
        Task {
            while cluster.writing.contains(target), cluster.plans[target] != nil {
                try? await Task.sleep(for: .milliseconds(10))
            }
            write(action, target)
        }
    }

    // MARK: - Wishes

    /// Begins a fence that nobody but a user has asked for, or takes a person's word for its proof.
    func fence(_ name: HostName, _ request: FenceHostRequest) async throws -> HostMembership {
        guard let member = try await environment.members.read(name) else {
            throw unknownHost(name)
        }
        remember(member)
        if request.confirmDead {
            try requireDead(name)
            return try await confirmDead(name, member.record, request)
        }
        if member.record.fence?.incarnation == member.record.incarnation { return member.record }
        cluster.refused[name] = member.record.incarnation
        guard
            let fenced = try await change(
                name, .mark(incarnation: member.record.incarnation), lease: nil)
        else {
            throw FtvmError(
                .conflict, "host \(name) has just been started anew", advice: "see 'ftvm hosts'")
        }
        poke()
        return fenced
    }

    /// A person's word counts for a host that nobody hears, and for no other.
    private func requireDead(_ name: HostName) throws {
        let state = name == host ? HostState.online : detector.state(of: name)
        guard let state, state != .dead else { return }
        let heard = detector.ways(
            of: name, at: MonotonicInstant(nanoseconds: MonotonicClock.nowNanoseconds())
        ).filter(\.heard).map(\.way.rawValue)
        throw FtvmError(
            .failedPrecondition, "host \(name) is not dead: it is \(state.rawValue)",
            cause: heard.isEmpty ? nil : "it is heard on \(heard.joined(separator: ", "))",
            advice: "switch it off first; 'ftvm hosts fence \(name)' does so where a fence is "
                + "configured")
    }

    private func confirmDead(
        _ name: HostName, _ member: HostMembership, _ request: FenceHostRequest
    ) async throws -> HostMembership {
        let incarnation = member.incarnation
        cluster.refused[name] = incarnation
        let mark = FenceAction.mark(incarnation: incarnation)
        if member.fence?.incarnation != incarnation {
            _ = try await change(name, mark, lease: member.lease)
        }
        let detail = request.requestedBy.isEmpty ? "a person says so" : request.requestedBy
        guard let proven = try await change(name, .prove(.manual, detail: detail), lease: nil)
        else {
            let now = try await environment.members.read(name)?.record
            if let now, now.fence?.method != nil, now.incarnation == incarnation { return now }
            throw FtvmError(
                .conflict, "host \(name) has just shown that it lives, or was started anew",
                advice: "see 'ftvm hosts'")
        }
        cluster.plans[name] = nil
        poke()
        return proven
    }
}

extension FenceAction {
    /// Before and after its swap.
    fileprivate func reachFaultPoint(isDone: Bool) {
        switch self {
        case .mark:
            if isDone {
                FaultPoint.reached("fence.marked")
            } else {
                FaultPoint.reached("fence.marking")
            }
        case .prove:
            if isDone {
                FaultPoint.reached("fence.proven")
            } else {
                FaultPoint.reached("fence.proving")
            }
        default: break
        }
    }
}

extension FenceConfiguration.Method {
    /// As a plan and people call it.
    fileprivate var named: (FenceMethod, String) {
        switch self {
        case .agent(let agent, _):
            (.agent, agent.split(separator: "/").last.map(String.init) ?? agent)
        case .libvirt(let uri): (.libvirt, uri)
        }
    }
}

extension FenceMethod {
    /// Completes "the old primary of demo is gone: ...".
    var words: String {
        switch self {
        case .ownHost: "its own host says so"
        case .primaryLock: "its lock was free"
        case .libvirt: "its libvirt has ended it"
        case .agent: "its host is switched off"
        case .selfFence: "its host's self-fence has had its time"
        case .manual: "a person says so"
        }
    }
}
