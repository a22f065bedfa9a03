import CLinux
import Glibc
import Model

/// The kernel had less room than it said before.
private struct NoRoom: Error {}

extension Pool {
    /// Makes a segment with all of its memory reserved, and opens it for writing in the generation
    /// of the specification.
    ///
    /// Throws `.resourceExhausted` if the pool has no room, `.alreadyExists`, `.invalidArgument`;
    /// then, and also if the process is killed, the pool is as it was (`removeStaleCreations`
    /// clears up after a kill).
    /// - Parameters:
    ///   - object: descriptor of the memory object that the first `objectBytes` of RAM are in already; it stays the
    ///     caller's.
    ///   - makeDiskLog: fills the empty file for the disks' redo log, with its memory reserved; called when the
    ///     specification has a size for it.
    package func createSegment(
        _ specification: SegmentSpecification, adopting object: Int32? = nil,
        makeDiskLog: (_ descriptor: Int32) throws -> Void = { _ in }
    ) throws -> Segment {
        precondition(
            (object != nil) == (specification.objectBytes > 0), "an object and its size")
        try SegmentSpecification.validateName(specification.name)
        try NumaPlacement.validate(specification.numaNodes)
        let header = try SegmentHeader(specification, pageSizeBytes: pageSizeBytes)
        let needed =
            header.ramFileBytes - header.objectBytes + header.controlFileBytes
            + specification.diskLogFileBytes
        let title = "segment '\(specification.name)'"
        try requireRoom(needed, title: title, nodes: header.numaNodes)

        let creation = try storage.beginCreation(of: specification.name)
        var files: [OwnedDescriptor] = []
        /// The memory goes back now, even if a child process that was just forked still has a copy
        /// of a descriptor.
        func abandon() {
            for file in files { _ = ftruncate(file.number, 0) }
            creation.abandon()
        }
        do {
            _ = try creation.makeFile(.lock)
            let ram = try creation.makeFile(.ram)
            files.append(ram)
            try reserve(
                ram, header.ramFileBytes - header.objectBytes, header.numaNodes,
                "the RAM of \(title)")
            if let object { try take(object, header, creation, title) }
            FaultPoint.reached("segment.create.ram-reserved")
            let control = try creation.makeFile(.control)
            files.append(control)
            let what = "the control file of \(title)"
            try reserve(control, header.controlFileBytes, header.numaNodes, what)
            FaultPoint.reached("segment.create.control-reserved")
            try Pool.initialise(control, header, what)
            FaultPoint.reached("segment.create.control-written")
            if specification.diskLogFileBytes > 0 {
                let disk = try creation.makeFile(.disk)
                files.append(disk)
                try makeDiskLog(disk.number)
            }
            try creation.complete()
        } catch is NoRoom {
            // What could be reserved is given back first, so that the message tells the truth.
            abandon()
            throw full(needed, free: try room().free, title)
        } catch {
            abandon()
            throw error
        }
        let segment = try openSegment(name: specification.name, access: .write)
        try segment.adopt(specification.generation)
        return segment
    }

    /// Makes a running QEMU's memory object the segment's: all of it is reserved, its contents stay, and only root opens
    /// it from now on, as it is with the other files.
    private func take(
        _ object: Int32, _ header: SegmentHeader, _ creation: any SegmentCreation, _ title: String
    ) throws {
        let what = "the memory that \(title) is to adopt"
        let copied = fcntl(object, F_DUPFD_CLOEXEC, 0)
        guard copied >= 0 else { throw systemError(lastErrno(), "cannot take \(what)") }
        let file = OwnedDescriptor(copied)
        let bytes = try file.fileBytes(what)
        precondition(bytes == header.objectBytes, "the object is as large as it was said to be")
        let result = ftvm_memory_reserve(copied, bytes)
        if result == -ENOSPC || result == -ENOMEM { throw NoRoom() }
        guard result == 0 else { throw systemError(result, "cannot reserve \(what)") }
        guard try creation.take(file) else {
            throw FtvmError(
                .failedPrecondition, "pool '\(name)' cannot keep \(what)",
                cause: "it is no file on the pool's file system",
                advice: "choose a pool of kind memfd")
        }
        guard fchown(copied, 0, 0) == 0, fchmod(copied, 0o600) == 0 else {
            throw systemError(lastErrno(), "cannot set the owner of \(what)")
        }
        FaultPoint.reached("segment.create.object-taken")
    }

