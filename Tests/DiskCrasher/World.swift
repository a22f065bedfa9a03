import CLinux
import DiskLog
import Glibc
import Model

/// A file in shared memory that outlives its process.
final class SharedFile: @unchecked Sendable {
    let address: UnsafeMutableRawPointer
    let bytes: Int

    init(_ path: String, bytes: Int) throws {
        let descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard descriptor >= 0, ftruncate(descriptor, bytes) == 0 else { throw Trouble(path) }
        defer { close(descriptor) }
        var mapped: UnsafeMutableRawPointer?
        guard ftvm_memory_map(descriptor, bytes, true, true, &mapped) == 0, let mapped else {
            throw Trouble(path)
        }
        address = mapped
        self.bytes = bytes
    }

    deinit { _ = ftvm_memory_unmap(address, bytes) }
}

struct Trouble: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

/// An image on storage with a volatile cache: `current` is what reads see, `stable` what is left after a
/// power cut, together with any of the sectors in which the two differ.
final class VolatileImage: DiskImage, @unchecked Sendable {
    let current: SharedFile
    let stable: SharedFile
    /// An errno that every write and sync fails with; 0: none.
    var failure: Int32 = 0
    let canTrim = true

    init(_ path: String, bytes: Int) throws {
        current = try SharedFile(path + ".current", bytes: bytes)
        stable = try SharedFile(path + ".stable", bytes: bytes)
    }

    convenience init(_ directory: String, disk: Int) throws {
        try self.init("\(directory)/disk\(disk)", bytes: Plan.disks[disk] * sectorBytes)
    }

    func read(into target: UnsafeMutableRawBufferPointer, at offset: UInt64) -> Int32 {
        guard let start = target.baseAddress else { return 0 }
        memcpy(start, current.address + Int(offset), target.count)
        return 0
    }

    func write(_ pieces: UnsafeMutableBufferPointer<iovec>, at offset: UInt64) -> Int32 {
        if failure != 0 { return -failure }
        var position = Int(offset)
        for piece in pieces {
            guard let base = piece.iov_base else { continue }
            precondition(position + piece.iov_len <= current.bytes, "written past the disk")
            // A kill can come in the middle of a write.
            let half = piece.iov_len / 1024 * 512
            Death.notDuring { memcpy(current.address + position, base, half) }
            FaultPoint.reached("image.write.half")
            Death.notDuring {
                memcpy(current.address + position + half, base + half, piece.iov_len - half)
            }
            position += piece.iov_len
        }
        return 0
    }

    func zero(at offset: UInt64, bytes: UInt64, punch: Bool) -> Int32 {
        if failure != 0 { return -failure }
        Death.notDuring { memset(current.address + Int(offset), 0, Int(bytes)) }
        return 0
    }

    /// Every second sector reaches the disk at once.
    func beginWriteback() {
        for offset in stride(from: 0, to: current.bytes, by: 2 * sectorBytes)
        where memcmp(current.address + offset, stable.address + offset, sectorBytes) != 0 {
            Death.notDuring {
                memcpy(stable.address + offset, current.address + offset, sectorBytes)
            }
        }
    }

    func synchronize() -> Int32 {
        if failure != 0 { return -failure }
        var copied = 0
        for offset in stride(from: 0, to: current.bytes, by: sectorBytes)
        where memcmp(current.address + offset, stable.address + offset, sectorBytes) != 0 {
            Death.notDuring {
                memcpy(stable.address + offset, current.address + offset, sectorBytes)
            }
            copied += 1
            if copied == 3 { FaultPoint.reached("image.sync.half") }
        }
        return 0
    }

    func forgetCache() {}
    func extent(at offset: UInt64) -> (isHole: Bool, end: UInt64) { (false, .max) }

    /// The image after a power cut; `keeps` says of each unsynced sector whether it had reached the
    /// disk.
    func afterPowerCut(_ path: String, _ keeps: () -> Bool) throws -> VolatileImage {
        let cut = try VolatileImage(path, bytes: current.bytes)
        for offset in stride(from: 0, to: current.bytes, by: sectorBytes) {
            let differs =
                memcmp(current.address + offset, stable.address + offset, sectorBytes) != 0
            let source = differs && keeps() ? current.address : stable.address
            memcpy(cut.current.address + offset, source + offset, sectorBytes)
        }
        memcpy(cut.stable.address, cut.current.address, current.bytes)
        return cut
    }

