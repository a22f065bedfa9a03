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
            savedHugePages = try? String(contentsOfFile: Self.hugePagesFile, encoding: .utf8)
            try "\(hugePages)".write(toFile: Self.hugePagesFile, atomically: false, encoding: .utf8)
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
    private var savedHugePages: String?
    private static let hugePagesFile = "/proc/sys/vm/nr_hugepages"

    package func remove() {
        if let mounted { umount2(mounted, Int32(MNT_DETACH)) }
        if let savedHugePages {
            try? savedHugePages.write(
                toFile: Self.hugePagesFile, atomically: false, encoding: .utf8)
        }
        try? FileManager.default.removeItem(at: directory)
    }
}
