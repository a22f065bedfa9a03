import CLinux
import Foundation
import MemoryPool
import Model
import Testing

/// A pool of its own, removed with its owner.
final class TestPool {
    let directory: String
    let pool: Pool
    private let mounted: Bool
    private var hugePages: HugePages?
    private var keeper: KeeperThread?

    /// - Parameters:
    ///   - mountOptions: mounts a tmpfs of its own with these (root only) instead of using
    ///     /dev/shm.
    ///   - hugePages: huge pages to have, for hugetlbfs.
    init(
        _ kind: PoolKind = .tmpfs, mountOptions: String? = nil, hugePages pages: Int = 0
    ) throws {
        let directory = "/dev/shm/ftvm-pool-test-\(UUID().uuidString)"
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: false)
        self.directory = directory
        if pages > 0 { hugePages = try HugePages(adding: pages) }
        let type = kind == .hugetlbfs ? "hugetlbfs" : "tmpfs"
        mounted = kind == .hugetlbfs || mountOptions != nil
        if mounted, mount(type, directory, type, 0, mountOptions ?? "") != 0 {
            throw TestTrouble("cannot mount \(type): \(String(cString: strerror(errno)))")
        }
        if kind == .memfd { keeper = try KeeperThread(directory: directory) }
        pool = try Pool(PoolConfiguration(name: PoolName("test"), kind: kind, path: directory))
    }

    deinit {
        keeper?.stop()
        if mounted { umount2(directory, Int32(MNT_DETACH)) }
        try? FileManager.default.removeItem(atPath: directory)
    }

    func path(_ segment: String, _ file: String) -> String {
        "\(directory)/segments/\(segment)/\(file)"
    }

    /// Everything in the pool's directory of segments, hidden names included.
    var entries: [String] {
        (try? FileManager.default.contentsOfDirectory(atPath: directory + "/segments"))?.sorted()
            ?? []
    }
}

struct TestTrouble: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

let isRoot = geteuid() == 0

/// Huge pages of the default size, given back with their owner.
final class HugePages {
    private static let file = "/proc/sys/vm/nr_hugepages"
    private let added: Int

    private static func count() -> Int {
        let text = (try? String(contentsOfFile: file, encoding: .utf8)) ?? ""
        return Int(text.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0
    }

    private static func set(_ count: Int) {
        guard let handle = FileHandle(forWritingAtPath: file) else { return }
        try? handle.write(contentsOf: Data("\(count)\n".utf8))
        try? handle.close()
    }

    init(adding wanted: Int) throws {
        let before = HugePages.count()
        HugePages.set(before + wanted)
        added = HugePages.count() - before
        if added < wanted { throw TestTrouble("the kernel gave \(added) of \(wanted) huge pages") }
    }

    deinit { HugePages.set(max(0, HugePages.count() - added)) }
}

/// A keeper that serves on a thread of this process.
final class KeeperThread: Sendable {
    private let keeper: MemfdKeeper
    private let ended = DispatchSemaphore(value: 0)

    init(directory: String, hugePageBytes: UInt64? = nil) throws {
        let keeper = try MemfdKeeper(directory: directory, hugePageBytes: hugePageBytes)
        let ended = ended
        self.keeper = keeper
        Thread.detachNewThread {
            do { try keeper.serve() } catch { Issue.record("the keeper failed: \(error)") }
            ended.signal()
        }
    }

    func stop() {
        keeper.stop()
        ended.wait()
    }
}

/// All of a file in /proc: Foundation takes the first short read for its end.
func wholeFile(_ path: String) throws -> String {
    guard let file = fopen(path, "r") else { throw TestTrouble("cannot open \(path)") }
    defer { fclose(file) }
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65536)
    while true {
        let count = fread(&chunk, 1, chunk.count, file)
        if count == 0 { return String(decoding: bytes, as: UTF8.self) }
        bytes += chunk[..<count]
    }
}

/// Waits, up to ten seconds, for what other threads still delay: a child process that one of them
/// has forked holds copies of all descriptors until its exec.
func eventually(_ condition: () throws -> Bool) rethrows -> Bool {
    for _ in 0..<1000 {
        if try condition() { return true }
        usleep(10_000)
    }
    return false
}

let testUUID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"

/// The smallest frame log.
let smallLogBytes = SegmentSpecification.minimumFrameLogBytes

/// A small segment: `pages` pages of RAM, `undo` entries.
func smallSegment(
    _ name: String = "vm", pages: UInt64 = 16, undo: UInt64 = 8, pageBytes: UInt64 = 4096,
    generation: Generation = Generation(1)
) -> SegmentSpecification {
    SegmentSpecification(
        name: name, uuid: testUUID, memoryBytes: pages * pageBytes, undoLogBytes: undo * pageBytes,
        stateSlotBytes: 8192, outputLogBytes: smallLogBytes, inputLogBytes: smallLogBytes,
        generation: generation)
}

/// Runs `body`, which must throw one of our errors, and gives the error.
func ftvmError(
    _ code: FtvmError.Code, sourceLocation: SourceLocation = #_sourceLocation,
    _ body: () throws -> Void
) throws -> FtvmError {
    let error = try #require(
        #expect(throws: FtvmError.self, sourceLocation: sourceLocation, performing: body),
        sourceLocation: sourceLocation)
    #expect(error.code == code, "\(error)", sourceLocation: sourceLocation)
    return error
}

extension Segment {
    /// Fills a page with a byte.
    func fill(page: UInt64, with byte: UInt8) {
        memset(ram + Int(page) * pageSizeBytes, Int32(byte), pageSizeBytes)
    }

    /// The byte that the whole page consists of; nil if it is mixed.
    func filling(of page: UInt64) -> UInt8? {
        let bytes = UnsafeRawBufferPointer(
            start: ram + Int(page) * pageSizeBytes, count: pageSizeBytes)
        return bytes.allSatisfy { $0 == bytes[0] } ? bytes[0] : nil
    }

    func writeState(_ epoch: Epoch, _ bytes: [UInt8]) {
        stateSlot(for: epoch).copyBytes(from: bytes)
    }
}
