import CLinux
import Fencing
import Foundation
import Glibc
import Hypervisor
import MemoryPool
import Model
import Protection

/// The transitions of pairs against libvirt, QEMU and the segment. Each may be repeated after a death at any point, and
/// changes no record (the agent does, with what is returned).
struct PairWorker: Sendable {
    let environment: HostEnvironment
    var host: HostName { environment.host }
    var libvirt: LibvirtHost { environment.libvirt }

    /// A running domain's QEMU, a way to talk to it, and where its memory is.
    struct RunningDomain: Sendable {
        let process: QEMUProcess
        let monitor: any Monitor
        /// All of its RAM blocks, with their addresses.
        let blocks: [RAMBlock]
        let liveXML: String
    }

    /// - Throws: `.unsupported` when the guest's memory is not where it can be taken.
    func runningDomain(_ record: PairRecord) async throws -> RunningDomain {
        let identifier = DomainIdentifier.name(record.name.text)
        let liveXML = try await libvirt.liveXML(identifier)
        let process = try await libvirt.process(identifier)
        // A take-over whose ftvmd died may have left QEMU's main thread, which serves the monitor, waiting.
        try process.releaseFaults()
        let monitor = try await monitor(of: record.name, liveXML: liveXML)
        let blocks = try await blocking { try process.ramBlocks(monitor: monitor) }
        return RunningDomain(
            process: process, monitor: monitor, blocks: blocks, liveXML: liveXML)
    }

    /// Our own monitor where the QEMU was started with one (200 us a command), else libvirt's (700 us).
    private func monitor(of pair: PairName, liveXML: String) async throws -> any Monitor {
        guard let path = ownMonitor(of: pair, liveXML: liveXML) else {
            return try await libvirt.monitor(.name(pair.text))
        }
        return try await blocking { try QMPConnection(path: path, label: pair.text) }
    }

    private func ownMonitor(of pair: PairName, liveXML: String) -> String? {
        let path = environment.monitorPath(pair)
        return liveXML.contains(DomainXML.monitorID) && liveXML.contains(path) ? path : nil
    }

    // MARK: - Primary

    /// Whether the running domain's memory, or a part of it, is this segment already.
    ///
    /// Main memory that was adopted in place is in the segment's object before and after: there only a segment with room for
    /// just the blocks that QEMU has now is the one to go on with.
    func runsOnSegment(
        _ domain: RunningDomain, _ reference: SegmentReference, isForItsBlocks: Bool
    ) throws -> Bool {
        guard let segment = try? environment.openSegment(reference, access: .read) else {
            return false
        }
        if segment.objectBytes > 0, !isForItsBlocks { return false }
        return try domain.process.usesMemory(of: segment)
    }

    /// What a former ftvmd left half done is taken back, while its segment still tells how things stand.
    func abandonTakeOver(_ record: PairRecord, _ domain: RunningDomain) async throws {
        guard let reference = record.segment,
            let segment = try? environment.openSegment(reference, access: .write)
        else { return }
        let injector = environment.injector
        let disks = try disks(record, liveXML: domain.liveXML, segment)
        try await blocking {
            try PrimaryDriver.abandonTakeOver(
                process: domain.process, monitor: domain.monitor, segment: segment,
                injector: injector, disks: disks)
        }
    }

    /// Protects a running domain of this host.
    func takeOver(
        _ record: PairRecord, _ domain: RunningDomain, segment: Segment, memory: GuestMemory,
        object: MemoryObject?,
        progress: @escaping @Sendable (PrimaryDriver.TakeOverStep) -> Void
    ) async throws -> PrimaryDriver {
        let injector = environment.injector
        let generation = record.generation
        let nics = try DomainXML(domain.liveXML).guestNICs()
        let disks = try disks(record, liveXML: domain.liveXML, segment)
        return try await blocking {
            let lock = try segment.openLock()
            defer { close(lock) }
            try PrimaryLock.acquire(lock)
            return try PrimaryDriver.takeOver(
                process: domain.process, memory: memory, monitor: domain.monitor,
                segment: segment, generation: generation, lock: lock, injector: injector,
                nics: nics, object: object, disks: disks, progress: progress)
        }
    }

