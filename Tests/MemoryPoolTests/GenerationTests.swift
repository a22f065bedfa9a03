import CLinux
import Foundation
import MemoryPool
import Model
import Testing

@Suite struct GenerationTests {
    let home: TestPool
    let old: Segment

    init() throws {
        home = try TestPool()
        old = try home.pool.createSegment(smallSegment())
        old.writeState(Epoch(1), [1])
        try old.publish(epoch: Epoch(1), generation: Generation(1), stateLength: 1)
    }

    @Test func raisingKeepsTheEpochAndFencesTheOldWriter() throws {
        old.fill(page: 2, with: 2)
        #expect(old.appendUndo(page: 2, epoch: Epoch(2)) == .appended)
        old.fill(page: 2, with: 3)
        let new = try home.pool.openSegment(name: "vm", access: .write)
        let raised = try new.raiseGeneration(to: Generation(2))
        #expect(raised == SegmentPosition(generation: Generation(2), epoch: Epoch(1)))
        #expect(old.appendUndo(page: 3, epoch: Epoch(2)) == .fenced)
        #expect(new.undoHead == 1)
        let error = try ftvmError(.conflict) {
            try old.publish(epoch: Epoch(2), generation: Generation(1), stateLength: 0)
        }
        #expect(error.message.contains("fenced"))
        _ = try ftvmError(.conflict) { try old.rollBack() }
        _ = try ftvmError(.conflict) { try old.adopt(Generation(1)) }
        #expect(old.filling(of: 2) == 3)
        try new.rollBack()
        #expect(old.filling(of: 2) == 2)
        #expect(new.appendUndo(page: 3, epoch: Epoch(2)) == .appended)
        try new.publish(epoch: Epoch(2), generation: Generation(2), stateLength: 0)
        #expect(new.position == SegmentPosition(generation: Generation(2), epoch: Epoch(2)))
        #expect(new.undoUsed == 0)
    }

    @Test func aGenerationIsRaisedOnlyUpwards() throws {
        for number in [0, 1] as [UInt64] {
            let error = try ftvmError(.conflict) {
                try old.raiseGeneration(to: Generation(number))
            }
            #expect(error.cause == "it already is 1")
        }
        try old.raiseGeneration(to: Generation(7))
        try old.raiseGeneration(to: Generation(Generation.maximum))
        #expect(old.position.epoch == Epoch(1))
    }

    /// The publish of a fenced primary must not touch the record that is the current one by now.
    @Test func aFencedPublishLeavesTheNewCommitAlone() throws {
        let new = try home.pool.openSegment(name: "vm", access: .write)
        try new.raiseGeneration(to: Generation(2))
        new.writeState(Epoch(2), [2, 2])
        let record = try new.publish(
            epoch: Epoch(2), generation: Generation(2), stateLength: 2)
        _ = try ftvmError(.conflict) {
            try old.publish(epoch: Epoch(2), generation: Generation(1), stateLength: 0)
        }
        #expect(try new.latestCommit() == record)
    }

    @Test func commitsMustFollowEachOther() throws {
        for epoch in [1, 3] as [UInt64] {
            _ = try ftvmError(.internalError) {
                try old.publish(epoch: Epoch(epoch), generation: Generation(1), stateLength: 0)
            }
        }
        #expect(try old.latestCommit()?.epoch == Epoch(1))
    }

    @Test func onlyAWriterOfThePresentGenerationRollsBack() throws {
        let other = try home.pool.openSegment(name: "vm", access: .write)
        _ = try ftvmError(.failedPrecondition) { try other.rollBack() }
        _ = try ftvmError(.conflict) {
            try other.publish(epoch: Epoch(2), generation: Generation(1), stateLength: 0)
        }
        #expect(other.appendUndo(page: 0, epoch: Epoch(2)) == .fenced)
        try other.adopt(Generation(1))
        #expect(try other.rollBack().entriesApplied == 0)
    }

    private func race(_ name: String) throws -> String {
        try CrasherProcess.output(["race", home.directory, "tmpfs", "vm", name])
    }

    @Test func aCommitDuringARaiseIsNotLost() throws {
        #expect(try race("commit-while-raising") == "generation 2, epoch 2")
        #expect(try old.latestCommit()?.epoch == Epoch(2))
    }

    @Test func aRaiseDuringACommitFencesItAndItsLogStays() throws {
        #expect(try race("raise-while-committing") == "conflict, log of 1")
        #expect(old.position == SegmentPosition(generation: Generation(2), epoch: Epoch(1)))
        #expect(try old.latestCommit()?.epoch == Epoch(1))
        #expect(try old.uncommittedPages() == [3])
    }

    /// The new primary was first with the place in the log: its entry counts.
    @Test func aPromotionDuringAnAppendFencesIt() throws {
        #expect(try race("promote-while-logging") == "fenced")
        #expect(old.undoHead == 1)
        #expect(try old.uncommittedPages() == [5])
    }

    /// Many promoters at once: each generation is won once, and the epoch survives.
    @Test func concurrentRaisesAreEachWonOnce() async throws {
        let pool = home.pool
        let wins = try await withThrowingTaskGroup(of: [UInt64].self) { group in
            for _ in 0..<4 {
                group.addTask {
                    let segment = try pool.openSegment(name: "vm", access: .write)
                    return (2...300).filter { number in
                        (try? segment.raiseGeneration(to: Generation(UInt64(number)))) != nil
                    }.map(UInt64.init)
                }
            }
            return try await group.reduce(into: []) { $0 += $1 }
        }
        #expect(Set(wins).count == wins.count)
        #expect(wins.max() == 300)
        #expect(old.position == SegmentPosition(generation: Generation(300), epoch: Epoch(1)))
    }

