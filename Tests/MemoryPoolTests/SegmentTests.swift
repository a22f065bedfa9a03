import CLinux
import Foundation
import MemoryPool
import Model
import Testing

@Suite struct SegmentTests {
    let home: TestPool
    let segment: Segment

    init() throws {
        home = try TestPool()
        segment = try home.pool.createSegment(smallSegment())
    }

    private func commit(_ epoch: UInt64, state: [UInt8] = []) throws {
        segment.writeState(Epoch(epoch), state)
        try segment.publish(
            epoch: Epoch(epoch), generation: Generation(1), stateLength: state.count)
    }

    @Test func aNewSegmentIsAtEpochZeroOfItsGeneration() throws {
        #expect(segment.position == SegmentPosition(generation: Generation(1), epoch: Epoch(0)))
        #expect(segment.undoHead == 0)
        #expect(segment.flags == [])
        #expect(segment.overflowEpoch == nil)
        #expect(try segment.latestCommit() == nil)
        #expect(segment.memoryBytes == 16 * 4096)
        #expect(segment.pageCount == 16)
        #expect(segment.undoCapacity == 8)
        #expect(segment.undoFree == 8)
        #expect(segment.header.uuid == testUUID)
    }

    @Test func rollbackRestoresTheOldestImageOfEveryPage() throws {
        for page in 0..<16 as Range<UInt64> { segment.fill(page: page, with: UInt8(page)) }
        try commit(1, state: [1, 2, 3])
        #expect(segment.appendUndo(page: 3, epoch: Epoch(2)) == .appended)
        segment.fill(page: 3, with: 0xaa)
        #expect(segment.appendUndo(firstPage: 14, count: 2, epoch: Epoch(2)) == .appended)
        segment.fill(page: 14, with: 0xbb)
        // A second image of a page, as after a restart of the manager: the older one must win.
        #expect(segment.appendUndo(page: 3, epoch: Epoch(2)) == .appended)
        segment.fill(page: 3, with: 0xcc)
        #expect(try segment.uncommittedPages() == [3, 14, 15])
        let report = try segment.rollBack()
        #expect(report.entriesApplied == 4)
        #expect(report.distinctPages == 3)
        #expect(report.bytes == 4 * 4096)
        #expect(report.commit.epoch == Epoch(1))
        for page in 0..<16 as Range<UInt64> { #expect(segment.filling(of: page) == UInt8(page)) }
        // Again, with an entry made after the first rollback.
        #expect(segment.appendUndo(page: 5, epoch: Epoch(2)) == .appended)
        segment.fill(page: 5, with: 0xdd)
        #expect(try segment.rollBack().entriesApplied == 5)
        for page in 0..<16 as Range<UInt64> { #expect(segment.filling(of: page) == UInt8(page)) }
        let state = try segment.withDeviceState(of: report.commit) { [UInt8]($0) }
        #expect(state == [1, 2, 3])
    }

    @Test func theRingWrapsAroundAndOnlyACommitFreesIt() throws {
        try commit(1)
        var expected = [UInt8](repeating: 0, count: 16)
        for epoch in 2...40 as ClosedRange<UInt64> {
            for index in 0..<5 as Range<UInt64> {
                let page = (epoch * 7 + index * 3) % 16
                #expect(segment.appendUndo(page: page, epoch: Epoch(epoch)) == .appended)
                segment.fill(page: page, with: UInt8(epoch))
                expected[Int(page)] = UInt8(epoch)
            }
            #expect(segment.undoUsed == 5)
            #expect(segment.appendUndo(firstPage: 0, count: 4, epoch: Epoch(epoch)) == .full)
            #expect(segment.undoUsed == 5)
            if epoch < 40 { try commit(epoch) }
        }
        #expect(segment.undoHead == 39 * 5)
        try segment.rollBack()
        // Epoch 40 is undone: what its pages held at 39 is known from a fresh replay.
        var replay = [UInt8](repeating: 0, count: 16)
        for epoch in 2..<40 as Range<UInt64> {
            for index in 0..<5 as Range<UInt64> {
                replay[Int((epoch * 7 + index * 3) % 16)] = UInt8(epoch)
            }
        }
        #expect(replay != expected)
        for page in 0..<16 as Range<UInt64> {
            #expect(segment.filling(of: page) == replay[Int(page)])
        }
    }

    @Test func aFullLogRefusesAndChangesNothing() throws {
        try commit(1)
        for page in 0..<8 as Range<UInt64> {
            #expect(segment.appendUndo(page: page, epoch: Epoch(2)) == .appended)
        }
        #expect(segment.undoFree == 0)
        #expect(segment.appendUndo(page: 9, epoch: Epoch(2)) == .full)
        #expect(segment.undoHead == 8)
        #expect(try segment.uncommittedPages() == Array(0..<8))
        try commit(2)
        #expect(segment.undoFree == 8)
        #expect(segment.appendUndo(page: 9, epoch: Epoch(3)) == .appended)
    }
}
