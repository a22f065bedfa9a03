import DiskLog
import Foundation
import Glibc
import Hypervisor
import MemoryPool
import Model
import Protection

/// A pair's disks on this host.
extension PairWorker {
    /// Room for written data in a disk log, unless the user has chosen.
    static let defaultDiskLogBytes: UInt64 = 256 << 20

    func diskPlugin(_ pair: PairName) -> DiskPlugin {
        let installed = DiskPlugin.installed()
        return DiskPlugin(
            program: installed.program, library: installed.library,
            directory: environment.configuration.diskDirectory,
            name: pair.text.replacing("/", with: "_"))
    }

    /// The pair's disks; nil when its log has none.
    /// - Parameter liveXML: of the QEMU on this host.
    func disks(
        _ record: PairRecord, liveXML: String, _ segment: Segment
    ) throws -> PairDisks? {
        try PairDisks.open(
            segment, disks: DomainXML(liveXML).guestDisks, plugin: diskPlugin(record.name))
    }

    /// What the log of a domain's disks is made of; nil without any.
    func diskLog(
        _ disks: [GuestDisk], uuid: String, options: PairOptions, generation: Generation,
        pageSizeBytes: UInt64
    ) throws -> LogSpecification? {
        guard !disks.isEmpty else { return nil }
        return try DiskImages.specification(
            disks, uuid: uuid, dataBytes: options.diskLogBytes ?? Self.defaultDiskLogBytes,
            poolDurable: options.poolDurableDisks ?? [], generation: generation,
            pageSizeBytes: pageSizeBytes)
    }

    /// Refuses disks that cannot be protected on this host, before anything is touched.
    func requireDisks(
        _ disks: [GuestDisk], of domain: DomainIdentifier, isActive: Bool
    ) async throws {
        guard !disks.isEmpty else { return }
        try diskPlugin(PairName("any")).requireInstalled()
        guard isActive else { return }
        let monitor = try await libvirt.monitor(domain)
        try await blocking { try monitor.requireFormatNodes(disks) }
    }

    /// A waiting QEMU opens its images, to read, before the log takes their place, and libvirt does not give them to it
    /// (`DomainXML.leaveImagesAlone`). Nor are they QEMU's still: they go back to root when a QEMU that was started by its user
    /// ends, and that may have been the old primary.
    func lendImages(_ record: PairRecord, to waiting: DomainXML) async throws {
        // About some the user has said that himself.
        let users = try DomainXML(record.domainXML).imagesLeftAlone
        let images = waiting.imagesLeftAlone.filter { !users.contains($0) }
        guard !images.isEmpty, let owner = try await libvirt.qemuOwner() else { return }
        try await blocking {
            for image in images {
                var status = stat()
                guard stat(image, &status) == 0, status.st_uid != owner.user else { continue }
                // Storage that refuses this may let QEMU read all the same. If not, QEMU says so.
                chown(image, owner.user, owner.group)
            }
        }
    }

    /// Brings what is left in the log of a guest that has ended into its images. Nothing may run on the segment. Without a
    /// segment there may be a journal, left by a loss of everything.
    /// - Returns: false when somebody else writes to the images: then nothing was done, and what is left is of no use any more.
    func settleDisks(_ record: PairRecord) async throws -> Bool {
        let disks = try DomainXML(record.domainXML).guestDisks
        guard !disks.isEmpty else { return true }
        let plugin = diskPlugin(record.name)
        guard let segment = try record.segment.flatMap(environment.presentSegment) else {
            guard try await blocking({ try DiskImages.replayJournal(disks) }) else { return true }
            environment.logger.notice(
                "disk journal replayed", metadata: ["pair": "\(record.name)"])
            return true
        }
        guard try !segment.isLocked(.primary) else {
            throw FtvmError(
                .failedPrecondition, "the disks of \(record.name) are in use",
                cause: "a QEMU holds the primary lock")
        }
        return try await blocking {
            guard let descriptor = try segment.openDiskLog() else { return true }
            return try DiskImages.settle(
                try DiskLogFile(descriptor: descriptor), disks: disks, plugin: plugin)
        }
    }

    /// The same where there is time to try again.
    /// - Throws: `.unavailable` when somebody else writes to the images.
    func settleDisksNow(_ record: PairRecord) async throws {
        guard try await !settleDisks(record) else { return }
        throw FtvmError(
            .unavailable,
            "what the guest of \(record.name) wrote last cannot be brought into its images",
            cause: "somebody else has them open for writing",
            advice:
                "nothing is lost; end whatever uses them ('lslocks' shows it) before the guest is started"
        )
    }

    /// The same where the pair goes on in any case.
    func settleDisksOrSay(_ record: PairRecord) async throws {
        guard try await !settleDisks(record) else { return }
        environment.logger.error(
            "the guest was started past ftvm from images that lacked its last writes; these are dropped",
            metadata: ["pair": "\(record.name)"])
    }
}
