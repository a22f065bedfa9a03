import CLinux
import CNuma
import Glibc
import Model

/// Putting a segment's memory on the NUMA nodes asked for, and looking where it is.
enum NumaPlacement {
    /// Nodes that have memory, with their free bytes; node 0 alone where the kernel has no NUMA.
    static func nodes() -> [(node: Int, freeBytes: UInt64)] {
        guard numa_available() >= 0 else { return [(0, UInt64.max)] }
        var nodes: [(Int, UInt64)] = []
        for node in 0...max(0, Int(numa_max_node())) {
            var free: Int64 = 0
            let size = numa_node_size64(Int32(node), &free)
            if size > 0 { nodes.append((node, UInt64(max(0, free)))) }
        }
        return nodes
    }

    static func validate(_ wanted: [Int]) throws {
        let existing = nodes().map(\.node)
        let limit = SegmentFormat.numaWords * 64
        guard let unknown = wanted.first(where: { !existing.contains($0) || $0 >= limit }) else {
            return
        }
        throw FtvmError(
            .invalidArgument, "there is no NUMA node \(unknown) with memory on this machine",
            cause: "nodes with memory: \(existing.map(String.init).joined(separator: ", "))")
    }

    private static func mask(_ nodes: [Int]) -> [UInt] {
        var mask = [UInt](repeating: 0, count: SegmentFormat.numaWords)
        for node in nodes { mask[node / 64] |= 1 << (node % 64) }
        return mask
    }

    /// The kernel reads one bit less than it is told.
    private static let maskBits = UInt(SegmentFormat.numaWords * 64 + 1)

    /// Runs `reserve`, which allocates the file's pages, so that they come from `nodes`.
    ///
    /// On tmpfs (and memfds of base pages) the policy of a mapping is the policy of the file, and
    /// stays with it. hugetlbfs has no such policy (dropped from the kernel in 6.7, never effective
    /// before): there the policy of this thread decides, for as long as `reserve` runs.
    static func bound<Value>(
        to nodes: [Int], _ file: OwnedDescriptor, bytes: UInt64, hugePages: Bool, _ what: String,
        _ reserve: () throws -> Value
    ) throws -> Value {
        guard !nodes.isEmpty, numa_available() >= 0 else { return try reserve() }
        let bits = mask(nodes)
        if !hugePages {
            // Sized first: the mapping must lie within the file for the policy to cover it.
            guard ftruncate(file.number, off_t(bytes)) == 0 else {
                throw systemError(lastErrno(), "cannot size \(what)")
            }
            let mapping = try Mapping(file, bytes: bytes, writable: true, reserve: false, what)
            guard mbind(mapping.address, UInt(mapping.bytes), MPOL_BIND, bits, maskBits, 0) == 0
            else { throw systemError(lastErrno(), "cannot bind \(what) to NUMA nodes") }
            return try reserve()
        }
        var oldMode: Int32 = 0
        var oldMask = [UInt](repeating: 0, count: SegmentFormat.numaWords)
        guard get_mempolicy(&oldMode, &oldMask, maskBits - 1, nil, 0) == 0,
            set_mempolicy(MPOL_BIND, bits, maskBits) == 0
        else { throw systemError(lastErrno(), "cannot bind \(what) to NUMA nodes") }
        defer {
            let restored = set_mempolicy(oldMode, oldMode == MPOL_DEFAULT ? nil : oldMask, maskBits)
            precondition(restored == 0, "the thread's own NUMA policy cannot be restored")
        }
        return try reserve()
    }

    /// On which nodes a sample of a mapping's pages is: node -> pages. Empty where the kernel
    /// cannot say.
    static func sample(_ address: UnsafeRawPointer, bytes: Int, pageBytes: Int) -> [Int: Int] {
        guard numa_available() >= 0 else { return [:] }
        let pages = bytes / pageBytes
        let wanted = min(pages, 256)
        var addresses: [UnsafeMutableRawPointer?] = []
        for index in 0..<wanted {
            let page = address + index * (pages / wanted) * pageBytes
            // The kernel answers only for pages in this process's page tables.
            ftvm_memory_touch(page)
            addresses.append(UnsafeMutableRawPointer(mutating: page))
        }
        var nodes = [Int32](repeating: -1, count: wanted)
        guard move_pages(0, UInt(wanted), &addresses, nil, &nodes, 0) == 0 else { return [:] }
        return nodes.filter { $0 >= 0 }.reduce(into: [:]) { $0[Int($1), default: 0] += 1 }
    }
}

extension Segment {
    /// NUMA nodes of a sample of at most 256 pages of the guest's RAM, scaled to all of it; empty
    /// where the kernel cannot say. In bytes, by node.
    package func sampledNodes() -> [(node: Int, bytes: UInt64)] {
        let sample = NumaPlacement.sample(ram, bytes: Int(memoryBytes), pageBytes: pageSizeBytes)
        let pages = UInt64(sample.values.reduce(0, +))
        guard pages > 0 else { return [] }
        return sample.sorted { $0.key < $1.key }.map {
            ($0.key, memoryBytes * UInt64($0.value) / pages)
        }
    }
}
