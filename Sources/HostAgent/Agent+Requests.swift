import ClusterStore
import ControlAPI
import Foundation
import Hypervisor
import MemoryPool
import Model
import PairLogic
import Protection

/// What users ask for. Any host may be asked; what needs a domain's own libvirt travels through the store to its host
/// and back, so that the answer never depends on which host was asked.
extension Agent {
    // MARK: - Enabling

    func enable(_ request: EnableRequest) async throws -> PairRecord {
        let name = PairName(request.domain)
        if let present = try await environment.pairs.read(name)?.record {
            throw FtvmError(
                .alreadyExists, "domain \(name) is enabled already",
                cause: "its pair is \(present.state.rawValue), primary \(present.primary)",
                advice: "see 'ftvm status \(name)'")
        }
        let owner = try hostOf(request)
        if owner == host { return try await enableHere(request) }
        let answer = try await ask(owner, HostRequest(enable: request), "enable \(name)") {
            try await self.environment.pairs.read(name)?.record
        }
        guard let record = answer.record else {
            throw FtvmError(.internalError, "host \(owner) answered without a pair")
        }
        return record
    }

    /// The host whose libvirt has the domain: where it runs, or else the only one that has it at all.
    private func hostOf(_ request: EnableRequest) throws -> HostName {
        let states = detector.states
        func isOnline(_ name: HostName) -> Bool { name == host || states[name] == .online }
        if let wanted = request.host {
            guard hostRecords[wanted] != nil else { throw unknownHost(wanted) }
            guard isOnline(wanted) else {
                throw FtvmError(
                    .unavailable, "host \(wanted) is \(states[wanted]?.rawValue ?? "not online")",
                    advice: "see 'ftvm hosts'")
            }
            return wanted
        }
        let having = hostRecords.values.filter { record in
            isOnline(record.name) && record.domains.contains { $0.name == request.domain }
        }
        let running = having.filter { record in
            record.domains.contains {
                $0.name == request.domain && $0.state != DomainState.shutOff.rawValue
            }
        }
        if let only = running.first, running.count == 1 { return only.name }
        if running.isEmpty, let only = having.first, having.count == 1 { return only.name }
        guard !having.isEmpty else {
            // It may be newer than this host's last report.
            if hostRecords[host] != nil { return host }
            throw FtvmError(.notFound, "no host has a domain \(request.domain)")
        }
        throw FtvmError(
            .failedPrecondition, "several hosts have a domain \(request.domain)",
            cause: having.map(\.name.text).sorted().joined(separator: ", "),
            advice: "say which one is meant with --host, or remove the others' definitions")
    }

    func unknownHost(_ name: HostName) -> FtvmError {
        FtvmError(
            .notFound, "there is no host \(name) in the cluster",
            cause: "known: " + hostRecords.keys.sorted().map(\.text).joined(separator: ", "),
            advice: "see 'ftvm hosts'")
    }

    /// Checks everything that can be checked, then writes the pair's record; the rest is the agent's work.
    func enableHere(_ request: EnableRequest) async throws -> PairRecord {
        guard maintenance[host] == nil else {
            throw FtvmError(
                .failedPrecondition, "domain \(request.domain) is on \(host), which is drained",
                cause: "a drained host is given nothing new",
                advice: "'ftvm host undrain \(host)' puts it into service again")
        }
        let identifier = DomainIdentifier.name(request.domain)
        guard let status = try await environment.libvirt.find(identifier) else {
            throw FtvmError(
                .notFound, "there is no domain \(request.domain)",
                cause: request.host.map { "host \($0) does not have it" }
                    ?? "no host of the cluster has it",
                advice: "'virsh list --all' on its host shows its name")
        }
        let text = try await environment.libvirt.inactiveXML(identifier)
        let xml = try DomainXML(text).originalForm()
        try xml.requireProtectable()
        if status.isActive {
            let live = try DomainXML(try await environment.libvirt.liveXML(identifier))
            try live.requireProtectable()
            try GuestNIC.requireNoVHost(
                live.guestNICs(),
                descriptorLinks: await environment.libvirt.process(identifier).descriptorLinks(),
                domain: request.domain)
            try await requireQEMUCommands(identifier)
        }
        let disks =
            status.isActive
            ? try DomainXML(try await environment.libvirt.liveXML(identifier)).guestDisks
            : xml.guestDisks
        try await worker.requireDisks(disks, of: identifier, isActive: status.isActive)
        guard let memoryBytes = xml.memoryBytes else {
            throw FtvmError(.unsupported, "the XML of domain \(request.domain) names no memory")
        }
        let options = try (request.options ?? PairOptionsRequest()).options(
            epochMaximumMillisecondsDefault: environment.configuration.epochMaximumMilliseconds)
        try requireRoom(for: memoryBytes, disks, options, request.domain)
        try requireSecondHost(options, request.domain)
        var record = PairRecord(
            name: PairName(status.name), uuid: status.uuid, primary: host, options: options,
            domainXML: xml.text, persistent: status.isPersistent, memoryBytes: memoryBytes)
        if !status.isActive {
            guard status.isPersistent else {
                throw FtvmError(.failedPrecondition, "domain \(request.domain) is gone")
            }
            record.state = .unprotected
            record.reason = "the guest is shut off; it will be protected when it is started"
        }
        try await environment.pairs.create(record)
        do {
            if !status.isActive { try await worker.define(record) }
        } catch {
            try? await environment.pairs.delete(record.name)
            throw error
        }
        poke()
        return record
    }

