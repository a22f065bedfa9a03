import Foundation
import MemoryPool
import Model
import Testing

/// Pools on hugetlbfs. The number of huge pages is the machine's, so one test at a time.
@Suite(.serialized, .enabled(if: isRoot, "needs root, to mount hugetlbfs"))
struct HugePageTests {
    private static let turn = NSLock()

    /// Keeps tests of other suites, and of other processes, that use huge pages apart from these.
    static func exclusively<Value>(_ body: () throws -> Value) throws -> Value {
        turn.lock()
        defer { turn.unlock() }
        let file = open("/proc/sys/vm/nr_hugepages", O_RDONLY | O_CLOEXEC)
        guard file >= 0, flock(file, LOCK_EX) == 0 else {
            throw TestTrouble("cannot lock nr_hugepages")
        }
        defer {
            flock(file, LOCK_UN)
            close(file)
        }
        return try body()
    }

    private static let pageBytes: UInt64 = 2 << 20

    @Test func aSegmentOfHugePagesCommitsAndRollsBack() throws {
        try HugePageTests.exclusively {
            let home = try TestPool(.hugetlbfs, hugePages: 34)
            #expect(home.pool.pageSizeBytes == HugePageTests.pageBytes)
            let free = try home.pool.usage().freeBytes
            let segment = try home.pool.createSegment(
                smallSegment(pages: 6, undo: 4, pageBytes: HugePageTests.pageBytes))
            // 6 of RAM, 4 of the log, 1 of everything else.
            #expect(try home.pool.usage().freeBytes == free - 11 * HugePageTests.pageBytes)
            for page in 0..<6 as Range<UInt64> { segment.fill(page: page, with: UInt8(page + 1)) }
            segment.writeState(Epoch(1), [9, 8, 7])
            try segment.publish(epoch: Epoch(1), generation: Generation(1), stateLength: 3)
            #expect(segment.appendUndo(firstPage: 4, count: 2, epoch: Epoch(2)) == .appended)
            segment.fill(page: 4, with: 0xaa)
            segment.fill(page: 5, with: 0xbb)
            #expect(try segment.rollBack().bytes == 2 * HugePageTests.pageBytes)
            for page in 0..<6 as Range<UInt64> {
                #expect(segment.filling(of: page) == UInt8(page + 1))
            }
            #expect(segment.dump().problems == [])
            // RAM that is no multiple of the page size gets a whole last page.
            let odd = try home.pool.createSegment(
                SegmentSpecification(
                    name: "odd", uuid: testUUID, memoryBytes: HugePageTests.pageBytes + 4096,
                    undoLogBytes: HugePageTests.pageBytes))
            #expect(odd.pageCount == 2)
            #expect(odd.memoryBytes == HugePageTests.pageBytes + 4096)
        }
    }

    /// A quarter of a small guest is a few huge pages, and an epoch touches more.
    @Test func theUsualLogOfASmallGuestHasRoomForAllOfIt() throws {
        try HugePageTests.exclusively {
            let home = try TestPool(.hugetlbfs, hugePages: 150)
            let segment = try home.pool.createSegment(
                SegmentSpecification(name: "usual", uuid: testUUID, memoryBytes: 128 << 20))
            #expect(segment.pageCount == 64)
            #expect(segment.undoCapacity == 64)
        }
    }

    @Test func aLockOnHugetlbfsKeepsASegment() throws {
        try HugePageTests.exclusively {
            let home = try TestPool(.hugetlbfs, hugePages: 8)
            let specification = smallSegment(pages: 2, undo: 2, pageBytes: HugePageTests.pageBytes)
            let segment = try home.pool.createSegment(specification)
            let holder = try LockHolder(home, "vm", .primary)
            #expect(try segment.isLocked(.primary))
            _ = try ftvmError(.failedPrecondition) { try home.pool.removeSegment(name: "vm") }
            holder.kill()
            #expect(try !segment.isLocked(.primary))
            #expect(try home.pool.removeSegment(name: "vm"))
            #expect(home.entries == [])
        }
    }

    @Test func tooFewHugePagesAreAClearErrorAndNothingIsLeft() throws {
        try HugePageTests.exclusively {
            let home = try TestPool(.hugetlbfs, hugePages: 4)
            let before = try home.pool.usage()
            let error = try ftvmError(.resourceExhausted) {
                _ = try home.pool.createSegment(
                    smallSegment(pages: 2000, undo: 2, pageBytes: HugePageTests.pageBytes))
            }
            #expect(error.message.contains("'test'"))
            #expect(error.cause?.contains("4006 MiB") == true, "\(error)")
            #expect(error.advice?.contains("nr_hugepages") == true)
            #expect(home.entries == [])
            #expect(try home.pool.usage() == before)
        }
    }

    /// The file system's own limit is smaller than what the machine has.
    @Test func theLimitOfTheMountCounts() throws {
        try HugePageTests.exclusively {
            let home = try TestPool(.hugetlbfs, mountOptions: "size=8M", hugePages: 12)
            #expect(try home.pool.usage().totalBytes == 8 << 20)
            _ = try ftvmError(.resourceExhausted) {
                _ = try home.pool.createSegment(
                    smallSegment(pages: 4, undo: 2, pageBytes: HugePageTests.pageBytes))
            }
            #expect(home.entries == [])
            _ = try home.pool.createSegment(
                smallSegment(pages: 1, undo: 2, pageBytes: HugePageTests.pageBytes))
            #expect(try home.pool.usage().freeBytes == 0)
        }
    }

    @Test func aKeeperOfHugePages() throws {
        try HugePageTests.exclusively {
            let pages = try HugePages(adding: 8)
            defer { withExtendedLifetime(pages) {} }
            let directory = "/dev/shm/ftvm-pool-test-\(UUID().uuidString)"
            try FileManager.default.createDirectory(
                atPath: directory, withIntermediateDirectories: false)
            defer { try? FileManager.default.removeItem(atPath: directory) }
            let keeper = try KeeperThread(
                directory: directory, hugePageBytes: HugePageTests.pageBytes)
            defer { keeper.stop() }
            let pool = try Pool(
                PoolConfiguration(name: PoolName("test"), kind: .memfd, path: directory))
            #expect(pool.pageSizeBytes == HugePageTests.pageBytes)
            let free = try pool.usage().freeBytes
            _ = try pool.createSegment(
                smallSegment(pages: 2, undo: 2, pageBytes: HugePageTests.pageBytes))
            #expect(try pool.usage().freeBytes == free - 5 * HugePageTests.pageBytes)
            _ = try ftvmError(.resourceExhausted) {
                _ = try pool.createSegment(
                    smallSegment("more", pages: 900, pageBytes: HugePageTests.pageBytes))
            }
            #expect(try pool.segmentNames() == ["vm"])
            #expect(try pool.removeSegment(name: "vm"))
            #expect(try eventually { try pool.usage().freeBytes == free })
        }
    }
}
