/// Where the RAM blocks of a guest's QEMU are in its segment: the main memory first, then what else a guest sees as
/// memory (video memory, ROMs, UEFI variables). The same for every QEMU of a pair, whatever their addresses.
public struct RAMLayout: Hashable, Sendable, Codable {
    public struct Place: Hashable, Sendable, Codable {
        /// QEMU's name of the block: `pc.ram`, `0000:00:02.0/vga.vram`.
        public var name: String
        public var bytes: UInt64
        /// In the segment's RAM.
        public var offset: UInt64
        /// The block stays QEMU's own memory, and its place holds a copy of the last commit: it is no whole number of the
        /// segment's pages.
        public var isCopied: Bool

        public init(name: String, bytes: UInt64, offset: UInt64, isCopied: Bool = false) {
            self.name = name
            self.bytes = bytes
            self.offset = offset
            self.isCopied = isCopied
        }
    }

    /// By offset: first those that QEMU has mapped from the segment, without gaps.
    public private(set) var places: [Place] = []
    /// The segment's RAM, a whole number of its pages.
    public private(set) var totalBytes: UInt64 = 0
    /// Of it, what is mapped.
    public private(set) var mappedBytes: UInt64 = 0

    /// QEMU allocates its RAM blocks in pages of this size at least.
    public static let smallestPageBytes: UInt64 = 4096

    /// - Parameters:
    ///   - blocks: all RAM blocks; sizes are multiples of 4 KiB.
    ///   - main: the name of the main memory's.
    ///   - pageSizeBytes: of the segment.
    public init(
        blocks: [(name: String, bytes: UInt64)], main: String, pageSizeBytes: UInt64
    ) {
        let ordered = blocks.sorted { left, right in
            left.name == main || (right.name != main && left.name < right.name)
        }
        for block in ordered where block.bytes % pageSizeBytes == 0 {
            places.append(Place(name: block.name, bytes: block.bytes, offset: totalBytes))
            totalBytes += block.bytes
        }
        mappedBytes = totalBytes
        for block in ordered where block.bytes % pageSizeBytes != 0 {
            places.append(
                Place(name: block.name, bytes: block.bytes, offset: totalBytes, isCopied: true))
            totalBytes += block.bytes
        }
        totalBytes = (totalBytes + pageSizeBytes - 1) / pageSizeBytes * pageSizeBytes
    }

    /// The same with the main memory and nothing else.
    public var mainOnly: RAMLayout {
        var layout = self
        layout.places = Array(places.prefix(1))
        layout.totalBytes = places.first?.bytes ?? 0
        layout.mappedBytes = layout.totalBytes
        return layout
    }
}
