import CLinux
import DiskLog
import Foundation
import Glibc
import Hypervisor
import Model

/// A pair's disk images without a plugin or a QEMU: their sizes, and bringing a log into them that nobody writes to any more.
package enum DiskImages {
    /// The journal beside the first image that is a file; nil: block devices only.
    package static func journalPath(_ disks: [GuestDisk]) -> String? {
        disks.first { !$0.isDevice }.map { $0.path + ".ftvm-journal" }
    }

    /// What the log of these disks is made of.
    /// - Throws: `.notFound` and the like when an image cannot be read, `.unsupported` for one that is no such image.
    package static func specification(
        _ disks: [GuestDisk], uuid: String, dataBytes: UInt64, poolDurable: [String],
        generation: Generation, pageSizeBytes: UInt64
    ) throws -> LogSpecification {
        guard disks.count <= LogHeader.mostDisks else {
            throw FtvmError(
                .unsupported, "a domain with \(disks.count) writable disks cannot be protected",
                cause: "the disk log takes \(LogHeader.mostDisks)", advice: "join some of them")
        }
        let paths = Set(disks.map(\.path))
        guard paths.count == disks.count else {
            throw FtvmError(
                .unsupported, "two disks of the domain are the same image", advice: "remove one")
        }
        return LogSpecification(
            uuid: uuidBytes(uuid),
            disks: try disks.map {
                LoggedDisk(
                    name: $0.target, sizeBytes: try exportBytes($0),
                    durability: poolDurable.contains($0.target) ? .pool : .commit)
            }, dataBytes: dataBytes, generation: generation, pageSizeBytes: pageSizeBytes)
    }

    private static func uuidBytes(_ text: String) -> [UInt8] {
        let digits = text.compactMap(\.hexDigitValue)
        return stride(from: 0, to: digits.count - 1, by: 2).map {
            UInt8(digits[$0] << 4 | digits[$0 + 1])
        }
    }

    /// A raw image's size as QEMU sees it; what a qcow2 image may grow to, with room for internal snapshots.
    private static func exportBytes(_ disk: GuestDisk) throws -> UInt64 {
        let file = open(disk.path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else {
            throw FtvmError(
                errno == ENOENT ? .notFound : .permissionDenied,
                "cannot open the image of disk \(disk.target), \(disk.path)",
                cause: String(cString: strerror(errno)))
        }
        defer { close(file) }
        var isDevice = false
        let bytes = ftvm_disk_bytes(file, &isDevice)
        guard bytes > 0 else {
            throw FtvmError(
                .unsupported, "\(disk.path) cannot be a disk image",
                cause: bytes < 0 ? String(cString: strerror(Int32(-bytes))) : "it is empty")
        }
        guard disk.format == .qcow2 else { return (UInt64(bytes) + 511) / 512 * 512 }
        // QEMU: docs/interop/qcow2.txt; the virtual size is at 24, big-endian.
        var header = [UInt8](repeating: 0, count: 32)
        guard pread(file, &header, 32, 0) == 32, Array(header[0..<4]) == [0x51, 0x46, 0x49, 0xfb]
        else {
            throw FtvmError(
                .unsupported, "\(disk.path) is no qcow2 image",
                advice: "correct the type in the disk's <driver>")
        }
        let size = header[24..<32].reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        guard !isDevice else { return UInt64(bytes) }
        return (max(size, UInt64(bytes)) * 2 + (1 << 30)) / 4096 * 4096
    }

    // MARK: - Settling

    /// Brings everything in a log into its images, which nobody has open but perhaps a plugin whose QEMU is gone; and ends that
    /// plugin. The images are locked all the time.
    ///
    /// For a guest that has ended, or whose memory is lost: its last writes count, whether a commit covers them or not.
    /// - Returns: false when somebody else writes to an image: then nothing was done.
    package static func settle(
        _ log: DiskLogFile, disks: [GuestDisk], plugin: DiskPlugin
    ) throws -> Bool {
        let journal = journalPath(disks)
        if log.applied < log.head {
            guard try applyRest(of: log, disks, journal, plugin) else { return false }
        } else {
            try plugin.end()
        }
        // Also with nothing left to do: whether the last commit was earlier than the guest's last write is chance.
        FaultPoint.reached("disks.settled")
        // What stays behind a death here is never replayed: whoever protects the guest next settles its last log first.
        if let journal { unlink(journal) }
        return true
    }

    /// - Returns: false when somebody else writes to an image. The images are free again when this returns.
    private static func applyRest(
        of log: DiskLogFile, _ disks: [GuestDisk], _ journal: String?, _ plugin: DiskPlugin
    ) throws -> Bool {
        let images = try log.disks.map { logged in
            guard let disk = disks.first(where: { $0.target == logged.name }) else {
                throw FtvmError(.notFound, "disk \(logged.name) of the log is not in the domain")
            }
            let image = try FileImage(path: disk.path)
            // Before the plugin's own is gone.
            _ = image.claim()
            return image
        }
        try plugin.end()
        // Whoever is ending gives its locks back as the very last thing.
        let deadline = MonotonicClock.nowNanoseconds() + writersPatienceNanoseconds
        while images.contains(where: \.isWrittenByOthers) {
            guard MonotonicClock.nowNanoseconds() < deadline else { return false }
            usleep(10_000)
        }
        let server = DiskServer(
            log: log, images: images, journal: try journal.map { try DiskJournal.open($0) },
            settings: manual)
        defer { server.close() }
        try server.activate(Generation(log.generation), patience: 5_000)
        log.publishSealed(log.head)
        FaultPoint.reached("disks.settling")
        while true {
            switch server.applyGroup(evenIfYoung: true) {
            case .applied: continue
            case .idle: break
            case .fenced:
                throw FtvmError(.conflict, "the disk log has become another generation's")
            case .failed(let number, let disk):
                let name = log.disks.indices.contains(disk) ? log.disks[disk].name : "the journal"
                throw FtvmError(
                    .failedPrecondition, "what the guest wrote last cannot be brought into \(name)",
                    cause: String(cString: strerror(number)),
                    advice: "nothing is lost; make room on its storage, or repair it")
            }
            if log.applied >= log.head { return true }
        }
    }

    private static let writersPatienceNanoseconds: UInt64 = 3_000_000_000

    private static var manual: DiskServer.Settings {
        var settings = DiskServer.Settings()
        settings.appliesByItself = false
        return settings
    }

    /// After the loss of the pool: brings the journal that is beside the images into them, if there is one. They are a consistent
    /// state then, with every write whose durability anybody was told of.
    /// - Returns: whether there was anything to do.
    package static func replayJournal(_ disks: [GuestDisk]) throws -> Bool {
        guard let path = journalPath(disks), access(path, F_OK) == 0 else { return false }
        var images: [FileImage] = []
        for disk in disks {
            let image = try FileImage(path: disk.path)
            // A plugin, of whatever host, whose pool is only out of our sight.
            guard !image.isWrittenByOthers else { return false }
            _ = image.claim()
            images.append(image)
        }
        let replayed = try DiskJournal.open(path).replay { name in
            guard let index = disks.firstIndex(where: { $0.target == name }) else {
                throw FtvmError(.notFound, "the journal is of a disk \(name) that is not there")
            }
            return images[index]
        }
        unlink(path)
        for image in images { image.giveUpClaim() }
        return replayed
    }
}
