import CLinux
import Foundation
import MemoryPool
import Model
import Testing

@Suite struct PoolTests {
    @Test func aMissingDirectoryIsNamed() throws {
        let error = try ftvmError(.notFound) {
            _ = try Pool(
                PoolConfiguration(
                    name: PoolName("p"), kind: .tmpfs, path: "/dev/shm/ftvm-not-there"))
        }
        #expect(error.message.contains("/dev/shm/ftvm-not-there"))
    }

    @Test func theWrongFileSystemIsNamed() throws {
        let error = try ftvmError(.invalidArgument) {
            _ = try Pool(PoolConfiguration(name: PoolName("p"), kind: .hugetlbfs, path: "/dev/shm"))
        }
        #expect(error.cause == "'/dev/shm' is on tmpfs")
        let other = try ftvmError(.invalidArgument) {
            _ = try Pool(PoolConfiguration(name: PoolName("p"), kind: .tmpfs, path: "/proc"))
        }
        #expect(other.cause == "'/proc' is on a file system with the magic number 0x9fa0")
    }

    @Test(arguments: [
        "", ".", "..", ".hidden", "a/b", "a b", "ä", "x\0y", String(repeating: "n", count: 129),
    ])
    func badNamesAreRefused(name: String) throws {
        let home = try TestPool()
        _ = try ftvmError(.invalidArgument) { _ = try home.pool.createSegment(smallSegment(name)) }
        _ = try ftvmError(.invalidArgument) {
            _ = try home.pool.openSegment(name: name, access: .read)
        }
        _ = try ftvmError(.invalidArgument) { try home.pool.removeSegment(name: name) }
        #expect(home.entries == [])
    }