    /// Whether a memory object can become a part of a segment of this pool as it is: it has the pool's pages, and the
    /// pool can keep it. (A pool in a directory keeps what has a name on the same mount; one of memfds keeps anything.)
    package func canAdopt(_ object: Int32, bytes: UInt64) throws -> Bool {
        var info = ftvm_memory_filesystem_info()
        let result = ftvm_memory_file_info(object, &info)
        guard result == 0 else { throw systemError(result, "cannot look at a guest's memory") }
        let pages =
            switch UInt32(info.kind) {
            case FTVM_MEMORY_FILESYSTEM_TMPFS.rawValue: UInt64(4096)
            case FTVM_MEMORY_FILESYSTEM_HUGETLBFS.rawValue: info.block_bytes
            default: UInt64(0)
            }
        guard pages == pageSizeBytes, bytes % pages == 0 else { return false }
        var status = stat()
        guard fstat(object, &status) == 0, UInt64(status.st_size) == bytes else { return false }
        if configuration.kind == .memfd { return true }
        // Tried, since nothing else tells; under a name that a clean-up takes away.
        let probe = try storage.beginCreation(of: "probe-\(randomSuffix())")
        defer { probe.abandon() }
        let copied = fcntl(object, F_DUPFD_CLOEXEC, 0)
        guard copied >= 0 else { return false }
        return try probe.take(OwnedDescriptor(copied))
    }

    /// Whether such a segment could be made now, without making it. Throws as `createSegment` does.
    package func requireRoom(for specification: SegmentSpecification) throws {
        try NumaPlacement.validate(specification.numaNodes)
        let header = try SegmentHeader(specification, pageSizeBytes: pageSizeBytes)
        try requireRoom(
            header.ramFileBytes - header.objectBytes + header.controlFileBytes
                + specification.diskLogFileBytes,
            title: "segment '\(specification.name)'", nodes: header.numaNodes)
    }

    private func reserve(
        _ file: OwnedDescriptor, _ bytes: UInt64, _ nodes: [Int], _ what: String
    ) throws {
        let huge = usesHugePages
        let result = try NumaPlacement.bound(
            to: nodes, file, bytes: bytes, hugePages: huge, what
        ) {
            ftvm_memory_reserve(file.number, bytes)
        }
        if result == -ENOSPC || result == -ENOMEM {
            throw NoRoom()
        }
        guard result == 0 else { throw systemError(result, "cannot reserve \(what)") }
    }

    /// Writes header and position into a new control file, whose bytes are all zero.
    private static func initialise(
        _ control: OwnedDescriptor, _ header: SegmentHeader, _ what: String
    ) throws {
        // By mapping: hugetlbfs knows no write(2).
        let mapping = try Mapping(control, bytes: header.controlFileBytes, writable: true, what)
        mapping.address.copyMemory(
            from: header.encoded(), byteCount: SegmentFormat.headerBytes)
        let live = mapping.address + Int(header.live.offset)
        let position = SegmentPosition(generation: header.creationGeneration, epoch: Epoch(0))
        ftvm_atomic_store_u64(
            (live + SegmentFormat.livePosition).assumingMemoryBound(to: UInt64.self),
            position.word)
    }
}

// MARK: - Room

extension Pool {
    /// How full the pool is.
    package func usage() throws -> PoolUsage {
        let room = try room()
        return PoolUsage(
            totalBytes: room.total, freeBytes: room.free, segmentCount: try storage.names().count,
            pageSizeBytes: pageSizeBytes)
    }

