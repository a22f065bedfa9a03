import CLinux
import Hypervisor
import Injection
import Model

/// Where QEMU has its RAM blocks, for versions that do not say (`info ramblock` has addresses since QEMU 8.0).
///
/// QEMU keeps each block in a `struct RAMBlock` on its heap (QEMU: include/exec/ramblock.h): host address, another
/// pointer, offset, used and maximal length, a function, flags, and the block's name in 256 bytes. Offset, lengths and name
/// are known from the monitor: what has all of these, an address in front of them, and memory of just that size at
/// that address, is the block. A guest cannot forge it, since guest memory is not searched.
extension QEMUProcess {
    /// The RAM blocks with their host addresses, every one.
    package func ramBlocks(monitor: any Monitor) throws -> [RAMBlock] {
        let blocks = try monitor.ramBlocks()
        guard blocks.contains(where: { $0.hostAddress == nil }) else { return blocks }
        return try locate(blocks)
    }

    /// A heap of more than this is not searched: QEMU's has some tens of MiB at most.
    private static let largestRegionBytes: UInt64 = 512 << 20

    /// QEMU's heap grows and shrinks as it runs: what one map of it does not show, the next one may.
    private static let mapsTried = 3

    private func locate(_ blocks: [RAMBlock]) throws -> [RAMBlock] {
        var search = try search(for: blocks, in: memoryMap())
        for _ in 1..<Self.mapsTried where !search.isComplete {
            search = try self.search(for: blocks, in: memoryMap())
        }
        return try search.result(process: processID)
    }

    package func search(for blocks: [RAMBlock], in maps: ProcessMaps) -> RAMBlockSearch {
        let candidates = maps.regions.filter {
            $0.readable && $0.writable && !$0.shared && ($0.path == "[heap]" || $0.path.isEmpty)
                && $0.end - $0.start <= Self.largestRegionBytes
        }
        // The heap proper first: it has them all, unless another thread than the main one made a device.
        let heaps = candidates.filter { $0.path == "[heap]" }
        var search = RAMBlockSearch(blocks, maps: maps)
        for region in heaps + candidates.filter({ $0.path != "[heap]" }) {
            if search.isComplete { break }
            guard !search.isGuestMemory(region) else { continue }
            scan(region, &search)
        }
        return search
    }

    private func scan(_ region: ProcessMaps.Region, _ search: inout RAMBlockSearch) {
        let chunk = 4 << 20
        let overlap = RAMBlockSearch.structBytes
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: chunk, alignment: 16)
        defer { buffer.deallocate() }
        guard let base = buffer.baseAddress else { return }
        var position = region.start
        while position < region.end {
            let wanted = min(UInt64(chunk), region.end - position)
            let got = ftvm_process_vm_read(processID, base, position, Int(wanted))
            guard got >= overlap else { return }
            search.look(at: UnsafeRawBufferPointer(start: base, count: got))
            // Less than asked for: the rest has gone since the map was read.
            if got < wanted || position + wanted == region.end { return }
            position += UInt64(chunk - overlap) & ~15
        }
    }
}

/// The search through one heap.
package struct RAMBlockSearch {
    /// Where things are in `struct RAMBlock`, counted from its field `offset`.
    private static let hostBefore = 16
    private static let nameAfter = 36
    private static let nameBytes = 256
    static let structBytes = hostBefore + nameAfter + nameBytes

    private let blocks: [RAMBlock]
    private let maps: ProcessMaps
    private var found: [Set<UInt64>]

    init(_ blocks: [RAMBlock], maps: ProcessMaps) {
        self.blocks = blocks
        self.maps = maps
        found = blocks.map { _ in [] }
    }

    package var isComplete: Bool { found.allSatisfy { !$0.isEmpty } }

    /// Memory of a size that only a block has is guest memory.
    func isGuestMemory(_ region: ProcessMaps.Region) -> Bool {
        blocks.contains { $0.totalBytes == region.end - region.start && $0.totalBytes >= 1 << 20 }
    }

    mutating func look(at bytes: UnsafeRawBufferPointer) {
        let last = bytes.count - Self.nameAfter - Self.nameBytes
        var position = Self.hostBefore
        while position <= last {
            let total = bytes.load(fromByteOffset: position + 16, as: UInt64.self)
            // Sizes are whole pages; hardly anything else on a heap is.
            if total != 0, total & 4095 == 0 { compare(bytes, position, total) }
            position += 8
        }
    }

    private mutating func compare(
        _ bytes: UnsafeRawBufferPointer, _ position: Int, _ total: UInt64
    ) {
        let offset = bytes.load(fromByteOffset: position, as: UInt64.self)
        let used = bytes.load(fromByteOffset: position + 8, as: UInt64.self)
        for (index, block) in blocks.enumerated()
        where block.totalBytes == total && block.offset == offset && block.usedBytes == used {
            let start = position + Self.nameAfter
            let name = bytes[start..<start + Self.nameBytes].prefix { $0 != 0 }
            guard name.elementsEqual(block.name.utf8) else { continue }
            let address = bytes.load(
                fromByteOffset: position - Self.hostBefore, as: UInt64.self)
            if isMemory(address, total) { found[index].insert(address) }
        }
    }

    /// Whether just this is mapped there, writable.
    private func isMemory(_ address: UInt64, _ length: UInt64) -> Bool {
        guard address & 4095 == 0, address > 0, length < 1 << 47, address < 1 << 47 else {
            return false
        }
        var covered = address
        for region in maps.regions(in: address..<address + length)
        where region.start <= covered && region.readable {
            covered = max(covered, region.end)
        }
        return covered >= address + length
    }

    package func result(process: Int32) throws -> [RAMBlock] {
        var result = blocks
        for index in blocks.indices {
            guard found[index].count == 1 else {
                throw FtvmError(
                    .unsupported,
                    "RAM block \(blocks[index].name) of QEMU (process \(process)) is not found",
                    cause: found[index].isEmpty
                        ? "this QEMU does not say where it is, and its heap does not show it"
                        : "its heap shows it at \(found[index].count) addresses",
                    advice: "use QEMU 8.0 or newer, which says it")
            }
            result[index].hostAddress = found[index].first
        }
        return result
    }
}