    /// The file system can be mounted without such pages being there.
    @Test(
        .enabled(
            if: isRoot
                && access("/sys/kernel/mm/hugepages/hugepages-1048576kB", F_OK) == 0,
            "this machine has no pages of 1 GiB"))
    func pagesOfAGibibyteAreRefused() throws {
        let directory = "/dev/shm/ftvm-pool-test-\(UUID().uuidString)"
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: false)
        defer { try? FileManager.default.removeItem(atPath: directory) }
        try #require(mount("none", directory, "hugetlbfs", 0, "pagesize=1G") == 0)
        defer { umount2(directory, Int32(MNT_DETACH)) }
        let error = try ftvmError(.unsupported) {
            _ = try Pool(
                PoolConfiguration(name: PoolName("p"), kind: .hugetlbfs, path: directory))
        }
        #expect(error.message == "pool 'p' has pages of 1024 MiB")
    }

    /// Nothing is taken for gone that only cannot be seen.
    @Test(.enabled(if: isRoot)) func aPoolThatWasUnmountedHasLostNothing() throws {
        let home = try TestPool(mountOptions: "size=16m")
        _ = try home.pool.createSegment(smallSegment("a"))
        #expect(try home.pool.presentSegment(name: "a") != nil)
        #expect(try home.pool.presentSegment(name: "b") == nil)
        try #require(umount2(home.directory, Int32(MNT_DETACH)) == 0)
        for name in ["a", "b"] {
            let error = try ftvmError(.unavailable) {
                _ = try home.pool.presentSegment(name: name)
            }
            #expect(error.message == "pool 'test' is not mounted any more")
            _ = try ftvmError(.unavailable) { try home.pool.removeSegment(name: name) }
        }
        _ = try ftvmError(.unavailable) { _ = try home.pool.segmentNames() }
    }

    @Test(arguments: [PoolKind.tmpfs, .memfd])
    func segmentsAreMadeListedOpenedAndRemoved(kind: PoolKind) throws {
        let home = try TestPool(kind)
        #expect(try home.pool.segmentNames() == [])
        let before = try home.pool.usage()
        let longName = String(repeating: "n", count: 128)
        do {
            let segment = try home.pool.createSegment(smallSegment("b"))
            _ = try home.pool.createSegment(smallSegment(longName))
            _ = try home.pool.createSegment(smallSegment("a.1_x-Y"))
            segment.fill(page: 15, with: 77)
        }
        #expect(try home.pool.segmentNames() == ["a.1_x-Y", "b", longName])
        #expect(try home.pool.usage().segmentCount == 3)
        #expect(before.pageSizeBytes == 4096)
        _ = try ftvmError(.alreadyExists) { _ = try home.pool.createSegment(smallSegment("b")) }
        #expect(try home.pool.openSegment(name: "b", access: .read).filling(of: 15) == 77)
        #expect(try home.pool.removeSegment(name: "b"))
        #expect(try !home.pool.removeSegment(name: "b"))
        _ = try ftvmError(.notFound) { _ = try home.pool.openSegment(name: "b", access: .read) }
        _ = try ftvmError(.notFound) { _ = try home.pool.describeSegment(name: "b") }
        #expect(try home.pool.segmentNames() == ["a.1_x-Y", longName])
    }

    @Test func filesArePrivateAndReserved() throws {
        let home = try TestPool()
        let segment = try home.pool.createSegment(smallSegment(pages: 100))
        var status = stat()
        for file in ["ram", "control", "lock"] {
            #expect(stat(home.path("vm", file), &status) == 0)
            #expect(status.st_mode & 0o777 == 0o600)
            if file == "ram" { #expect(status.st_blocks * 512 == 100 * 4096) }
            if file == "control" {
                #expect(UInt64(status.st_blocks * 512) == segment.header.controlFileBytes)
            }
        }
        #expect(stat(home.directory + "/segments/vm", &status) == 0)
        #expect(status.st_mode & 0o777 == 0o700)
    }

    @Test(arguments: [PoolKind.tmpfs, .memfd])
    func readersCannotWrite(kind: PoolKind) throws {
        let home = try TestPool(kind)
        let writer = try home.pool.createSegment(smallSegment())
        let reader = try home.pool.openSegment(name: "vm", access: .read)
        for (descriptor, ours) in [
            (reader.ramDescriptor, false), (try writer.openRAMReadOnly(), true),
        ] {
            #expect(fcntl(descriptor, F_GETFL) & O_ACCMODE == O_RDONLY)
            #expect(fcntl(descriptor, F_GETFD) & FD_CLOEXEC != 0)
            let mapped = mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
            #expect(mapped == MAP_FAILED)
            if ours { close(descriptor) }
        }
        #expect(fcntl(writer.ramDescriptor, F_GETFL) & O_ACCMODE == O_RDWR)
        #expect(fcntl(writer.ramDescriptor, F_GETFD) & FD_CLOEXEC != 0)
        // Protection of the reader's own mapping, as the kernel lists it.
        let maps = try wholeFile("/proc/self/maps")
        let start = String(UInt(bitPattern: reader.ram), radix: 16)
        let line = maps.split(separator: "\n").first { $0.hasPrefix(start + "-") }
        #expect(line?.contains(" r--s ") == true, "\(start) not in \(maps)")
    }

    @Test func moreThanTheMachineHasIsRefusedAtOnce() throws {
        let home = try TestPool()
        let error = try ftvmError(.resourceExhausted) {
            _ = try home.pool.createSegment(
                SegmentSpecification(name: "vm", uuid: testUUID, memoryBytes: 1 << 44))
        }
        // 16 TiB of RAM, a quarter of that for the undo log's images, and a little more.
        let asked = try #require(error.cause?.split(separator: " ").first.flatMap { Int($0) })
        #expect(asked > 20 << 20 && asked < 20 << 20 + 40_000, "\(error)")
        #expect(error.cause?.contains("MiB are asked for") == true)
        #expect(error.cause?.contains("are free") == true)
        #expect(error.advice != nil)
        #expect(home.entries == [])
    }

    @Test(.enabled(if: isRoot, "needs root, to mount a small tmpfs"))
    func aFullPoolIsAClearErrorAndNothingIsLeft() throws {
        let home = try TestPool(mountOptions: "size=2M")
        let small = smallSegment("small", pages: 100, undo: 50)
        _ = try home.pool.createSegment(small)
        let before = try home.pool.usage()
        #expect(before.totalBytes == 2 << 20)
        let error = try ftvmError(.resourceExhausted) {
            _ = try home.pool.createSegment(smallSegment(pages: 100, undo: 50))
        }
        #expect(error.message == "pool 'test' has no room for segment 'vm'")
        #expect(error.cause?.contains("\(before.freeBytes >> 10) KiB are free") == true, "\(error)")
        #expect(home.entries == ["small"])
        #expect(try home.pool.usage() == before)
    }

    /// Room there was when it was looked at, but not when it was taken.
    @Test(.enabled(if: isRoot, "needs root, to mount a small tmpfs"))
    func aReservationThatFailsHalfWayIsGivenBack() throws {
        // The inodes: segments, directory, lock, ram; none is left for the control file.
        let home = try TestPool(mountOptions: "size=4M,nr_inodes=5")
        _ = try ftvmError(.resourceExhausted) { _ = try home.pool.createSegment(smallSegment()) }
        #expect(home.entries == [])
        #expect(try home.pool.usage().freeBytes == 4 << 20)
    }

    @Test(arguments: [SegmentLockByte.primary, .manager], [PoolKind.tmpfs, .memfd])
    func aHeldLockKeepsTheSegment(byte: SegmentLockByte, kind: PoolKind) throws {
        let home = try TestPool(kind)
        let segment = try home.pool.createSegment(smallSegment())
        let holder = try LockHolder(home, "vm", byte)
        #expect(try segment.isLocked(.primary) == (byte == .primary))
        #expect(try segment.isLocked(.manager) == (byte == .manager))
        #expect(segment.dump().primaryLocked == (byte == .primary))
        let error = try ftvmError(.failedPrecondition) { try home.pool.removeSegment(name: "vm") }
        let cause = byte == .primary ? "a QEMU runs as its primary" : "an ftvmd manages it"
        #expect(error.cause == cause)
        #expect(try home.pool.segmentNames() == ["vm"])
        if byte == .manager {
            _ = try ftvmError(.conflict) { try segment.takeManagerLock() }
        } else {
            try segment.takeManagerLock()
            segment.releaseManagerLock()
        }
        holder.kill()
        try segment.takeManagerLock()
        try segment.takeManagerLock()
        #expect(try segment.isLocked(.manager))
        let other = try home.pool.openSegment(name: "vm", access: .write)
        _ = try ftvmError(.conflict) { try other.takeManagerLock() }
        _ = try ftvmError(.failedPrecondition) { try home.pool.removeSegment(name: "vm") }
        segment.releaseManagerLock()
        #expect(try home.pool.removeSegment(name: "vm"))
    }

    @Test func aCreationUnderWayIsNotStale() throws {
        let home = try TestPool()
        // What a creation looks like while it reserves memory: its creator lives and holds the
        // lock.
        let directory = home.directory + "/segments/.creating-vm-1"
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: true)
        let lock = ftvm_memory_open(AT_FDCWD, directory + "/lock", O_RDWR | O_CREAT, 0o600)
        #expect(ftvm_lock_set(lock, SegmentLockByte.creation.offset, 1, true) == 0)
        #expect(try home.pool.removeStaleCreations() == [])
        #expect(home.entries == [".creating-vm-1"])
        close(lock)
        #expect(try home.pool.removeStaleCreations() == [".creating-vm-1"])
        #expect(home.entries == [])
    }

    @Test func creatorsAndCleanersDoNotDisturbEachOther() async throws {
        let home = try TestPool()
        let pool = home.pool
        try await withThrowingTaskGroup(of: Void.self) { group in
            for task in 0..<3 {
                group.addTask {
                    for round in 0..<60 {
                        if task == 0 {
                            try pool.removeStaleCreations()
                        } else {
                            let name = "vm-\(task)-\(round)"
                            _ = try pool.createSegment(smallSegment(name))
                            #expect(try pool.describeSegment(name: name).problems == [])
                            #expect(try pool.removeSegment(name: name))
                        }
                    }
                }
            }
            try await group.waitForAll()
        }
        #expect(home.entries == [])
    }

    @Test func oneOfTwoCreatorsOfANameWins() async throws {
        let home = try TestPool()
        let pool = home.pool
        for round in 0..<20 {
            let made = await withTaskGroup(of: Bool.self) { group in
                for _ in 0..<2 {
                    group.addTask { (try? pool.createSegment(smallSegment("vm-\(round)"))) != nil }
                }
                return await group.reduce(0) { $0 + ($1 ? 1 : 0) }
            }
            #expect(made == 1)
        }
        #expect(try pool.segmentNames().count == 20)
        #expect(home.entries.count == 20)
    }

    @Test func anUnknownNumaNodeIsRefusedWithThoseThatExist() throws {
        let home = try TestPool()
        var specification = smallSegment()
        specification.numaNodes = [0, 999]
        let error = try ftvmError(.invalidArgument) {
            _ = try home.pool.createSegment(specification)
        }
        #expect(error.message.contains("NUMA node 999"))
        #expect(error.cause?.hasPrefix("nodes with memory: 0") == true)
        #expect(home.entries == [])
    }

    @Test(arguments: [PoolKind.tmpfs, .memfd])
    func theNumaNodesAskedForAreRememberedAndUsed(kind: PoolKind) throws {
        let home = try TestPool(kind)
        var specification = smallSegment(pages: 300)
        specification.numaNodes = [0, 0]
        let segment = try home.pool.createSegment(specification)
        #expect(segment.header.numaNodes == [0])
        let description = try home.pool.describeSegment(name: "vm")
        #expect(description.header?.numaNodes == [0])
        #expect(description.sampledPagesOnNodes == [0: 256])
        #expect(description.description.contains("bound to 0"))
        // The policy of the file itself, which any mapping of it then has (as numa_maps shows it).
        let start = String(UInt(bitPattern: segment.ram), radix: 16)
        let maps = try wholeFile("/proc/self/numa_maps")
        let line = maps.split(separator: "\n").first { $0.hasPrefix(start + " ") }
        #expect(line?.contains("bind:0") == true, "\(line ?? "no line")")
    }

    @Test func impossibleSizesAreRefused() throws {
        let home = try TestPool()
        for bytes in [0, 4095, 4097, UInt64.max, 1 << 60] as [UInt64] {
            _ = try ftvmError(.invalidArgument) {
                _ = try home.pool.createSegment(
                    SegmentSpecification(name: "vm", uuid: testUUID, memoryBytes: bytes))
            }
        }
        for bytes in [0, 4095, UInt64.max] as [UInt64] {
            var specification = smallSegment()
            specification.undoLogBytes = bytes
            _ = try ftvmError(.invalidArgument) { _ = try home.pool.createSegment(specification) }
            specification = smallSegment()
            specification.stateSlotBytes = bytes == 4095 ? 1 << 40 : bytes
            _ = try ftvmError(.invalidArgument) { _ = try home.pool.createSegment(specification) }
        }
        let tooShort = String(testUUID.dropLast())
        for uuid in ["", "xyz", testUUID + "0", tooShort, "g" + testUUID.dropFirst()] {
            _ = try ftvmError(.invalidArgument) {
                _ = try home.pool.createSegment(
                    SegmentSpecification(name: "vm", uuid: uuid, memoryBytes: 4096))
            }
        }
        #expect(home.entries == [])
    }
}
