import ClusterStore
import ControlAPI
import Foundation
import Glibc
import Hypervisor
import Model

/// The domains that libvirt keeps on this host while they are shut off: those of pairs are in one place only.
extension Agent {
    /// Where a domain went that is no pair any more.
    private struct Released: Codable {
        var host: HostName
    }

    /// So many are remembered: for hosts that were away then.
    private static let releasedKept = 1_000

    /// libvirt itself starts its domains before ftvmd is there, and the gate refuses those of pairs: who has the guest is
    /// not known yet. So the guests of pairs are started here, once after each boot of the host.
    func startAfterBoot() async {
        guard !hasStartedAfterBoot, recordsKnown else { return }
        // In a directory that does not outlive the boot.
        let mark = environment.configuration.runtimeDirectory + "/autostarted"
        guard access(mark, F_OK) != 0 else {
            hasStartedAfterBoot = true
            return
        }
        for record in records.values.map(\.record)
        where record.primary == host && record.promoting == nil && record.state == .unprotected
            && record.desired == .protected && record.persistent
        {
            let identifier = DomainIdentifier.name(record.name.text)
            do {
                guard try await environment.libvirt.isAutostarted(identifier),
                    try await environment.libvirt.find(identifier)?.isActive == false
                else { continue }
                try await environment.libvirt.start(identifier)
                logger.notice("started with its host", metadata: ["pair": "\(record.name)"])
            } catch let error as FtvmError where error.code == .unavailable {
                // libvirt's daemon is not there yet: the next tick asks again.
                return
            } catch {
                logger.error(
                    "cannot start a domain with its host",
                    metadata: ["pair": "\(record.name)", "error": "\(error)"])
            }
        }
        hasStartedAfterBoot = true
        do {
            try Data().write(to: URL(fileURLWithPath: mark))
        } catch {
            logger.error(
                "cannot remember that domains were started", metadata: ["error": "\(error)"])
        }
    }

    /// Written before the record goes: from then on nothing else tells a host that was away that the definition it has is a
    /// leftover.
    func noteReleased(_ record: PairRecord) async throws {
        let value = try ControlJSON.encode(Released(host: host))
        try await environment.store.put(
            StoreKeys.released + record.uuid, Data(value), expecting: .any)
        let all = try await environment.store.list(StoreKeys.released).entries
        for entry in all.sorted(by: { $0.revision < $1.revision }).dropLast(Self.releasedKept) {
            try await environment.store.delete(entry.key, expecting: .revision(entry.revision))
        }
    }

    /// A pair's definition goes with its primary. One that stayed behind on a host that died, and came back, would be an
    /// invitation to start the guest twice. Only ours go: they carry a pair's facts.
    func removeStaleDefinitions(_ domains: [DomainSummary]) async throws {
        guard recordsKnown else { return }
        if released == nil {
            var homes: [String: HostName] = [:]
            for entry in try await environment.store.list(StoreKeys.released).entries {
                guard let value = try? ControlJSON.decode(Released.self, from: entry.value) else {
                    continue
                }
                homes[String(entry.key.dropFirst(StoreKeys.released.count))] = value.host
            }
            released = homes
        }
        for domain in domains where domain.state == DomainState.shutOff.rawValue {
            guard isElsewhere(domain) else { continue }
            do {
                try await removeOurs(domain)
            } catch {
                logger.warning("stale definition stays", metadata: ["error": "\(error)"])
            }
        }
    }

    private func isElsewhere(_ domain: DomainSummary) -> Bool {
        let name = PairName(domain.name)
        guard let record = records[name]?.record else {
            return released?[domain.uuid].map { $0 != host } ?? false
        }
        return record.uuid == domain.uuid && record.primary != host && record.promoting == nil
            && (record.state == .protected || record.state == .needSecondary
                || record.state == .unprotected)
            && runtimes[name]?.work == nil
    }

    private func removeOurs(_ domain: DomainSummary) async throws {
        let identifier = DomainIdentifier.name(domain.name)
        let definition = try DomainXML(try await environment.libvirt.inactiveXML(identifier))
        guard definition.pairFacts != nil, definition.uuid == domain.uuid else { return }
        try await environment.libvirt.undefine(identifier)
        logger.notice("stale definition removed", metadata: ["pair": "\(domain.name)"])
    }
}
