import Hypervisor
import Model
import Synchronization
import Testing

@Suite struct RAMBlockTests {
    /// As QEMU 7.2 prints it.
    static let old = """
                      Block Name    PSize              Offset               Used              Total
                          pc.ram    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000
            /rom@etc/acpi/tables    4 KiB  0x0000000004080000 0x0000000000020000 0x0000000000200000
           0000:00:02.0/vga.vram    2 MiB  0x0000000004280000 0x0000000001000000 0x0000000001000000
        """
    /// As QEMU 10.0 prints it.
    static let new = """
                      Block Name    PSize              Offset               Used              Total                HVA  RO
                          pc.ram    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000 0x00007f2b6be00000  rw
                         pc.bios    4 KiB  0x0000000004000000 0x0000000000040000 0x0000000000040000 0x00007f2b6bc00000  ro
        """

    @Test func oldFormatHasNoAddresses() throws {
        let blocks = try RAMBlock.parse(Self.old)
        #expect(blocks.map(\.name) == ["pc.ram", "/rom@etc/acpi/tables", "0000:00:02.0/vga.vram"])
        #expect(blocks.map(\.pageSizeBytes) == [4096, 4096, 2 << 20])
        #expect(blocks[1].offset == 0x0408_0000)
        #expect(blocks[1].usedBytes == 0x20000)
        #expect(blocks[1].totalBytes == 0x200000)
        #expect(blocks.allSatisfy { $0.hostAddress == nil && $0.isReadOnly == nil })
    }

    @Test func newFormatHasThem() throws {
        let blocks = try RAMBlock.parse(Self.new)
        #expect(blocks.map(\.hostAddress) == [0x7f2b_6be0_0000, 0x7f2b_6bc0_0000])
        #expect(blocks.map(\.isReadOnly) == [false, true])
        #expect(blocks.map(\.totalBytes) == [64 << 20, 256 << 10])
    }

    @Test func columnsAreFoundByTitle() throws {
        let text = """
            Block Name  Flags  Total  Used  Offset  PSize
            my ram      x      0x3    0x2   0x1     1 GiB
            """
        let block = try #require(try RAMBlock.parse(text).first)
        #expect(block.name == "my ram")
        #expect(block.pageSizeBytes == 1 << 30)
        #expect((block.offset, block.usedBytes, block.totalBytes) == (1, 2, 3))
    }

    @Test(arguments: [
        "", "unknown command: 'info ramblock'", "Block Name  PSize Offset Used",
        "Block Name PSize Offset Used Total\npc.ram 4 KiB 0x0 0x0",
        "Block Name PSize Offset Used Total\npc.ram 4 KiX 0x0 0x0 0x0",
        "Block Name PSize Offset Used Total\n4 KiB 0x0 0x0 0x0",
        "Block Name PSize Offset Used Total\npc.ram 4 KiB zero 0x0 0x0",
    ])
    func somethingElseIsAnError(_ text: String) {
        let error = #expect(throws: FtvmError.self) { try RAMBlock.parse(text) }
        #expect(error?.code == .unavailable)
    }

    static let flat = """
        FlatView #0
         AS "cpu-smm-0", root: memory
         Root memory region: memory
          0000000000000000-00000000000bffff (prio 0, ram): smm.ram

        FlatView #1
         AS "I440FX", root: bus master container
         Root memory region: (none)
          No rendered FlatView

        FlatView #2
         AS "cpu-memory-0", root: system
         AS "memory", root: system
         Root memory region: system
          0000000000100000-0000000003ffffff (prio 0, ram): pc.ram @0000000000100000 KVM
          00000000000c0000-00000000000dffff (prio 1, rom): pc.rom
          00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
          00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic

        FlatView #3
         AS "I/O", root: io
          0000000000000000-0000000000000007 (prio 0, ram): io.ram
        """

    @Test func flatRangesAreThoseOfMemory() {
        let ranges = FlatRange.parse(Self.flat)
        #expect(ranges.map(\.region) == ["pc.ram", "pc.rom", "vga.vram"])
        #expect(ranges.map(\.offset) == [0x100000, 0, 0])
        #expect(ranges.first?.start == 0x100000)
        #expect(ranges.first?.end == 0x3ff_ffff)
    }

    /// A monitor that answers from a table.
    private final class TableMonitor: Monitor {
        let label = "demo"
        let answers: [String: String]
        init(_ answers: [String: String]) { self.answers = answers }
        func execute(
            _ command: String, arguments: String?, descriptor: Int32?, timeoutMilliseconds: Int
        ) throws -> MonitorReply {
            for (line, answer) in answers where arguments?.contains("\"\(line)\"") == true {
                return MonitorReply(json: JSONText.quote(answer.replacing("\n", with: "\r\n")))
            }
            throw FtvmError(.unsupported, "no answer to \(arguments ?? command)")
        }
        func stop(timeoutMilliseconds: Int) throws {}
        func cont(timeoutMilliseconds: Int) throws {}
        func saveDeviceState(path: String, timeoutMilliseconds: Int) throws {}
        func interrupt() {}
    }

    @Test func addressesAreLearnedWhereTheyAreNotPrinted() throws {
        let monitor = TableMonitor([
            "info ramblock": Self.old, "info mtree -f": Self.flat,
            "gpa2hva 0x100000": "Host virtual address for 0x100000 (pc.ram) is 0x7f0000100000\n",
            "gpa2hva 0xfd000000":
                "Host virtual address for 0xfd000000 (vga.vram) is 0x7f1100000000\n",
        ])
        #expect(
            try monitor.ramBlocksWithAddresses().map(\.hostAddress)
                == [0x7f00_0000_0000, nil, 0x7f11_0000_0000])
        let newer = TableMonitor(["info ramblock": Self.new])
        #expect(try newer.ramBlocksWithAddresses().allSatisfy { $0.hostAddress != nil })
    }

    /// `gpa2hva` may find something else there when the map changes in between.
    @Test func anAddressOfAnotherRegionIsNotTaken() throws {
        let monitor = TableMonitor([
            "info ramblock": Self.old, "info mtree -f": Self.flat,
            "gpa2hva 0x100000": "Host virtual address for 0x100000 (other) is 0x7f0000100000\n",
            "gpa2hva 0xfd000000": "No memory is mapped at address 0xfd000000\n",
        ])
        #expect(try monitor.ramBlocksWithAddresses().allSatisfy { $0.hostAddress == nil })
    }

    @Test func ambiguousRegionsAreLeftAlone() throws {
        let block = try RAMBlock.parse(Self.old)[2]
        var other = block
        other.name = "0000:00:03.0/vga.vram"
        #expect(RAMBlock.regionName(ofBlock: block.name, among: [block, other]) == nil)
        #expect(RAMBlock.regionName(ofBlock: block.name, among: [block]) == "vga.vram")
        #expect(RAMBlock.regionName(ofBlock: "pc.ram", among: [block]) == nil)
        #expect(
            RAMBlock.regionName(ofBlock: "/rom@etc/acpi/tables", among: [])
                == "/rom@etc/acpi/tables")
    }
}
