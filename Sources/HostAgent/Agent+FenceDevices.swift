import ConfigurationFiles
import Fencing
import Hypervisor
import Model
import PairLogic

/// What the devices of a fencing plan do.
extension Agent {
    /// Has the device do what it can, and says what came of it.
    func run(
        _ configuration: FenceConfiguration, _ target: HostName
    ) async -> FencePlan.Result {
        switch configuration.method {
        case .agent(let agent, let parameters):
            let settings = FenceAgentSettings(
                agent: agent, parameters: parameters,
                offMilliseconds: configuration.offMilliseconds,
                statusMilliseconds: configuration.statusMilliseconds)
            do throws(FtvmError) {
                let device = try FenceAgent(settings)
                switch await device.fence(target) {
                case .proven: return .off
                case .unproven(let reason):
                    return .failed(reason.without(prefix: "agent \(device.name): "))
                }
            } catch {
                return .failed(error.message)
            }
        case .libvirt(let uri):
            return await endPrimaries(of: target, uri, configuration)
        }
    }

    /// Through the target's own libvirt: every primary there that a failover waits for.
    private func endPrimaries(
        of target: HostName, _ uri: String, _ configuration: FenceConfiguration
    ) async -> FencePlan.Result {
        guard
            let uuid = environment.cluster.hosts.first(where: { $0.name == target })?.libvirtUUID
        else { return .failed("its libvirt_uuid is not configured") }
        let waiting = records.values.map(\.record).filter {
            cluster.needs[$0.name]?.contains(target) == true
        }
        guard !waiting.isEmpty else { return .failed("no primary waits for it") }
        let logger = logger
        for record in waiting {
            let fencer = LibvirtFencer(
                domainUUID: record.uuid, hostUUID: uuid,
                milliseconds: configuration.offMilliseconds
            ) { () async throws(FtvmError) -> any LibvirtFenceConnection in
                RemoteLibvirt(
                    libvirt: LibvirtHost(options: LibvirtHost.Options(uri: uri), logger: logger))
            }
            let request = FenceRequest(
                pair: record.name, host: target, generation: record.generation)
            if case .unproven(let reason) = await fencer.fence(request) {
                return .failed(reason.without(prefix: "libvirt: "))
            }
        }
        return .off
    }
}

extension String {
    fileprivate func without(prefix: String) -> String {
        hasPrefix(prefix) ? String(dropFirst(prefix.count)) : self
    }
}

/// Another host's libvirt, for a fence.
private struct RemoteLibvirt: LibvirtFenceConnection {
    let libvirt: LibvirtHost

    private func ours<Value>(
        _ body: () async throws -> Value
    ) async throws(FtvmError) -> Value {
        do { return try await body() } catch { throw FtvmError(ours: error) }
    }

    func hostUUID() async throws(FtvmError) -> String {
        try await ours { try await libvirt.hostUUID() }
    }

    func state(ofDomain uuid: String) async throws(FtvmError) -> LibvirtDomainState {
        let status = try await ours { try await libvirt.find(.uuid(uuid)) }
        guard let status else { return .absent }
        return status.isActive ? .active : .inactive
    }

    func destroy(domain uuid: String) async throws(FtvmError) {
        try await ours { try await libvirt.destroy(.uuid(uuid)) }
    }
}
