import Glibc
import Hypervisor
import Injection
import MemoryPool
import Model

/// Where the guest's RAM blocks are in its QEMU's address space, and where in the segment. Pages of it are those of the
/// segment: page 0 is the main memory's first.
package struct GuestMemory: Sendable, Hashable {
    package struct Block: Sendable, Hashable {
        package let hostAddress: UInt64
        /// In the segment's RAM.
        package let offset: UInt64
        package let lengthBytes: UInt64
        package var hostEnd: UInt64 { hostAddress + lengthBytes }
        var end: UInt64 { offset + lengthBytes }

        package init(hostAddress: UInt64, offset: UInt64, lengthBytes: UInt64) {
            self.hostAddress = hostAddress
            self.offset = offset
            self.lengthBytes = lengthBytes
        }
    }

    /// Mapped from the segment, by offset; the main memory is the first. There are gaps where devices were taken from the
    /// guest, and their blocks with them.
    package let blocks: [Block]
    /// Not mapped, but copied into the segment by each commit.
    package let copied: [Block]
    /// Of what is mapped when nothing is missing.
    package let lengthBytes: UInt64

    /// - Parameter lengthBytes: nil when nothing is missing.
    package init(blocks: [Block], copied: [Block] = [], lengthBytes: UInt64? = nil) {
        precondition(blocks.first?.offset == 0, "a guest has memory")
        var end: UInt64 = 0
        for block in blocks {
            precondition(
                lengthBytes == nil ? block.offset == end : block.offset >= end,
                "blocks follow each other in the segment")
            end = block.end
        }
        precondition(end <= lengthBytes ?? end, "no block is behind the end")
        self.blocks = blocks
        self.copied = copied
        self.lengthBytes = lengthBytes ?? end
    }

    /// One block.
    package init(hostAddress: UInt64, lengthBytes: UInt64) {
        self.init(blocks: [Block(hostAddress: hostAddress, offset: 0, lengthBytes: lengthBytes)])
    }

    /// Where the layout's blocks are in a QEMU.
    /// - Parameter blocks: all RAM blocks of that QEMU, with their addresses.
    /// - Throws: `.failedPrecondition` when one is not there, or is of another size.
    package init(_ blocks: [RAMBlock], layout: RAMLayout) throws {
        self.init(
            blocks: try layout.places.filter { !$0.isCopied }.map {
                try Self.block(at: $0, among: blocks)
            },
            copied: try layout.places.filter(\.isCopied).map {
                try Self.block(at: $0, among: blocks)
            })
    }

    /// Those that are copied, of a QEMU from which devices may have been taken, and their blocks with them.
    static func copiedBlocks(_ blocks: [RAMBlock], layout: RAMLayout) throws -> [Block] {
        try layout.places.filter { place in
            place.isCopied && blocks.contains { $0.name == place.name }
        }.map { try block(at: $0, among: blocks) }
    }

    private static func block(
        at place: RAMLayout.Place, among blocks: [RAMBlock]
    ) throws -> Block {
        guard let found = blocks.first(where: { $0.name == place.name }),
            found.totalBytes == place.bytes, let address = found.hostAddress
        else {
            throw FtvmError(
                .failedPrecondition, "QEMU's RAM blocks are not those of the pair",
                cause: "\(place.name) with \(place.bytes) bytes is not among "
                    + blocks.map { "\($0.name): \($0.totalBytes)" }.joined(separator: ", "),
                advice: "the hosts must have the same versions of QEMU's ROMs and of the UEFI "
                    + "firmware; a domain to which devices were added must be disabled and "
                    + "enabled again")
        }
        return Block(hostAddress: address, offset: place.offset, lengthBytes: place.bytes)
    }
}

// MARK: - Between addresses and the segment

extension GuestMemory {
    /// The place in the segment of an address of a mapped block.
    func offset(ofAddress address: UInt64) -> UInt64? {
        for block in blocks where address >= block.hostAddress && address < block.hostEnd {
            return block.offset + (address - block.hostAddress)
        }
        return nil
    }

