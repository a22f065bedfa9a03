import CLinux
import Model

/// What a rollback did.
package struct RollbackReport: Hashable, Sendable, Codable {
    /// The commit that RAM now is of.
    package let commit: CommitRecord
    /// Entries of the undo log that were written back.
    package let entriesApplied: UInt64
    /// Different pages among them.
    package let distinctPages: UInt64
    /// Bytes written to guest RAM.
    package let bytes: UInt64
}

extension Segment {
    /// Makes RAM that of the last commit, by writing back every page image logged since, newest
    /// first, so that of several images of a page the oldest stays. Everything is verified before
    /// the first byte is written.
    ///
    /// The log is not forgotten, only a later commit frees it: the rollback may be repeated, after
    /// a crash at any point or with entries that were appended after an earlier one. The old
    /// primary and its manager must be fenced. Needs the caller's lock.
    ///
    /// Throws `.failedPrecondition` if nothing was ever committed or the log of the lost epoch
    /// overflowed, `.dataCorrupted` if the log is damaged, `.conflict` if this object does not
    /// write for the segment's present generation.
    @discardableResult
    package func rollBack() throws -> RollbackReport {
        requireWriteAccess()
        let present = position
        guard writerGeneration != Segment.noGeneration else {
            throw FtvmError(
                .failedPrecondition, "\(title) cannot be rolled back by this process",
                cause: "it has neither raised nor adopted a generation")
        }
        guard present.generation.number == writerGeneration else {
            throw fenced(Generation(writerGeneration), present)
        }
        guard let commit = try latestCommit() else {
            throw FtvmError(
                .failedPrecondition, "\(title) cannot be rolled back",
                cause: "nothing was ever committed",
                advice: "the guest must be started anew: enable the domain again")
        }
        if let overflow = overflowEpoch, overflow > commit.epoch {
            throw FtvmError(
                .failedPrecondition, "\(title) cannot be rolled back to epoch \(commit.epoch)",
                cause: "the undo log overflowed in epoch \(overflow), so pages of it are not known",
                advice: "the guest's memory is lost; give the pair a larger undo log "
                    + "or a shorter epoch when it is enabled again")
        }
        let (committed, range) = try uncommittedRange()
        for sequence in range { _ = try verifiedEntry(sequence: sequence, committed: committed) }
        FaultPoint.reached("segment.rollback.verified")
        let distinct = applyImages(range)
        FaultPoint.reached("segment.rollback.applied")
        return RollbackReport(
            commit: commit, entriesApplied: UInt64(range.count), distinctPages: distinct,
            bytes: UInt64(range.count) * UInt64(pageSizeBytes))
    }

    /// Writes the verified images of a range back, newest first; the number of different pages.
    private func applyImages(_ range: Range<UInt64>) -> UInt64 {
        var seen = [UInt64](repeating: 0, count: Int((pageCount + 63) / 64))
        var distinct: UInt64 = 0
        let half = range.lowerBound + UInt64(range.count) / 2
        for sequence in range.reversed() {
            let slot = Int(sequence % undoCapacity)
            guard let entry = UndoEntry(from: undoIndex + slot * SegmentFormat.undoEntryBytes),
                entry.page < pageCount
            else { preconditionFailure("an undo entry changed during a rollback") }
            (ram + Int(entry.page) * pageSizeBytes).copyMemory(
                from: undoImages + slot * pageSizeBytes, byteCount: pageSizeBytes)
            FaultPoint.reached("segment.rollback.page-applied")
            if sequence == half { FaultPoint.reached("segment.rollback.half-done") }
            let bit = UInt64(1) << (entry.page % 64)
            if seen[Int(entry.page / 64)] & bit == 0 {
                seen[Int(entry.page / 64)] |= bit
                distinct += 1
            }
        }
        return distinct
    }
}
