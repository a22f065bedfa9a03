import Foundation
import MemoryPool
import Model
import Testing

/// Segments with wrong bytes in them: refused with the reason, described all the same.
@Suite struct DamageTests {
    let home: TestPool
    let segment: Segment

    /// Epoch 2 is committed with 5 bytes of state; epoch 3 has two entries in the log.
    init() throws {
        home = try TestPool()
        segment = try home.pool.createSegment(smallSegment())
        for epoch in [1, 2] as [UInt64] {
            segment.writeState(Epoch(epoch), [1, 2, 3, 4, 5])
            try segment.publish(
                epoch: Epoch(epoch), generation: Generation(1), stateLength: 5)
        }
        #expect(segment.appendUndo(firstPage: 6, count: 2, epoch: Epoch(3)) == .appended)
        let log = try #require(segment.outputLog)
        for (length, nic) in [(33, 2), (16, 0)] {
            let frame = [UInt8](repeating: 0xab, count: length)
            #expect(
                log.append(frame, count: length, nic: nic, headerBytes: 12, keepingFrom: 0))
        }
        segment.releasedOutput = 64
    }

    /// Flips a bit of the control file, as `Documentation/SegmentFormat.md` numbers its bytes.
    private func damage(_ offset: UInt64, xor: UInt8 = 0x10) throws {
        let file = try #require(FileHandle(forUpdatingAtPath: home.path("vm", "control")))
        try file.seek(toOffset: offset)
        let byte = try #require(try file.read(upToCount: 1)?.first)
        try file.seek(toOffset: offset)
        try file.write(contentsOf: Data([byte ^ xor]))
        try file.close()
    }

    private func word(_ offset: UInt64) throws -> UInt64 {
        let file = try #require(FileHandle(forReadingAtPath: home.path("vm", "control")))
        try file.seek(toOffset: offset)
        let bytes = try #require(try file.read(upToCount: 8))
        try file.close()
        return bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) }
    }

    private func openFails(_ code: FtvmError.Code) throws -> FtvmError {
        try ftvmError(code) { _ = try home.pool.openSegment(name: "vm", access: .write) }
    }

    /// The places of the documented format, so that a change of the format is noticed.
    @Test func theFormatIsTheDocumentedOne() throws {
        let control = try #require(FileManager.default.contents(atPath: home.path("vm", "control")))
        #expect(String(decoding: control[..<8], as: UTF8.self) == "FTVM-SEG")
        #expect(try word(8) == 1 | 2 << 32)
        #expect(control[16..<20] == Data([0x0f, 0x1e, 0x2d, 0x3c]))
        #expect(try word(32) == 16 * 4096)
        #expect(try word(40) == 16 * 4096)
        #expect(try word(48) == UInt64(control.count))
        #expect(try word(56) == 4096)
        #expect(try word(64) == 16)
        #expect(try word(72) == 8)
        #expect(try word(80) == 1)
        #expect(try word(88) == 8192)
        let areas: [(UInt64, UInt64)] = [
            (4096, 4096), (8192, 4096), (12288, 16384), (28672, 4096), (557056, 32768), (0, 0),
            (294912, 262144),
        ]
        for (index, area) in areas.enumerated() {
            #expect(try word(96 + 16 * UInt64(index)) == area.0)
            #expect(try word(104 + 16 * UInt64(index)) == area.1)
        }
        #expect(try word(336) == 32768)
        #expect(try word(344) == 262144)
        // The heads of the frame logs, and how far the output was sent.
        #expect(try word(4096 + 320) == 104)
        #expect(try word(4096 + 384) == 64)
        #expect(try word(4096 + 448) == 0)
        // The first record of the output log: length, NIC, kind, header; position.
        #expect(try word(32768) == 33 | 2 << 32 | 1 << 48 | 12 << 56)
        #expect(try word(32776) == 0)
        #expect(control[32792..<32825] == Data(repeating: 0xab, count: 33))
        #expect(try word(4096) == 1 << 40 | 2)
        #expect(try word(4160) == 2)
        // Record 0 is of epoch 2, record 1 of epoch 1.
        #expect(try word(8192) == 2)
        #expect(try word(8704) == 1)
        #expect(try word(8200) == 1)
        #expect(try word(8208) == 2)
        #expect(try word(8224) == 5)
        #expect(try word(8232) == 0)
        // Two undo entries: sequence, page, generation and epoch.
        #expect(try word(28672) == 0)
        #expect(try word(28680) == 6)
        #expect(try word(28688) == 1 << 40 | 3)
        #expect(try word(28704) == 1)
        #expect(try word(28712) == 7)
    }

    @Test(arguments: [16, 33, 72, 96, 207, 215, 340, 400, 507, 508] as [UInt64])
    func aDamagedHeaderIsRefused(offset: UInt64) throws {
        try damage(offset)
        let error = try openFails(.dataCorrupted)
        #expect(error.cause?.contains("header is damaged") == true, "\(error)")
        let description = try home.pool.describeSegment(name: "vm")
        #expect(description.problems.count == 1)
        #expect(description.header == nil)
        // What does not depend on the header is shown all the same.
        #expect(description.position?.epoch == Epoch(2))
        #expect(description.records.map(\.record?.epoch) == [Epoch(2), Epoch(1)])
        #expect(description.undo?.head == 2)
        #expect(description.description.contains("PROBLEM"))
    }

    @Test func anotherFileIsNotASegment() throws {
        try damage(3)
        #expect(try openFails(.dataCorrupted).cause?.contains("this is not a segment") == true)
        #expect(try home.pool.describeSegment(name: "vm").problems.count == 1)
    }

    @Test func aLaterMajorVersionIsRefused() throws {
        try damage(8, xor: 3)
        let error = try openFails(.unsupported)
        #expect(error.cause?.contains("format 2.2") == true)
    }

    @Test(arguments: [0, 100, 4096, 20480] as [UInt64])
    func aTruncatedControlFileIsRefused(bytes: UInt64) throws {
        #expect(truncate(home.path("vm", "control"), Int(bytes)) == 0)
        _ = try openFails(.dataCorrupted)
        #expect(try !home.pool.describeSegment(name: "vm").problems.isEmpty)
    }

    @Test func aTruncatedRAMFileIsRefused() throws {
        #expect(truncate(home.path("vm", "ram"), 15 * 4096) == 0)
        let error = try openFails(.dataCorrupted)
        #expect(error.cause?.contains("61440") == true)
        #expect(try home.pool.describeSegment(name: "vm").problems.count == 1)
    }

    @Test(arguments: [8192, 8200, 8216, 8224, 8232, 8300, 8316] as [UInt64])
    func aDamagedCurrentRecordIsRefused(offset: UInt64) throws {
        try damage(offset)
        let other = try home.pool.openSegment(name: "vm", access: .write)
        _ = try ftvmError(.dataCorrupted) { _ = try other.latestCommit() }
        _ = try ftvmError(.dataCorrupted) { try other.adopt(Generation(1)) }
        _ = try ftvmError(.dataCorrupted) { _ = try other.uncommittedPages() }
        _ = try ftvmError(.dataCorrupted) { try segment.rollBack() }
        let description = other.dump()
        #expect(description.problems.count == 1)
        #expect(description.records[0].problem != nil)
        #expect(description.undo?.start == nil)
        // Fencing works nevertheless.
        _ = try ftvmError(.dataCorrupted) { try other.raiseGeneration(to: Generation(2)) }
        #expect(other.position.generation == Generation(2))
    }

    @Test func damageInTheOtherRecordDoesNotMatter() throws {
        try damage(8704)
        #expect(try segment.latestCommit()?.epoch == Epoch(2))
        try segment.rollBack()
        let description = segment.dump()
        #expect(description.problems == [])
        #expect(description.records[1].problem != nil)
    }

    @Test func damagedDeviceStateIsRefused() throws {
        let commit = try #require(try segment.latestCommit())
        try damage(12288 + 4)
        let error = try ftvmError(.dataCorrupted) {
            try segment.withDeviceState(of: commit) { _ in }
        }
        #expect(error.message.contains("device state of epoch 2"))
        #expect(segment.dump().problems.count == 1)
    }

    @Test(arguments: [28672, 28684, 28692, 28696, 28700, 28704 + 9] as [UInt64])
    func aDamagedUndoEntryStopsTheRollbackBeforeItBegins(offset: UInt64) throws {
        segment.fill(page: 6, with: 0xaa)
        segment.fill(page: 7, with: 0xbb)
        try damage(offset)
        let error = try ftvmError(.dataCorrupted) { try segment.rollBack() }
        #expect(error.message.contains("undo entry \(offset < 28704 ? 0 : 1)"))
        _ = try ftvmError(.dataCorrupted) { _ = try segment.uncommittedPages() }
        #expect(segment.filling(of: 6) == 0xaa)
        #expect(segment.filling(of: 7) == 0xbb)
        #expect(segment.dump().problems.count == 1)
    }

    @Test(arguments: [557056 + 17, 557056 + 8191] as [UInt64])
    func aDamagedImageStopsTheRollbackBeforeItBegins(offset: UInt64) throws {
        segment.fill(page: 6, with: 0xaa)
        segment.fill(page: 7, with: 0xbb)
        try damage(offset)
        let error = try ftvmError(.dataCorrupted) { try segment.rollBack() }
        #expect(error.cause?.contains("image of page") == true)
        #expect(segment.filling(of: 6) == 0xaa)
        #expect(segment.filling(of: 7) == 0xbb)
        #expect(segment.dump().problems.count == 1)
    }

    @Test func aHeadThatCannotBeIsRefused() throws {
        try damage(4161)
        _ = try ftvmError(.dataCorrupted) { try segment.rollBack() }
        #expect(segment.dump().problems.count == 1)
    }

    @Test func randomDamageNeverCrashesTheDump() throws {
        var generator = SystemRandomNumberGenerator()
        for _ in 0..<400 {
            let offset = UInt64.random(in: 0..<32768, using: &generator)
            try damage(offset, xor: UInt8.random(in: 1...255, using: &generator))
            let description = try home.pool.describeSegment(name: "vm")
            #expect(!description.description.isEmpty)
            if let open = try? home.pool.openSegment(name: "vm", access: .write) {
                _ = try? open.latestCommit()
                _ = try? open.uncommittedPages()
            }
        }
    }

    @Test func theDumpSaysEverythingAndGoesThroughJSON() throws {
        segment.insertFlags([.pausedByCommit, .grafted])
        let description = segment.dump(entryLimit: 1)
        #expect(description.problems == [])
        #expect(description.flags == ["paused-by-commit", "grafted"])
        #expect(description.undo?.entries.count == 1)
        #expect(description.undo?.used == 2)
        #expect(description.records.map(\.isCurrent) == [true, false])
        #expect(description.primaryLocked == false)
        let data = try JSONEncoder().encode(description)
        #expect(try JSONDecoder().decode(SegmentDescription.self, from: data) == description)
        let text = description.description
        for expected in [
            "segment vm of pool test", testUUID, "generation 1, epoch 2",
            "paused-by-commit, grafted", "2 of 8 entries used, start 0, head 2",
            "page 6, epoch 3, generation 1", "record 0 (current)", "state 5 bytes",
        ] {
            #expect(text.contains(expected), "\(expected) is missing in\n\(text)")
        }
    }
}
