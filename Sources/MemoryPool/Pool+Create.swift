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
    package func createSegment(_ specification: SegmentSpecification) throws -> Segment {
        try SegmentSpecification.validateName(specification.name)
        try NumaPlacement.validate(specification.numaNodes)
        let header = try SegmentHeader(specification, pageSizeBytes: pageSizeBytes)
        let needed = header.ramFileBytes + header.controlFileBytes
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
            try reserve(ram, header.ramFileBytes, header.numaNodes, "the RAM of \(title)")
            FaultPoint.reached("segment.create.ram-reserved")
            let control = try creation.makeFile(.control)
            files.append(control)
            let what = "the control file of \(title)"
            try reserve(control, header.controlFileBytes, header.numaNodes, what)
            FaultPoint.reached("segment.create.control-reserved")
            try Pool.initialise(control, header, what)
            FaultPoint.reached("segment.create.control-written")
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

    /// Whether such a segment could be made now, without making it. Throws as `createSegment` does.
    package func requireRoom(for specification: SegmentSpecification) throws {
        try NumaPlacement.validate(specification.numaNodes)
        let header = try SegmentHeader(specification, pageSizeBytes: pageSizeBytes)
        try requireRoom(
            header.ramFileBytes + header.controlFileBytes,
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
            cause: "\(readable(needed)) are asked for, guest RAM and undo log together, "
                + "\(readable(free)) are free",
            advice: advice)
    }
}
