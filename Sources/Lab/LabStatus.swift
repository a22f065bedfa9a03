import Foundation
import Model

/// A lab as it is now.
package struct LabStatus: Hashable, Sendable, Codable {
    package enum State: String, Sendable, Codable {
        case running, frozen, dead
    }

    package struct Host: Hashable, Sendable, Codable {
        package let name: HostName
        package let state: State
        /// Whether its port of the switch is up.
        package let link: Bool
        package let address: String
        /// The host's first process, as the machine sees it; nil when it is dead.
        package let pid: Int32?
        package let processes: [LabProcess]
        /// libvirt's URI, for use from outside the host.
        package let libvirtURI: String
        /// `ftvmd`'s socket; nil in a lab without `ftvmd`.
        package let daemonSocket: String?
        package let directory: String
    }

    package let name: String
    package let specification: LabSpecification
    package let hosts: [Host]
    package let pool: String
    package let hugePool: String?
    package let store: String
}

extension Lab {
    /// Looks at every host: its processes and its port.
    package func status() async throws -> LabStatus {
        let ports = try await switchboard.ports()
        let hosts = hosts.map { host in
            let group = group(of: host)
            let processes = group.processes()
            let first = processes.first { $0.innerPid == 1 }
            let state: LabStatus.State =
                first == nil ? .dead : group.event("frozen") ? .frozen : .running
            return LabStatus.Host(
                name: host.name, state: state, link: first != nil && ports[host.name] == true,
                address: host.address, pid: first?.pid, processes: processes,
                libvirtURI: layout.libvirtURI(of: host.name),
                daemonSocket: specification.daemonPath == nil
                    ? nil : layout.daemonSocket(of: host.name),
                directory: layout.directory(of: host.name))
        }
        return LabStatus(
            name: layout.name, specification: specification, hosts: hosts, pool: layout.pool,
            hugePool: specification.hugePages > 0 ? layout.hugePool : nil, store: layout.store)
    }
}
