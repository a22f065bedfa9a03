import Foundation
import Glibc
import MemoryPool
import Model

/// A directory and a tmpfs pool of the test's own, removed in the end.
package final class Workspace {
    package let directory: URL
    package let pool: Pool

    package init(pool kind: PoolKind, hugePages: Int = 0) throws {
        directory = URL(fileURLWithPath: "/dev/shm/ftvm-test-\(UUID().uuidString.prefix(8))")
        try FileManager.default.createDirectory(
            at: directory.appendingPathComponent("pool"), withIntermediateDirectories: true)
        let path = directory.appendingPathComponent("pool").path
        if kind == .hugetlbfs {
            try Self.addHugePages(hugePages)
            takenHugePages = hugePages
            guard mount("none", path, "hugetlbfs", 0, "pagesize=2M") == 0 else {
                throw FtvmError(
                    .unsupported, "cannot mount hugetlbfs", cause: String(cString: strerror(errno)))
            }
            mounted = path
        }
        pool = try Pool(
            PoolConfiguration(name: PoolName("test"), kind: kind, path: path))
    }

    private var mounted: String?
    private var takenHugePages = 0

    package func remove() {
        if let mounted { umount2(mounted, Int32(MNT_DETACH)) }
        try? FileManager.default.removeItem(at: directory)
        if takenHugePages > 0 { try? Self.addHugePages(-takenHugePages) }
    }

    /// The machine's number of huge pages belongs to everybody: it is changed by a difference, one at a time.
    private static func addHugePages(_ count: Int) throws {
        let path = "/proc/sys/vm/nr_hugepages"
        let file = open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0, flock(file, LOCK_EX) == 0 else {
            throw FtvmError(
                .unsupported, "cannot lock \(path)", cause: String(cString: strerror(errno)))
        }
        defer { close(file) }
        let text = try String(contentsOfFile: path, encoding: .utf8)
        let present = Int(text.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0
        try "\(max(0, present + count))".write(toFile: path, atomically: false, encoding: .utf8)
    }
}