    /// The stamps that reads see.
    func stamps(_ disk: Int) -> [UInt64?] {
        (0..<Plan.disks[disk]).map {
            Sector.stamp(current.address + $0 * sectorBytes, disk: disk, sector: $0)
        }
    }
}

/// What the process that dies leaves for the one that judges. All counts are events of the history.
struct Progress {
    static let mostEvents = 60_000
    private let file: SharedFile

    init(_ directory: String) throws {
        file = try SharedFile("\(directory)/progress", bytes: 8 * (Progress.mostEvents + 64))
    }

    private func word(_ index: Int) -> UnsafeMutablePointer<UInt64> {
        (file.address + 8 * index).assumingMemoryBound(to: UInt64.self)
    }

    /// Events begun, and events answered.
    var begun: Int {
        get { load(0) }
        nonmutating set { store(0, newValue) }
    }
    var answered: Int {
        get { load(8) }
        nonmutating set { store(8, newValue) }
    }
    /// Events that the published commit covers.
    var committed: Int {
        get { load(16) }
        nonmutating set { store(16, newValue) }
    }
    /// Events up to the last flush that a client may have been told of.
    var told: Int {
        get { load(24) }
        nonmutating set { store(24, newValue) }
    }
    /// The log's position before the first event of the history.
    var basePosition: Int {
        get { load(32) }
        nonmutating set { store(32, newValue) }
    }
    /// Events up to the last flush of the history.
    var lastBarrier: Int {
        get { load(40) }
        nonmutating set { store(40, newValue) }
    }

    /// The log's position behind the first `count` events.
    func position(_ count: Int) -> UInt64 {
        count == 0 ? UInt64(basePosition) : UInt64(load(64 + count - 1))
    }

    func setPosition(_ count: Int, _ position: UInt64) { store(64 + count - 1, Int(position)) }

    private func load(_ index: Int) -> Int { Int(ftvm_atomic_load_u64(word(index))) }
    private func store(_ index: Int, _ value: Int) {
        ftvm_atomic_store_u64(word(index), UInt64(value))
    }

    /// Where it died.
    var deathPoint: String {
        get { String(cString: (file.address + 48 * 8).assumingMemoryBound(to: CChar.self)) }
        nonmutating set {
            let text = Array(newValue.utf8.prefix(120)) + [0]
            (file.address + 48 * 8).copyMemory(from: text, byteCount: text.count)
        }
    }
}

/// The things of a VM's disks in a directory.
struct World {
    static let dataBytes: UInt64 = 96 << 10
    let directory: String

    var logPath: String { "\(directory)/log" }

    func make() throws {
        let descriptor = open(logPath, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw Trouble(logPath) }
        defer { close(descriptor) }
        try DiskLogFile.create(
            in: descriptor,
            LogSpecification(
                uuid: [UInt8](repeating: 7, count: 16),
                disks: Plan.disks.enumerated().map {
                    LoggedDisk(name: "vd\($0)", sizeBytes: UInt64($1 * sectorBytes))
                }, dataBytes: World.dataBytes, generation: Generation(1)))
    }

    func images() throws -> [VolatileImage] {
        try Plan.disks.indices.map { try VolatileImage(directory, disk: $0) }
    }

    private static let journalLimits = {
        var limits = DiskJournal.Limits()
        (limits.dataBytes, limits.entries) = (40 << 10, 128)
        return limits
    }()

    func journalImage() throws -> VolatileImage {
        try VolatileImage("\(directory)/journal", bytes: 128 << 10)
    }

    static func journal(on image: VolatileImage) -> DiskJournal {
        DiskJournal(storage: image, limits: journalLimits)
    }

    func log() throws -> DiskLogFile { try DiskLogFile(path: logPath) }

    func server(appliesByItself: Bool, journaled: Bool = false) throws -> DiskServer {
        var settings = DiskServer.Settings()
        settings.appliesByItself = appliesByItself
        settings.groupBytes = 20 << 10
        settings.lazyMilliseconds = 1
        (settings.batchBytes, settings.writebackBytes) = (8 << 10, 4 << 10)
        return DiskServer(
            log: try log(), images: try images(),
            journal: journaled ? World.journal(on: try journalImage()) : nil, settings: settings)
    }
}