    private func room() throws -> (total: UInt64, free: UInt64) {
        var info = ftvm_memory_filesystem_info()
        let result = ftvm_memory_filesystem(configuration.path, &info)
        guard result == 0 else {
            throw systemError(result, "cannot look at pool '\(name)'")
        }
        var limit: (total: UInt64, free: UInt64)?
        if configuration.kind != .memfd && info.blocks > 0 {
            limit = (info.blocks * info.block_bytes, info.free_blocks * info.block_bytes)
        }
        let machine = usesHugePages ? hugePageRoom() : basePageRoom()
        guard let limit else { return machine }
        return (min(limit.total, machine.total), min(limit.free, machine.free))
    }

    /// Base pages that can be taken without the machine running out of memory: what the kernel
    /// calls available, less a reserve of 1/32 of the machine, at least 128 MiB.
    private func basePageRoom() -> (total: UInt64, free: UInt64) {
        let values = Pool.memoryInformation()
        let total = values["MemTotal"] ?? 0
        let available = values["MemAvailable"] ?? 0
        let reserve = max(total / 32, 128 << 20)
        return (total, available > reserve ? available - reserve : 0)
    }

    /// Huge pages of the pool's size that are neither used nor promised, with those that the kernel
    /// may still make (overcommit).
    private func hugePageRoom() -> (total: UInt64, free: UInt64) {
        let directory = "/sys/kernel/mm/hugepages/hugepages-\(pageSizeBytes / 1024)kB/"
        func pages(_ file: String) -> UInt64 {
            smallFile(directory + file).flatMap { UInt64($0.prefix { $0.isNumber }) } ?? 0
        }
        let (all, surplus) = (pages("nr_hugepages"), pages("surplus_hugepages"))
        let (free, promised) = (pages("free_hugepages"), pages("resv_hugepages"))
        let overcommit = pages("nr_overcommit_hugepages")
        let more = overcommit > surplus ? overcommit - surplus : 0
        return (
            (all + more) * pageSizeBytes,
            (free > promised ? free - promised : 0) * pageSizeBytes + more * pageSizeBytes
        )
    }

    /// `/proc/meminfo` in bytes.
    private static func memoryInformation() -> [String: UInt64] {
        var values: [String: UInt64] = [:]
        for line in (smallFile("/proc/meminfo") ?? "").split(separator: "\n") {
            let words = line.split { $0 == " " || $0 == ":" }
            guard words.count >= 2, let value = UInt64(words[1]) else { continue }
            values[String(words[0])] = words.count > 2 ? value << 10 : value
        }
        return values
    }

    private func requireRoom(_ needed: UInt64, title: String, nodes: [Int]) throws {
        let free = try room().free
        guard needed <= free else { throw full(needed, free: free, title) }
        guard !nodes.isEmpty, !usesHugePages else { return }
        // A bound allocation that its nodes cannot satisfy would wake the out-of-memory killer.
        let onNodes = NumaPlacement.nodes().filter { nodes.contains($0.node) }
            .reduce(UInt64(0)) { sum, node in
                let (more, overflow) = sum.addingReportingOverflow(node.freeBytes)
                return overflow ? .max : more
            }
        guard needed <= onNodes else {
            throw FtvmError(
                .resourceExhausted,
                "pool '\(name)' has no room for \(title) on NUMA nodes \(nodes)",
                cause: "\(readable(needed)) are asked for, \(readable(onNodes)) are free there",
                advice: "choose other nodes or none, or free memory on these")
        }
    }

    private func full(_ needed: UInt64, free: UInt64, _ title: String) -> FtvmError {
        let advice =
            usesHugePages
            ? "remove segments that no pair needs, or raise nr_hugepages for pages of "
                + readable(pageSizeBytes)
            : "remove segments that no pair needs, free memory, "
                + "or enlarge the pool (mount -o remount,size=...)"
        return FtvmError(
            .resourceExhausted, "pool '\(name)' has no room for \(title)",
            cause: "\(readable(needed)) are asked for, guest RAM and logs together, "
                + "\(readable(free)) are free",
            advice: advice)
    }
}