    /// Takes over a primary that a former ftvmd of this host ran.
    func adopt(_ record: PairRecord, segment: Segment) async throws -> PrimaryDriver {
        let identifier = DomainIdentifier.name(record.name.text)
        let generation = record.generation
        let liveXML = try await libvirt.liveXML(identifier)
        let process = try await libvirt.process(identifier)
        let layout = record.ramLayout
        let path = ownMonitor(of: record.name, liveXML: liveXML)
        let other = path == nil ? try await libvirt.monitor(identifier) : nil
        let injector = environment.injector
        let nics = try DomainXML(liveXML).guestNICs()
        let disks = try disks(record, liveXML: liveXML, segment)
        return try await blocking {
            try PrimaryDriver.adopt(
                process: process, segment: segment, layout: layout, generation: generation,
                injector: injector, nics: nics, disks: disks,
                connect: {
                    if let other { return other }
                    return try QMPConnection(path: path ?? "", label: record.name.text)
                })
        }
    }

    /// Gives the domain's memory back: private again, no trace of ours in QEMU.
    func release(
        _ driver: PrimaryDriver, progress: @escaping @Sendable (Int) -> Void
    ) async throws {
        let injector = environment.injector
        try await blocking { try driver.release(injector: injector, progress: progress) }
    }

    /// Lets a guest go on that a former ftvmd had stopped for the last step of its release: after that step only the
    /// segment still tells.
    func resumeReleased(_ record: PairRecord) async throws {
        guard let reference = record.segment,
            let segment = try? environment.openSegment(reference, access: .write),
            segment.flags.contains(.pausedByCommit),
            try await libvirt.find(.name(record.name.text))?.isActive == true
        else { return }
        let domain = try await runningDomain(record)
        try await blocking {
            try domain.monitor.cont()
            segment.removeFlags(.pausedByCommit)
        }
    }

    // MARK: - Secondary

    /// Makes (or finds) this host's waiting QEMU of the pair. One that is found without the segment's memory may have been
    /// made of an older XML.
    func makeSecondary(_ record: PairRecord) async throws -> WaitingSecondary {
        let name = record.name.text
        guard let liveXML = record.liveXML, let reference = record.segment else {
            throw FtvmError(
                .internalError, "the record of \(name) has no XML or segment for a secondary")
        }
        let segment = try environment.openSegment(reference, access: .read)
        let path = environment.monitorPath(record.name)
        if try await !isWaiting(record, on: segment) {
            try await destroy(record.name)
            unlink(path)
            let waiting = try DomainXML(record.domainXML).waitingForm(
                liveXML: liveXML, qmpSocketPath: path, facts: facts(record, .secondary))
            try await lendImages(record, to: waiting)
            FaultPoint.reached("secondary.creating")
            _ = try await libvirt.create(xml: waiting.text, paused: true)
            FaultPoint.reached("secondary.created")
        }
        let process = try await libvirt.process(.name(name))
        let injector = environment.injector
        let running = try await libvirt.liveXML(.name(name))
        let nics = try DomainXML(running).guestNICs()
        let disks = try disks(record, liveXML: running, segment)
        let layout = record.ramLayout
        return try await blocking {
            let monitor = try QMPConnection(path: path, label: name)
            return try WaitingSecondary.prepare(
                process: process, monitor: monitor, segment: segment, layout: layout,
                injector: injector, nics: nics, disks: disks)
        }
    }

    /// Whether this host has a waiting QEMU of the pair that was made for this segment, and that nothing has been loaded into.
    private func isWaiting(_ record: PairRecord, on segment: Segment) async throws -> Bool {
        let identifier = DomainIdentifier.name(record.name.text)
        guard try await libvirt.find(identifier)?.isActive == true,
            try await libvirt.process(identifier).hasMapped(segment)
        else { return false }
        struct State: Decodable { let status: String }
        let state = try? await libvirt.monitorCommand(identifier, "query-status").decode(State.self)
        return state?.status == "inmigrate"
    }