    @Test func flagsOfSeveralThreadsDoNotLoseEachOther() async throws {
        let pool = home.pool
        try await withThrowingTaskGroup(of: Void.self) { group in
            for flag in [SegmentFlags.pausedByCommit, .grafted, .disabling, .pausedByUser] {
                group.addTask {
                    let segment = try pool.openSegment(name: "vm", access: .write)
                    for _ in 0..<2000 {
                        segment.insertFlags(flag)
                        #expect(segment.flags.contains(flag))
                        segment.removeFlags(flag)
                        #expect(!segment.flags.contains(flag))
                    }
                    segment.insertFlags(flag)
                }
            }
            try await group.waitForAll()
        }
        #expect(old.flags == [.pausedByCommit, .grafted, .disabling, .pausedByUser])
        #expect(old.flags.description == "paused-by-commit, grafted, disabling, paused-by-user")
    }

    @Test func anOverflowForbidsTheRollbackUntilItsEpochIsCommitted() throws {
        old.markOverflow(epoch: Epoch(2))
        old.markOverflow(epoch: Epoch(1))
        #expect(old.overflowEpoch == Epoch(2))
        let error = try ftvmError(.failedPrecondition) { try old.rollBack() }
        #expect(error.cause?.contains("overflowed in epoch 2") == true)
        #expect(old.dump().problems.count == 1)
        try old.publish(epoch: Epoch(2), generation: Generation(1), stateLength: 0)
        try old.rollBack()
        #expect(old.overflowEpoch == Epoch(2))
        #expect(old.dump().problems == [])
    }

    @Test func withoutACommitThereIsNothingToRollBackTo() throws {
        let fresh = try home.pool.createSegment(smallSegment("fresh"))
        #expect(fresh.appendUndo(page: 1, epoch: Epoch(1)) == .appended)
        let error = try ftvmError(.failedPrecondition) { try fresh.rollBack() }
        #expect(error.cause == "nothing was ever committed")
        #expect(try fresh.uncommittedPages() == [1])
    }

    /// A page that is logged after everything was protected again, but before the commit, is
    /// the next epoch's: forgetting its entry would leave a page that is never logged again.
    @Test func whatIsLoggedDuringACommitSurvivesIt() throws {
        old.fill(page: 1, with: 1)
        old.fill(page: 2, with: 1)
        #expect(old.appendUndo(page: 1, epoch: Epoch(2)) == .appended)
        old.fill(page: 1, with: 2)
        let protectedAgain = old.undoHead
        #expect(old.appendUndo(page: 2, epoch: Epoch(3)) == .appended)
        old.fill(page: 2, with: 3)
        try old.publish(
            epoch: Epoch(2), generation: Generation(1), stateLength: 0, undoStart: protectedAgain)
        #expect(old.undoUsed == 1)
        #expect(try old.uncommittedPages() == [2])
        // Also for whoever opens it later.
        let new = try home.pool.openSegment(name: "vm", access: .write)
        try new.raiseGeneration(to: Generation(2))
        #expect(new.currentUndoStart == protectedAgain)
        #expect(try new.rollBack().entriesApplied == 1)
        #expect(new.filling(of: 1) == 2)
        #expect(new.filling(of: 2) == 1)
    }

    /// Entries that no rollback would accept are the caller's mistake and are noticed at once.
    @Test func entriesOfAWrongEpochAreNeverLogged() async {
        await #expect(processExitsWith: .failure) { [directory = home.directory as String] in
            let pool = try Pool(
                PoolConfiguration(name: PoolName("test"), kind: .tmpfs, path: directory))
            let segment = try pool.openSegment(name: "vm", access: .write)
            try segment.adopt(Generation(1))
            segment.appendUndo(page: 1, epoch: Epoch(1))
        }
        #expect(old.undoHead == 0)
        await #expect(processExitsWith: .failure) { [directory = home.directory as String] in
            let pool = try Pool(
                PoolConfiguration(name: PoolName("test"), kind: .tmpfs, path: directory))
            let segment = try pool.openSegment(name: "vm", access: .write)
            try segment.adopt(Generation(1))
            segment.appendUndo(page: 1, epoch: Epoch(2))
            try segment.publish(
                epoch: Epoch(2), generation: Generation(1), stateLength: 0, undoStart: 0)
        }
        #expect(old.undoHead == 1)
        #expect(old.position.epoch == Epoch(1))
    }

    /// A reader that asks for the last commit all the time always gets a whole one, while it is
    /// replaced all the time.
    @Test func aReaderSeesWholeCommitsOnly() async throws {
        let (pool, writer) = (home.pool, old)
        try await withThrowingTaskGroup(of: Void.self) { group in
            group.addTask {
                for epoch in 2...20_000 as ClosedRange<UInt64> {
                    try writer.publish(
                        epoch: Epoch(epoch), generation: Generation(1),
                        stateLength: Int(epoch % 64))
                }
            }
            group.addTask {
                let reader = try pool.openSegment(name: "vm", access: .read)
                var last = Epoch(0)
                while last < Epoch(20_000) {
                    let commit = try #require(try reader.latestCommit())
                    #expect(commit.epoch >= last)
                    #expect(
                        commit.epoch == Epoch(1)
                            || commit.stateLengthBytes == commit.epoch.number % 64)
                    last = commit.epoch
                }
            }
            try await group.waitForAll()
        }
    }
}