    /// What is asked of QEMU; said now rather than when its memory has been moved.
    private func requireQEMUCommands(_ identifier: DomainIdentifier) async throws {
        struct Command: Decodable { let name: String }
        let known = try await environment.libvirt.monitorCommand(identifier, "query-commands")
            .decode([Command].self).map(\.name)
        let needed = [
            "xen-save-devices-state", "migrate-incoming", "human-monitor-command", "chardev-add",
            "object-add", "qom-set", "blockdev-reopen",
        ]
        let missing = needed.filter { !known.contains($0) }
        guard missing.isEmpty else {
            throw FtvmError(
                .unsupported, "the QEMU of domain \(identifier) cannot be protected",
                cause: "its monitor has no \(missing.joined(separator: ", "))",
                advice: "use QEMU 7.2 or newer")
        }
    }

    private func requireRoom(
        for memoryBytes: UInt64, _ disks: [GuestDisk], _ options: PairOptions, _ domain: String
    ) throws {
        let name = options.pool ?? environment.configuration.pools[0].name
        let pool = try environment.pool(name)
        guard memoryBytes % UInt64(pool.pageSizeBytes) == 0 else {
            throw FtvmError(
                .unsupported,
                "the memory of domain \(domain) does not fit the pages of pool \(name)",
                cause: "\(memoryBytes) bytes are no multiple of \(pool.pageSizeBytes)",
                advice: "round the domain's memory up, or choose a pool with base pages")
        }
        for disk in options.poolDurableDisks ?? []
        where !disks.contains(where: { $0.target == disk }) {
            throw FtvmError(
                .invalidArgument, "domain \(domain) has no disk \(disk) to protect",
                advice: "name disks as in 'virsh domblklist \(domain)'")
        }
        let uuid = UUID().uuidString
        var specification = SegmentSpecification(
            name: domain, uuid: uuid, memoryBytes: memoryBytes,
            undoLogBytes: options.undoLogBytes, numaNodes: options.numaNodes)
        specification.diskLogFileBytes =
            try worker.diskLog(
                disks, uuid: uuid, options: options, generation: Generation(1),
                pageSizeBytes: pool.pageSizeBytes)?.fileBytes ?? 0
        try pool.requireRoom(for: specification)
    }

    private func requireSecondHost(_ options: PairOptions, _ domain: String) throws {
        if let wish = options.secondaryHost {
            guard hostRecords[wish] != nil else { throw unknownHost(wish) }
            guard wish != host else {
                throw FtvmError(
                    .invalidArgument, "the secondary of \(domain) cannot be on \(wish)",
                    cause: "the primary is there",
                    advice: "name another host, or let placement choose")
            }
        }
        let placement = Placement(
            PlacementNeed(
                pool: options.pool ?? environment.configuration.pools[0].name,
                wish: options.secondaryHost, excluded: [host: "the primary is there"]),
            hosts: hostViews())
        guard placement.candidates.isEmpty else { return }
        throw FtvmError(
            .failedPrecondition, "there is no second host for domain \(domain)",
            cause: placement.rejections,
            advice: "start ftvmd on another host that has the pool; 'ftvm hosts' shows them")
    }

    // MARK: - Other wishes

    /// - Parameter discardsState: the guest cannot go on, and its user gives its last state up.
    /// - Throws: `failedPrecondition` when it runs, and nothing has to be given up.
    func disable(_ name: PairName, discardsState: Bool) async throws -> PairRecord {
        let record = try await update(name) { record throws(FtvmError) in
            guard !discardsState || record.state == .failingOver else {
                throw FtvmError(
                    .failedPrecondition, "the state of \(name) need not be given up",
                    cause: "the pair is \(record.state.rawValue), its primary on \(record.primary)",
                    advice:
                        "'ftvm disable \(name)' without --discard-state keeps its guest as it is")
            }
            record.desired = .disabled
            record.discardsState = discardsState ? true : nil
        }
        poke()
        return record
    }

    func requestPromotion(_ name: PairName) async throws -> PairRecord {
        let record = try await update(name) { record throws(FtvmError) in
            guard record.desired == .protected, record.state != .starting else {
                throw FtvmError(
                    .failedPrecondition, "pair \(record.name) cannot be promoted now",
                    cause: "it is \(record.state.rawValue)")
            }
            guard record.secondaryReady || record.state == .failingOver else {
                throw FtvmError(
                    .failedPrecondition, "pair \(record.name) has no secondary that is ready",
                    cause: record.reason.isEmpty ? "it is \(record.state.rawValue)" : record.reason,
                    advice: "wait until 'ftvm status \(record.name)' says protected")
            }
            record.promotionRequested = true
        }
        poke()
        return record
    }

    func update(
        _ name: PairName, _ change: @Sendable (inout PairRecord) throws(FtvmError) -> Void
    ) async throws -> PairRecord {
        do {
            return try await environment.pairs.update(name, change).record
        } catch  where error.code == .notFound {
            throw unknownPair(name)
        }
    }

    func unknownPair(_ name: PairName) -> FtvmError {
        FtvmError(
            .notFound, "domain \(name) is not enabled", cause: "there is no pair of that name",
            advice: "'ftvm list' shows the pairs; 'ftvm enable \(name)' makes one")
    }
}