    /// Makes the secondary of this host the primary. The claim in the store has been won.
    /// - Returns: also whether frames had left that belong to no commit, which must never be.
    func promote(
        _ record: PairRecord, _ secondary: WaitingSecondary
    ) async throws -> (driver: PrimaryDriver, report: PromotionReport, releasedTooFar: Bool) {
        guard let reference = record.segment, let liveXML = record.liveXML,
            let machine = try DomainXML(liveXML).machineType
        else {
            throw FtvmError(
                .internalError, "the record of \(record.name) lacks what a promotion needs")
        }
        let segment = try environment.openSegment(reference, access: .write)
        let injector = environment.injector
        let generation = record.generation
        return try await blocking {
            let began = MonotonicClock.nowNanoseconds()
            // Proof first: both who ran the old primary and who wrote its log are gone.
            let lock = try segment.openLock()
            defer { close(lock) }
            try PrimaryLock.acquire(lock)
            try segment.takeManagerLock()
            FaultPoint.reached("promotion.locked")
            if segment.position.generation < generation {
                try segment.raiseGeneration(to: generation)
            } else {
                try segment.adopt(generation)
            }
            FaultPoint.reached("promotion.raised")
            let proven = MonotonicClock.nowNanoseconds()
            // Before it is cut: frames that have left may only be those of the commit that is gone back to.
            let committed = try segment.latestCommit()?.logs.output ?? 0
            let releasedTooFar = segment.releasedOutput > committed
            var (driver, report) = try PrimaryDriver.promote(
                secondary, segment: segment, generation: generation, lock: lock,
                machine: machine, injector: injector)
            report.add(lockNanoseconds: proven - began)
            return (driver, report, releasedTooFar)
        }
    }

    // MARK: - libvirt's side

    /// Ends the pair's QEMU on this host, whatever it is, and waits until it is gone.
    func destroy(_ pair: PairName) async throws {
        try await destroyQEMU(pair)
        let plugin = diskPlugin(pair)
        try await blocking { try plugin.end() }
    }

    private func destroyQEMU(_ pair: PairName) async throws {
        let identifier = DomainIdentifier.name(pair.text)
        guard try await libvirt.find(identifier)?.isActive == true else { return }
        if let process = try? await libvirt.process(identifier) {
            // Outright: libvirt's own destroy asks politely first, which a hung or fenced QEMU does not deserve.
            try await blocking { try process.kill() }
        }
        do {
            try await libvirt.destroy(identifier)
        } catch let error as FtvmError where error.code == .notFound {
            // A transient domain goes away with its QEMU.
        }
    }

    private func facts(_ record: PairRecord, _ role: Role) -> PairFacts {
        PairFacts(
            role: role, generation: record.generation,
            segment: record.segment
                ?? SegmentReference(
                    pool: environment.configuration.pools[0].name, name: record.uuid),
            primary: role == .primary ? host : record.primary,
            secondary: role == .primary ? nil : host)
    }

    /// Shows the pair in the domain's metadata, and makes the definition for its next start the protected form (where
    /// libvirt kept the domain before).
    func describe(_ record: PairRecord, _ role: Role) async throws {
        if record.persistent { try await define(record) }
        try await libvirt.setPairFacts(.name(record.name.text), facts(record, role))
    }

    /// Defines the protected form: the user's XML, our monitor, the pair's facts.
    func define(_ record: PairRecord) async throws {
        let protected = try DomainXML(record.domainXML).protectedForm(
            qmpSocketPath: environment.monitorPath(record.name), facts: facts(record, .primary))
        _ = try await libvirt.define(xml: protected.text)
    }

    /// The domain as it was before it was enabled, as far as libvirt keeps it.
    func restoreDefinition(_ record: PairRecord) async throws {
        if record.persistent {
            _ = try await libvirt.define(xml: record.domainXML)
            if let autostart = record.autostart {
                try await libvirt.setAutostart(.name(record.name.text), autostart)
            }
        }
        do {
            try await libvirt.removePairFacts(.name(record.name.text))
        } catch let error as FtvmError where error.code == .notFound {
            // A transient domain that has ended.
        }
    }
}
