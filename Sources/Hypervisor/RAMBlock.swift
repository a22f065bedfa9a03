import Model

/// One of QEMU's RAM blocks: guest memory, ROMs, video memory.
package struct RAMBlock: Hashable, Sendable {
    package var name: String
    package var pageSizeBytes: UInt64
    /// Its place in QEMU's own space of RAM addresses; not a guest address.
    package var offset: UInt64
    package var usedBytes: UInt64
    package var totalBytes: UInt64
    /// Host virtual address in QEMU. older QEMU (7.2) does not say: nil.
    package var hostAddress: UInt64?
    package var isReadOnly: Bool?

    /// Parses the output of HMP `info ramblock`, by the titles of its columns: QEMU 7.2 has `Block
    /// Name, PSize, Offset, Used, Total`; later ones add `HVA` and `RO` (QEMU: system/physmem.c,
    /// `ram_block_format`). Columns are found from the right, since the name comes first and a page
    /// size has a space in it.
    /// - Throws: `FtvmError(.unavailable)` when the text is something else.
    package static func parse(_ text: String) throws -> [RAMBlock] {
        var lines = text.split(whereSeparator: \.isNewline)
        guard !lines.isEmpty else { throw unexpected("it is empty") }
        let header = lines.removeFirst().split(separator: " ")
        guard header.starts(with: ["Block", "Name"]) else {
            throw unexpected("its header is \(header.joined(separator: " "))")
        }
        let titles = header.dropFirst(2).map(String.init)
        for title in ["PSize", "Offset", "Used", "Total"] where !titles.contains(title) {
            throw unexpected("it has no column \(title)")
        }
        return try lines.map { line in
            try RAMBlock(words: line.split(separator: " ").map(String.init), titles: titles)
        }
    }

    private init(words: [String], titles: [String]) throws {
        var rest = words[...]
        var columns: [String: String] = [:]
        for title in titles.reversed() {
            guard var value = rest.popLast() else {
                throw RAMBlock.unexpected("a line is too short")
            }
            if title == "PSize", let number = rest.popLast() { value = "\(number) \(value)" }
            columns[title] = value
        }
        guard !rest.isEmpty, let pageSize = columns["PSize"].flatMap(RAMBlock.size),
            let offset = columns["Offset"].flatMap(RAMBlock.hexadecimal),
            let used = columns["Used"].flatMap(RAMBlock.hexadecimal),
            let total = columns["Total"].flatMap(RAMBlock.hexadecimal)
        else { throw RAMBlock.unexpected("line \(words.joined(separator: " "))") }
        self.name = rest.joined(separator: " ")
        self.pageSizeBytes = pageSize
        self.offset = offset
        self.usedBytes = used
        self.totalBytes = total
        self.hostAddress = columns["HVA"].flatMap(RAMBlock.hexadecimal)
        self.isReadOnly = columns["RO"].map { $0 == "ro" }
    }

    static func hexadecimal(_ text: String) -> UInt64? {
        UInt64(text.hasPrefix("0x") ? text.dropFirst(2) : text[...], radix: 16)
    }

    /// `4 KiB`, `2 MiB`, as QEMU's `size_to_str` writes it.
    private static func size(_ text: String) -> UInt64? {
        let words = text.split(separator: " ")
        guard words.count == 2, let number = UInt64(words[0]) else { return nil }
        let factor: UInt64? =
            switch words[1] {
            case "B": 1
            case "KiB": 1 << 10
            case "MiB": 1 << 20
            case "GiB": 1 << 30
            default: nil
            }
        return factor.map { number * $0 }
    }

    private static func unexpected(_ cause: String) -> FtvmError {
        FtvmError(
            .unavailable, "QEMU's list of RAM blocks cannot be read", cause: cause,
            advice: "this version of QEMU may be one that ftvm does not know")
    }
}