    /// Calls `body` for each stretch of addresses that a stretch of the segment is mapped at.
    func forEachRange(
        offset: UInt64, length: UInt64,
        _ body: (_ address: UInt64, _ offset: UInt64, _ length: UInt64) throws -> Void
    ) rethrows {
        let end = offset + length
        for block in blocks where block.offset < end && block.end > offset {
            let start = max(block.offset, offset)
            try body(
                block.hostAddress + (start - block.offset), start, min(block.end, end) - start)
        }
    }
}

// MARK: - In QEMU

extension GuestMemory {
    /// Maps a segment's RAM over the blocks. The main memory comes last: where it is, everything is.
    /// - Parameter blocks: nil: all of them.
    func mapping(
        of files: RAMFiles, writable: Bool, blocks chosen: [Block]? = nil
    ) -> [InjectionOperation] {
        (chosen ?? blocks).reversed().map { block in
            let place = files.place(of: block)
            return .mapFile(
                descriptor: place.descriptor, address: block.hostAddress,
                length: block.lengthBytes, writable: writable, offset: place.offset)
        }
    }

    /// Moves memory that is laid out as the segment is into the blocks' places; the main memory comes last.
    /// - Parameter blocks: those to move; what is not among them stays as it is.
    func moving(from source: UInt64, blocks chosen: [Block]) -> [InjectionOperation] {
        chosen.reversed().map {
            .move(from: source + $0.offset, to: $0.hostAddress, length: $0.lengthBytes)
        }
    }

    func advising(_ advice: Int32, blocks chosen: [Block]? = nil) -> [InjectionOperation] {
        (chosen ?? blocks).map {
            .advise(
                address: $0.hostAddress, length: $0.lengthBytes, advice: advice)
        }
    }
}

// MARK: - Finding

extension GuestMemory {
    /// The main memory's RAM block, or the first one of a guest with NUMA cells.
    /// - Parameter expectedBytes: the guest's memory as the domain's XML has it.
    package static func mainBlock(
        among blocks: [RAMBlock], expectedBytes: UInt64
    ) throws -> RAMBlock {
        let cells = blocks.filter { $0.name.hasPrefix("ram-node") }
        if cells.reduce(0, { $0 + $1.usedBytes }) == expectedBytes,
            let first = cells.min(by: { $0.name < $1.name }), first.hostAddress != nil
        {
            return first
        }
        let fitting = blocks.filter { $0.usedBytes == expectedBytes }
        let named = fitting.first { ["pc.ram", "ram"].contains($0.name) }
        guard let block = named ?? fitting.first, block.hostAddress != nil else {
            throw FtvmError(
                .unsupported,
                "the guest's RAM is not one block of \(expectedBytes) bytes in QEMU",
                cause: blocks.map { "\($0.name): \($0.usedBytes) bytes" }.joined(separator: ", "),
                advice: "guests with memory devices cannot be protected yet")
        }
        return block
    }

    /// The main memory only.
    /// - Parameter expectedBytes: the guest's memory as the domain's XML has it.
    package static func locate(monitor: any Monitor, expectedBytes: UInt64) throws -> GuestMemory {
        let block = try mainBlock(
            among: try monitor.ramBlocksWithAddresses(), expectedBytes: expectedBytes)
        return GuestMemory(hostAddress: block.hostAddress ?? 0, lengthBytes: expectedBytes)
    }
}

extension RAMLayout {
    /// The layout of a guest's blocks in a segment with such pages.
    package init(_ blocks: [RAMBlock], mainBytes: UInt64, pageSizeBytes: UInt64) throws {
        let main = try GuestMemory.mainBlock(among: blocks, expectedBytes: mainBytes)
        self.init(
            blocks: blocks.map { ($0.name, $0.totalBytes) }, main: main.name,
            pageSizeBytes: pageSizeBytes)
        guard places.first?.name == main.name else {
            throw FtvmError(
                .unsupported, "the guest's memory does not fit the pages of the pool",
                cause: "\(main.name): \(main.totalBytes) bytes in pages of \(pageSizeBytes)",
                advice: "round the memory up, or choose a pool with base pages")
        }
    }
}
