import Foundation
import Glibc
import Hypervisor
import Model
import PairLogic
import Protection

/// Devices that somebody adds to a protected guest, takes from it or changes. libvirt asks and tells nobody, so the driver's
/// host looks. A waiting QEMU does not have such a device, and could not load a state that does: the pair becomes unprotected
/// at once, and is enabled anew as the guest is now.
extension Agent {
    /// How often libvirt is asked in any case; 1 to 2 ms of its time.
    private static let lookPeriodNanoseconds: UInt64 = 1_000_000_000

    func followDevices() async {
        for await _ in deviceLooks.stream {
            for name in runtimes.keys.sorted() {
                do {
                    try await lookAtDevices(name)
                } catch {
                    logger.debug("devices not seen", metadata: ["error": "\(error)"])
                }
            }
        }
    }

    /// The record, if this host drives the pair and nothing else is going on with it.
    private func watchable(_ name: PairName) -> (PairRecord, PairRuntime, PrimaryDriver)? {
        guard let runtime = runtimes[name], let driver = runtime.driver, runtime.work == nil,
            runtime.driverFailure == nil, !runtime.isEnding, driver.process.isRunning,
            let record = records[name]?.record, record.primary == host, record.promoting == nil,
            !record.primaryLost, record.switchover == nil, record.desired == .protected,
            record.state == .protected || record.state == .needSecondary,
            MonotonicClock.nowNanoseconds() >= runtime.quietUntilNanoseconds
        else { return nil }
        return (record, runtime, driver)
    }

    private func lookAtDevices(_ name: PairName) async throws {
        guard let (record, runtime, driver) = watchable(name) else { return }
        let now = MonotonicClock.nowNanoseconds()
        let count = driver.process.descriptorCount
        if let known = runtime.devices, known.descriptors == count,
            now - known.atNanoseconds < Self.lookPeriodNanoseconds
        {
            return
        }
        let text = try await environment.libvirt.liveXML(.name(name.text))
        let lines: [String]
        if let known = runtime.devices, known.text == text {
            lines = known.lines
        } else {
            lines = try DomainXML(text).deviceLines
        }
        if record.persistent { try await followAutostart(record) }
        guard let (present, _, same) = watchable(name), same === driver,
            present.generation == record.generation
        else { return }
        let seen = present.devices.flatMap { $0.generation == present.generation ? $0 : nil }
        runtime.devices = .init(
            text: text, lines: lines, descriptors: count, atNanoseconds: now)
        guard let seen else {
            let first = SeenDevices(generation: present.generation, lines: lines)
            try await environment.pairs.update(name) { record in
                if record.generation == first.generation { record.devices = first }
            }
            return
        }
        let changes = DomainXML.changes(from: seen.lines, to: lines)
        guard !changes.isEmpty else { return }
        FaultPoint.reached("devices.seen")
        begin(.adapting, name) { try await self.adapt(name, changes) }
    }

    /// A user's choice for the domain, which is to be the same wherever its primary is. A promoted primary's new definition
    /// has none until here; this comes before the generation's first devices are written.
    private func followAutostart(_ record: PairRecord) async throws {
        let identifier = DomainIdentifier.name(record.name.text)
        let isSet = try await environment.libvirt.isAutostarted(identifier)
        guard isSet != record.autostart else { return }
        if let wish = record.autostart, record.devices?.generation != record.generation {
            try await environment.libvirt.setAutostart(identifier, wish)
        } else {
            try await environment.pairs.update(record.name) { present in
                if present.generation == record.generation { present.autostart = isSet }
            }
        }
    }

    /// Gives the guest back, as it runs; what follows from the record's state then enables it anew. If this ftvmd dies in
    /// between, its successor finds a driven QEMU of an unprotected pair, adopts it, and sees the change again.
    private func adapt(_ name: PairName, _ changes: String) async throws {
        await change(name, .reportDevicesChanged(what: changes))
        guard let record = records[name]?.record, record.state == .unprotected,
            runtimes[name]?.driver != nil
        else { return }
        FaultPoint.reached("devices.unprotected")
        try await release(name)
        FaultPoint.reached("devices.released")
        guard record.persistent else { return }
        // Devices may have been added for good as well: the definition is the user's.
        let definition = try await environment.libvirt.inactiveXML(.name(name.text))
        let own = try DomainXML(definition).originalForm().text
        try await environment.pairs.update(name) { $0.domainXML = own }
    }
}
