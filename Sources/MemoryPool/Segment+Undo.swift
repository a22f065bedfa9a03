import CLinux
import Glibc
import Model

/// What became of an append to the undo log.
package enum UndoAppend: Sendable {
    /// The images are in the log: the pages may be unprotected.
    case appended
    /// The log has no room for all of them, nothing was changed: commit early, or `markOverflow`.
    case full
    /// The segment belongs to a later generation, nothing was published: leave the pages protected.
    case fenced
}

extension Segment {
    /// Entries that a rollback would use now. Needs the caller's lock.
    package var undoUsed: UInt64 { undoHead - currentUndoStart }

    /// Entries that can be appended before the log is full. Needs the caller's lock.
    package var undoFree: UInt64 { undoCapacity - undoUsed }

    /// Logs a page before its first write in `epoch`; see `appendUndo(firstPage:count:epoch:)`.
    @discardableResult
    package func appendUndo(page: UInt64, epoch: Epoch) -> UndoAppend {
        appendUndo(firstPage: page, count: 1, epoch: epoch)
    }

    /// Logs neighbouring pages before their first write in `epoch`: all of them or none. No
    /// allocation; about 1 us for 4 KiB from cold memory. Needs the caller's lock.
    ///
    /// Order (DESIGN section 3): image, entry, index. An entry is thus complete before it counts,
    /// and the caller unprotects the page only after this returned.
    @discardableResult
    package func appendUndo(firstPage: UInt64, count: Int, epoch: Epoch) -> UndoAppend {
        requireWriteAccess()
        precondition(
            count > 0 && firstPage < pageCount && UInt64(count) <= pageCount - firstPage,
            "pages outside of guest RAM")
        let present = ftvm_atomic_load_u64(positionWord)
        guard present >> 40 == writerGeneration else { return .fenced }
        // A rollback would refuse such an entry, when it is too late.
        precondition(epoch.number > present & Epoch.maximum, "the epoch is committed already")
        let head = ftvm_atomic_load_u64(undoHeadWord)
        guard head - currentUndoStart + UInt64(count) <= undoCapacity else { return .full }
        for index in 0..<UInt64(count) {
            writeEntry(sequence: head + index, page: firstPage + index, epoch)
        }
        return publishUndo(head, count: UInt64(count))
    }

    /// Writes an entry behind the published ones, and behind `offset` others that were prepared like this. It counts
    /// only once `publishPreparedUndo` was called, and is lost when something is appended before that.
    /// - Parameter epoch: the one that is to be running when the entry is published.
    /// - Returns: `.appended`, for: it is there.
    package func prepareUndo(page: UInt64, offset: UInt64, epoch: Epoch) -> UndoAppend {
        requireWriteAccess()
        precondition(page < pageCount, "a page outside of guest RAM")
        let present = ftvm_atomic_load_u64(positionWord)
        guard present >> 40 == writerGeneration else { return .fenced }
        precondition(epoch.number > present & Epoch.maximum, "the epoch is committed already")
        let sequence = ftvm_atomic_load_u64(undoHeadWord) + offset
        guard sequence - currentUndoStart < undoCapacity else { return .full }
        writeEntry(sequence: sequence, page: page, epoch)
        return .appended
    }

    /// Whether a page is still what its prepared entry says.
    package func isAsPrepared(page: UInt64, offset: UInt64) -> Bool {
        let slot = Int((ftvm_atomic_load_u64(undoHeadWord) + offset) % undoCapacity)
        return memcmp(
            undoImages + slot * pageSizeBytes, ram + Int(page) * pageSizeBytes, pageSizeBytes) == 0
    }

    /// Makes the first `count` prepared entries count. Nothing may have been appended since the first was prepared.
    package func publishPreparedUndo(count: UInt64) -> UndoAppend {
        requireWriteAccess()
        guard ftvm_atomic_load_u64(positionWord) >> 40 == writerGeneration else { return .fenced }
        let head = ftvm_atomic_load_u64(undoHeadWord)
        precondition(head + count - currentUndoStart <= undoCapacity, "entries that fit")
        return publishUndo(head, count: count)
    }

    @inline(__always)
    private func writeEntry(sequence: UInt64, page: UInt64, _ epoch: Epoch) {
        let slot = Int(sequence % undoCapacity)
        let crc = ftvm_crc32c_copy(
            undoImages + slot * pageSizeBytes, ram + Int(page) * pageSizeBytes, pageSizeBytes)
        FaultPoint.reached("segment.undo.image-copied")
        UndoEntry.write(
            to: undoIndex + slot * SegmentFormat.undoEntryBytes, sequence: sequence,
            page: page, positionWord: writerGeneration << 40 | epoch.number, imageCRC32C: crc)
        FaultPoint.reached("segment.undo.entry-written")
    }

    private func publishUndo(_ head: UInt64, count: UInt64) -> UndoAppend {
        // A store would do for the only writer. The exchange notices a second one, which has no
        // business here.
        guard
            ftvm_atomic_compare_exchange_u64(undoHeadWord, head, head + count)
        else { return .fenced }
        FaultPoint.reached("segment.undo.head-published")
        return .appended
    }

    /// Checks the entry with a sequence number, with its image; `committed` is the last commit.
    func verifiedEntry(sequence: UInt64, committed: Epoch) throws -> UndoEntry {
        let slot = Int(sequence % undoCapacity)
        func damaged(_ cause: String) -> FtvmError {
            FtvmError(
                .dataCorrupted, "undo entry \(sequence) of \(title) is damaged", cause: cause,
                advice: "the segment cannot be rolled back; look at it with 'ftvm pool dump'")
        }
        guard let entry = UndoEntry(from: undoIndex + slot * SegmentFormat.undoEntryBytes) else {
            throw damaged("wrong CRC")
        }
        guard entry.sequence == sequence, entry.page < pageCount, entry.epoch > committed else {
            throw damaged(
                "it says entry \(entry.sequence), page \(entry.page), epoch \(entry.epoch)")
        }
        guard
            entry.imageCRC32C == ftvm_crc32c(0, undoImages + slot * pageSizeBytes, pageSizeBytes)
        else { throw damaged("wrong CRC of the image of page \(entry.page)") }
        return entry
    }

    /// The range of sequence numbers that belongs to what is not committed yet.
    func uncommittedRange() throws -> (committed: Epoch, range: Range<UInt64>) {
        let commit = try latestCommit()
        let start = commit?.undoStart ?? 0
        let head = undoHead
        guard start <= head, head - start <= undoCapacity else {
            throw FtvmError(
                .dataCorrupted, "the undo log of \(title) is damaged",
                cause: "entries \(start) to \(head) in a log of \(undoCapacity)")
        }
        return (commit?.epoch ?? Epoch(0), start..<head)
    }

    /// Every page with an entry since the last commit, verified, each once, rising: a restarted
    /// `ftvmd` knows from this which pages are not protected. Needs the caller's lock.
    package func uncommittedPages() throws -> [UInt64] {
        let (committed, range) = try uncommittedRange()
        var pages: [UInt64] = []
        pages.reserveCapacity(range.count)
        for sequence in range {
            pages.append(try verifiedEntry(sequence: sequence, committed: committed).page)
        }
        pages.sort()
        var distinct: [UInt64] = []
        distinct.reserveCapacity(pages.count)
        for page in pages where page != distinct.last { distinct.append(page) }
        return distinct
    }
}
