import CLinux
import Foundation
import MemoryPool
import Model
import Testing

/// Segments whose first part is a memory object that somebody else had before.
@Suite struct ObjectTests {
    private static let objectBytes: UInt64 = 8 * 4096

    private var specification: SegmentSpecification {
        var specification = smallSegment()
        specification.objectBytes = Self.objectBytes
        return specification
    }

    /// A memory file with a number at the beginning of each page.
    private func makeObject(at path: String? = nil) throws -> Int32 {
        let file =
            path.map { open($0, O_RDWR | O_CREAT | O_CLOEXEC, 0o644) }
            ?? ftvm_memory_memfd("object", 0)
        try #require(file >= 0 && ftruncate(file, off_t(Self.objectBytes)) == 0)
        for page in 0..<8 {
            var number = UInt64(page) + 100
            try #require(pwrite(file, &number, 8, off_t(page * 4096)) == 8)
        }
        return file
    }

    private func number(_ segment: Segment, page: Int) -> UInt64 {
        (segment.ram + page * 4096).load(as: UInt64.self)
    }

    @Test func aMemfdPoolKeepsAnyObjectWhereItIs() throws {
        let home = try TestPool(.memfd)
        let object = try makeObject()
        #expect(try home.pool.canAdopt(object, bytes: Self.objectBytes))
        #expect(try !home.pool.canAdopt(object, bytes: Self.objectBytes * 2))
        _ = try home.pool.createSegment(specification, adopting: object)
        close(object)
        // The maker's descriptor is closed: the pool alone keeps it.
        let segment = try home.pool.openSegment(name: "vm", access: .write)
        #expect(segment.objectBytes == Self.objectBytes)
        #expect((0..<8).allSatisfy { number(segment, page: $0) == UInt64($0) + 100 })
        #expect(number(segment, page: 8) == 0)
        #expect(segment.dump().problems == [])
    }

    @Test func aPoolInADirectoryKeepsWhatHasANameThere() throws {
        let home = try TestPool()
        let path = home.directory + "/guest-memory"
        let object = try makeObject(at: path)
        #expect(try home.pool.canAdopt(object, bytes: Self.objectBytes))
        let segment = try home.pool.createSegment(specification, adopting: object)
        (segment.ram + 3 * 4096).storeBytes(of: 7, as: UInt64.self)
        var number: UInt64 = 0
        #expect(pread(object, &number, 8, 3 * 4096) == 8 && number == 7, "it is the same memory")
        #expect(unlink(path) == 0)
        let again = try home.pool.openSegment(name: "vm", access: .read)
        #expect(self.number(again, page: 3) == 7)
        close(object)
        #expect(try home.pool.removeSegment(name: "vm"))
        #expect(home.entries == [])
    }

    @Test func whatAPoolCannotKeepIsLeftAlone() throws {
        let home = try TestPool()
        let object = try makeObject()
        #expect(try !home.pool.canAdopt(object, bytes: Self.objectBytes), "a memfd has no name")
        #expect(throws: FtvmError.self) {
            try home.pool.createSegment(specification, adopting: object)
        }
        #expect(home.entries == [])
        var number: UInt64 = 0
        #expect(pread(object, &number, 8, 4096) == 8 && number == 101, "not even its size")
        close(object)
    }

    /// A rollback goes over the border between the two files as if there were none.
    @Test func aRollbackReachesBothFiles() throws {
        let home = try TestPool(.memfd)
        let object = try makeObject()
        let segment = try home.pool.createSegment(specification, adopting: object)
        close(object)
        segment.writeState(Epoch(1), [1, 2, 3])
        _ = try segment.publish(epoch: Epoch(1), generation: Generation(1), stateLength: 3)
        for page: UInt64 in [7, 8] {
            #expect(segment.appendUndo(page: page, epoch: Epoch(2)) == .appended)
            (segment.ram + Int(page) * 4096).storeBytes(of: 1, as: UInt64.self)
        }
        _ = try segment.rollBack()
        #expect(number(segment, page: 7) == 107 && number(segment, page: 8) == 0)
    }
}
