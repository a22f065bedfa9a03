import Glibc
import Hypervisor
import Injection
import Protection
import Testing

/// QEMU's RAM blocks in its heap; this process plays QEMU.
@Suite(.serialized) struct RAMBlockSearchTests {
    private static let name = "ftvm-test.ram"
    private static let offset: UInt64 = 0x1234_5000
    private static let total: UInt64 = 0x1000

    private func block() throws -> [RAMBlock] {
        try RAMBlock.parse(
            """
            Block Name    PSize              Offset               Used              Total
            \(Self.name)    4 KiB  0x0000000012345000 0x0000000000001000 0x0000000000001000
            """)
    }

    /// A heap with the struct at its start. Its bytes are unlike anything else's: an offset nobody has.
    private func makeHeap(pages: Int) throws -> UnsafeMutableRawPointer {
        let heap = try #require(
            mmap(nil, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))
        try #require(heap != MAP_FAILED)
        heap.storeBytes(of: UInt64(UInt(bitPattern: heap)), toByteOffset: 64, as: UInt64.self)
        heap.storeBytes(of: Self.offset, toByteOffset: 80, as: UInt64.self)
        heap.storeBytes(of: Self.total, toByteOffset: 88, as: UInt64.self)
        heap.storeBytes(of: Self.total, toByteOffset: 96, as: UInt64.self)
        for (index, byte) in Self.name.utf8.enumerated() {
            heap.storeBytes(of: byte, toByteOffset: 80 + 36 + index, as: UInt8.self)
        }
        return heap
    }

    @Test func aBlockIsFound() throws {
        let heap = try makeHeap(pages: 4)
        defer { munmap(heap, 4 * 4096) }
        let process = try #require(QEMUProcess(processID: getpid()))
        let search = try process.search(for: block(), in: ProcessMaps(pid: getpid()))
        #expect(
            try search.result(process: getpid()).map(\.hostAddress) == [
                UInt64(UInt(bitPattern: heap))
            ])
    }

    /// QEMU gives memory back while it is searched: the search ends all the same, with what is left.
    @Test(.timeLimit(.minutes(1))) func aHeapThatShrinksIsSearchedToItsEnd() throws {
        let heap = try makeHeap(pages: 4)
        defer { munmap(heap, 4096) }
        let maps = try ProcessMaps(pid: getpid())
        munmap(heap + 4096, 3 * 4096)
        let process = try #require(QEMUProcess(processID: getpid()))
        #expect(try process.search(for: block(), in: maps).isComplete)
    }
}