/// A stretch of the guest's physical address space that a RAM block shows up in
/// (HMP `info mtree -f`).
package struct FlatRange: Hashable, Sendable {
    package var start: UInt64
    package var end: UInt64
    /// The memory region's name: a RAM block's name, or its part after the device's path.
    package var region: String
    /// Offset in the region that `start` stands for.
    package var offset: UInt64

    /// Parses the view of the address space `memory` (what `gpa2hva` looks into) out of all views:
    /// lines such as
    /// `  0000000000100000-0000000003ffffff (prio 0, ram): pc.ram @0000000000100000 KVM`
    /// (QEMU: system/memory.c, `mtree_print_flatview`).
    package static func parse(_ text: String) -> [FlatRange] {
        var isWanted = false
        var result: [FlatRange] = []
        for line in text.split(whereSeparator: \.isNewline) {
            if line.hasPrefix("FlatView") { isWanted = false }
            if line.hasPrefix(" AS \"memory\",") { isWanted = true }
            if isWanted, let range = FlatRange(line) { result.append(range) }
        }
        return result
    }

    private init?(_ line: Substring) {
        guard let separator = line.range(of: "): ") else { return nil }
        let head = line[..<separator.lowerBound].split(separator: " ")
        guard let kind = head.last, ["ram", "rom", "romd", "nv-ram"].contains(kind),
            let bounds = head.first?.split(separator: "-"), bounds.count == 2,
            let start = UInt64(bounds[0], radix: 16), let end = UInt64(bounds[1], radix: 16)
        else { return nil }
        var words = line[separator.upperBound...].split(separator: " ")
        if words.last == "KVM" { words.removeLast() }
        offset = 0
        if let last = words.last, last.hasPrefix("@"),
            let value = UInt64(last.dropFirst(), radix: 16)
        {
            offset = value
            words.removeLast()
        }
        self.start = start
        self.end = end
        self.region = words.joined(separator: " ")
    }
}

extension Monitor {
    /// The RAM blocks of this QEMU. `hostAddress` is nil where QEMU does not print it: see
    /// `ramBlocksWithAddresses`.
    package func ramBlocks() throws -> [RAMBlock] {
        try RAMBlock.parse(try humanMonitorCommand("info ramblock"))
    }

    /// The RAM blocks with their host addresses. Where `info ramblock` has no such column (QEMU
    /// 7.2), the address is learned from where the block shows up in the guest's memory (`info
    /// mtree -f`, then `gpa2hva`); a block that is not mapped there at the moment, such as a hidden
    /// option ROM, keeps nil. The main memory always is mapped.
    package func ramBlocksWithAddresses() throws -> [RAMBlock] {
        var blocks = try ramBlocks()
        guard blocks.contains(where: { $0.hostAddress == nil }) else { return blocks }
        let ranges = FlatRange.parse(try humanMonitorCommand("info mtree -f"))
        for index in blocks.indices where blocks[index].hostAddress == nil {
            let name = blocks[index].name
            let region = RAMBlock.regionName(ofBlock: name, among: blocks)
            guard let region, let range = ranges.first(where: { $0.region == region }) else {
                continue
            }
            let address = try hostAddress(ofGuestAddress: range.start)
            guard let address, address.region == region, address.host >= range.offset else {
                continue
            }
            blocks[index].hostAddress = address.host - range.offset
        }
        return blocks
    }

    /// Where a guest physical address lies in QEMU, and in which memory region; nil when it is not
    /// RAM (HMP `gpa2hva`).
    package func hostAddress(
        ofGuestAddress guest: UInt64
    ) throws -> (region: String, host: UInt64)? {
        let text = try humanMonitorCommand("gpa2hva 0x" + String(guest, radix: 16))
        // Host virtual address for 0x0 (pc.ram) is 0x7f2b6be00000
        guard let open = text.firstIndex(of: "("), let close = text.lastIndex(of: ")"),
            open < close,
            let last = text[close...].split(whereSeparator: { $0.isWhitespace }).last,
            let host = RAMBlock.hexadecimal(String(last))
        else { return nil }
        return (String(text[text.index(after: open)..<close]), host)
    }
}

extension RAMBlock {
    /// The memory region's name that a block shows up under: QEMU names a device's block
    /// `<path of the device>/<region>`. Nil when two blocks share the region's name.
    package static func regionName(ofBlock name: String, among blocks: [RAMBlock]) -> String? {
        // ROMs of fw_cfg are regions by their full name.
        if name.hasPrefix("/rom@") { return name }
        func region(_ name: String) -> String {
            guard !name.hasPrefix("/"), let slash = name.lastIndex(of: "/") else { return name }
            return String(name[name.index(after: slash)...])
        }
        let own = region(name)
        return blocks.count { region($0.name) == own } == 1 ? own : nil
    }
}
