import CLinux
import Model

extension Segment {
    /// Room for the device state of an epoch: the slot that the commit before it does not use.
    package func stateSlot(for epoch: Epoch) -> UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(
            start: control
                + Int(header.states.offset)
                + CommitRecord.slot(of: epoch) * Int(header.stateSlotBytes),
            count: Int(header.stateSlotBytes))
    }

    private var records: UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(
            start: control + Int(header.records.offset), count: Int(header.records.bytes))
    }

    /// Makes `epoch` the state that a failover goes back to. `stateSlot(for: epoch)` must hold its
    /// device state already, RAM must be that of the end of the epoch. Needs the caller's lock.
    ///
    /// - Parameters:
    ///   - epoch: the epoch after the committed one.
    ///   - stateLength: length of the device state in bytes.
    ///   - undoStart: `undoHead` at the moment at which all pages were protected again; a page
    ///     logged after that belongs to the next epoch although this one is not published yet, and
    ///     its entry must survive the commit. nil: `undoHead` now, right only if no page can be
    ///     logged between protecting again and here.
    ///   - logs: how far the other logs belong to this epoch.
    ///
    /// Throws `.conflict` if the generation was raised meanwhile: this primary has been fenced and
    /// must release nothing. The log space of the epoch is reusable only after this returned.
    @discardableResult
    package func publish(
        epoch: Epoch, generation: Generation, stateLength: Int, undoStart: UInt64? = nil,
        logs: LogPositions = LogPositions()
    ) throws -> CommitRecord {
        requireWriteAccess()
        precondition(epoch.number > 0, "epoch 0 is \"nothing committed yet\"")
        let state = stateSlot(for: epoch)
        precondition(stateLength >= 0 && stateLength <= state.count, "device state too long")
        let head = undoHead
        let start = undoStart ?? head
        precondition(start >= currentUndoStart && start <= head, "undo start outside of the log")
        let before = SegmentPosition(generation: generation, epoch: Epoch(epoch.number - 1))
        let present = position
        // Looked at before the slot is touched: in a later generation it may be the current one.
        guard present.generation == generation, generation.number == writerGeneration else {
            throw fenced(generation, present)
        }
        guard present == before else {
            throw FtvmError(
                .internalError, "epoch \(epoch) of \(title) cannot be committed",
                cause: "the segment is at \(present)")
        }
        for sequence in start..<head {
            // Without its image, whose checksum would take time while the guest stands still.
            let slot = Int(sequence % undoCapacity) * SegmentFormat.undoEntryBytes
            guard let entry = UndoEntry(from: undoIndex + slot) else {
                throw FtvmError(
                    .dataCorrupted, "undo entry \(sequence) of \(title) is damaged",
                    cause: "wrong CRC", advice: "look at the segment with 'ftvm pool dump'")
            }
            precondition(
                entry.sequence == sequence && entry.epoch > epoch,
                "an entry of this epoch is behind its undo start")
        }
        let record = CommitRecord(
            sequence: epoch.number, generation: generation, epoch: epoch,
            stateSlot: UInt32(CommitRecord.slot(of: epoch)),
            stateCRC32C: ftvm_crc32c(0, state.baseAddress, stateLength),
            stateLengthBytes: UInt64(stateLength), undoStart: start, logs: logs)
        write(record)
        guard
            compareAndSetPosition(before, SegmentPosition(generation: generation, epoch: epoch))
        else { throw fenced(generation, position) }
        FaultPoint.reached("segment.commit.position-swapped")
        currentUndoStart = start
        return record
    }

    /// Writes a record into its slot, which the current commit does not use.
    private func write(_ record: CommitRecord) {
        let bytes = record.encoded()
        let slot = UnsafeMutableRawBufferPointer(
            rebasing: records[
                (CommitRecord.slot(of: record.epoch) * SegmentFormat.recordStride)...
            ].prefix(SegmentFormat.recordBytes))
        let half = bytes.count / 2
        slot.copyBytes(from: bytes[..<half])
        FaultPoint.reached("segment.commit.record-half-written")
        UnsafeMutableRawBufferPointer(rebasing: slot[half...]).copyBytes(from: bytes[half...])
        FaultPoint.reached("segment.commit.record-written")
    }

    /// The commit that a failover would go back to; nil if nothing was ever committed. Safe while
    /// another process commits.
    ///
    /// Throws `.dataCorrupted` with the reason if its record is damaged.
    package func latestCommit() throws -> CommitRecord? {
        var present = position
        while present.epoch.number > 0 {
            let slot = CommitRecord.slot(of: present.epoch)
            let read = Result {
                try CommitRecord(
                    records: UnsafeRawBufferPointer(records), slot: slot,
                    stateSlotBytes: header.stateSlotBytes)
            }
            // The record of the position just read is overwritten two commits later at the soonest.
            let after = position
            if after.epoch != present.epoch {
                present = after
                continue
            }
            let record: CommitRecord
            do {
                record = try read.get()
            } catch {
                throw FtvmError(wrapping: error, "the last commit of \(title) cannot be read")
            }
            guard record.epoch == present.epoch, record.generation <= present.generation,
                record.undoStart <= undoHead
            else {
                throw FtvmError(
                    .dataCorrupted, "the last commit of \(title) cannot be read",
                    cause: "the segment is at \(present), the record is of generation "
                        + "\(record.generation), epoch \(record.epoch), "
                        + "undo start \(record.undoStart)"
                )
            }
            return record
        }
        return nil
    }

    /// Calls `body` with the device state of a commit after checking its CRC. The commit must be
    /// the current one and nobody may publish meanwhile: the slot is used again two commits later.
    ///
    /// Throws `.dataCorrupted` if the state is not the one that was committed.
    package func withDeviceState<Value>(
        of commit: CommitRecord, _ body: (UnsafeRawBufferPointer) throws -> Value
    ) throws -> Value {
        let slot = stateSlot(for: commit.epoch)
        precondition(commit.stateLengthBytes <= UInt64(slot.count), "not a record of this segment")
        let state = UnsafeRawBufferPointer(
            rebasing: UnsafeRawBufferPointer(slot)[..<Int(commit.stateLengthBytes)])
        guard ftvm_crc32c(0, slot.baseAddress, state.count) == commit.stateCRC32C else {
            throw FtvmError(
                .dataCorrupted, "the device state of epoch \(commit.epoch) of \(title) is damaged",
                cause: "wrong CRC over \(commit.stateLengthBytes) bytes")
        }
        return try body(state)
    }
}
