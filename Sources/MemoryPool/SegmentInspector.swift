import CLinux
import Model

/// Takes a control file apart without trusting anything in it.
struct SegmentInspector {
    let control: UnsafeRawBufferPointer
    /// Undo entries to show.
    let entryLimit: Int

    /// While another process commits, what was read may not fit together: begin again, so often.
    private static let attempts = 8

    func describe(pool: PoolName, name: String) -> SegmentDescription {
        var description = SegmentDescription(pool: pool, name: name)
        for _ in 0..<SegmentInspector.attempts {
            description = describeOnce(pool: pool, name: name)
            let word = liveWord(SegmentFormat.livePosition, in: area(\.live))
            if word.map({ SegmentPosition(word: $0) }) == description.position?.position { break }
        }
        return description
    }

    private var header: SegmentHeader? { try? SegmentHeader(controlFile: control) }

    private func describeOnce(pool: PoolName, name: String) -> SegmentDescription {
        var description = SegmentDescription(pool: pool, name: name)
        let header: SegmentHeader?
        do {
            let sound = try SegmentHeader(controlFile: control)
            header = sound
            description.header = SegmentDescription.Header(sound)
            if sound.controlFileBytes != UInt64(control.count) {
                description.problems.append(
                    "the control file is \(control.count) bytes long, the header says "
                        + "\(sound.controlFileBytes)")
            }
        } catch {
            header = nil
            description.problems.append("\(error)")
        }
        let live = area(\.live)
        guard let positionWord = liveWord(SegmentFormat.livePosition, in: live),
            let head = liveWord(SegmentFormat.liveUndoHead, in: live),
            let flags = liveWord(SegmentFormat.liveFlags, in: live),
            let overflow = liveWord(SegmentFormat.liveOverflowEpoch, in: live)
        else {
            description.problems.append("the control file ends before the live words")
            return description
        }
        let position = SegmentPosition(word: positionWord)
        description.position = SegmentPositionDescription(
            generation: position.generation, epoch: position.epoch)
        description.flags = SegmentFlags(rawValue: flags).names
        if overflow > Epoch.maximum {
            description.problems.append("the overflow epoch is \(overflow)")
        } else if overflow > 0 {
            description.overflowEpoch = Epoch(overflow)
            if overflow > position.epoch.number {
                description.problems.append(
                    "the undo log overflowed in epoch \(overflow): "
                        + "no rollback until it is committed"
                )
            }
        }
        description.records = (0..<2).map { record(slot: $0, position, header, head) }
        for record in description.records where record.isCurrent {
            if let problem = record.problem { description.problems.append(problem) }
        }
        let current = description.records.first { $0.isCurrent }
        let start = position.epoch.number == 0 ? 0 : current?.record?.undoStart
        description.undo = undo(head: head, start: start, header, position.epoch)
        for entry in description.undo?.entries ?? [] {
            if let problem = entry.problem {
                description.problems.append("undo entry \(entry.sequence): \(problem)")
            }
        }
        if let start, start > head || (header.map { head - start > $0.undoCapacity } ?? false) {
            description.problems.append("the undo log reaches from \(start) to \(head)")
        }
        if let header { describeFrameLogs(header, current?.record?.logs, &description) }
        return description
    }

    private func describeFrameLogs(
        _ header: SegmentHeader, _ committed: LogPositions?,
        _ description: inout SegmentDescription
    ) {
        let released = liveWord(SegmentFormat.liveReleased, in: header.live) ?? 0
        func log(
            _ name: String, _ area: SegmentArea, _ headOffset: Int, from start: UInt64,
            _ committed: UInt64?, _ released: UInt64?
        ) -> SegmentDescription.FrameLogDescription? {
            guard area.bytes > 0, area.end <= UInt64(control.count), let base = control.baseAddress,
                let headWord = liveWord(headOffset, in: header.live)
            else { return nil }
            var word = headWord
            var frames: UInt64 = 0
            var bytes: UInt64 = 0
            withUnsafeMutablePointer(to: &word) { pointer in
                let log = FrameLog(
                    base: UnsafeMutableRawPointer(mutating: base + Int(area.offset)),
                    capacityBytes: area.bytes, headWord: pointer, writable: false)
                var position = start
                walk: while true {
                    switch log.frame(at: position, before: headWord) {
                    case .frame(let frame):
                        frames += 1
                        bytes += UInt64(frame.bytes.count)
                        position = frame.end
                    case .end: break walk
                    case .damaged:
                        description.problems.append(
                            "the \(name) log is damaged at position \(position)")
                        break walk
                    }
                }
            }
            return SegmentDescription.FrameLogDescription(
                capacityBytes: area.bytes, head: headWord, committed: committed,
                released: released, frames: frames, frameBytes: bytes)
        }
        description.outputLog = log(
            "output", header.outputLog, SegmentFormat.liveOutputHead, from: released,
            committed?.output, released)
        description.inputLog = log(
            "input", header.inputLog, SegmentFormat.liveInputHead, from: committed?.input ?? 0,
            committed?.input, nil)
    }

    /// An area where the header says, or, if the header is damaged, where version 1 puts it.
    private func area(_ path: KeyPath<SegmentHeader, SegmentArea>) -> SegmentArea {
        if let header { return header[keyPath: path] }
        let offset = path == \.live ? SegmentFormat.liveOffset : SegmentFormat.recordsOffset
        return SegmentArea(offset: offset, bytes: 4096)
    }

    private func liveWord(_ offset: Int, in live: SegmentArea) -> UInt64? {
        guard live.end <= UInt64(control.count), let base = control.baseAddress else { return nil }
        let word = (base + Int(live.offset) + offset).assumingMemoryBound(to: UInt64.self)
        return ftvm_atomic_load_u64(word)
    }

    private func record(
        slot: Int, _ position: SegmentPosition, _ header: SegmentHeader?, _ head: UInt64
    ) -> SegmentDescription.Record {
        let isCurrent = position.epoch.number > 0 && CommitRecord.slot(of: position.epoch) == slot
        func result(_ record: CommitRecord?, _ problem: String?) -> SegmentDescription.Record {
            SegmentDescription.Record(
                slot: slot, isCurrent: isCurrent, record: record, problem: problem)
        }
        let records = area(\.records)
        guard records.end <= UInt64(control.count) else {
            return result(nil, "the control file ends before the commit records")
        }
        let bytes = UnsafeRawBufferPointer(
            rebasing: control[Int(records.offset)..<Int(records.end)])
        let found: CommitRecord
        do {
            found = try CommitRecord(
                records: bytes, slot: slot,
                stateSlotBytes: header?.stateSlotBytes ?? SegmentFormat.largestBytes)
        } catch {
            let start = slot * SegmentFormat.recordStride
            let blank = bytes[start..<start + SegmentFormat.recordBytes].allSatisfy { $0 == 0 }
            return result(nil, blank && !isCurrent ? nil : "\(error)")
        }
        guard isCurrent else { return result(found, nil) }
        if found.epoch != position.epoch || found.generation > position.generation
            || found.undoStart > head
        {
            return result(found, "commit record \(slot) does not fit the position")
        }
        return result(found, stateProblem(found, header))
    }

    private func stateProblem(_ record: CommitRecord, _ header: SegmentHeader?) -> String? {
        guard let header, header.states.end <= UInt64(control.count),
            let base = control.baseAddress
        else { return nil }
        let state =
            base + Int(header.states.offset)
            + Int(record.stateSlot) * Int(header.stateSlotBytes)
        return ftvm_crc32c(0, state, Int(record.stateLengthBytes)) == record.stateCRC32C
            ? nil : "the device state of epoch \(record.epoch) has a wrong CRC"
    }

    private func undo(
        head: UInt64, start: UInt64?, _ header: SegmentHeader?, _ committed: Epoch
    ) -> SegmentDescription.Undo {
        var entries: [SegmentDescription.Entry] = []
        if let start, let header, start <= head, head - start <= header.undoCapacity,
            header.undoImages.end <= UInt64(control.count)
        {
            for sequence in start..<start + min(head - start, UInt64(max(0, entryLimit))) {
                entries.append(entry(sequence, header, committed))
            }
        }
        return SegmentDescription.Undo(
            head: head, start: start,
            used: start.flatMap { $0 <= head ? head - $0 : nil }, capacity: header?.undoCapacity,
            entries: entries)
    }

    private func entry(
        _ sequence: UInt64, _ header: SegmentHeader, _ committed: Epoch
    ) -> SegmentDescription.Entry {
        func result(_ entry: UndoEntry?, _ problem: String?) -> SegmentDescription.Entry {
            SegmentDescription.Entry(sequence: sequence, entry: entry, problem: problem)
        }
        guard let base = control.baseAddress else { return result(nil, "no control file") }
        let slot = Int(sequence % header.undoCapacity)
        let place = base + Int(header.undoIndex.offset) + slot * SegmentFormat.undoEntryBytes
        guard let entry = UndoEntry(from: place) else { return result(nil, "wrong CRC") }
        if entry.sequence != sequence || entry.page >= header.pageCount || entry.epoch <= committed
        {
            return result(entry, "it does not belong here")
        }
        let image = base + Int(header.undoImages.offset) + slot * Int(header.pageSizeBytes)
        let sound = entry.imageCRC32C == ftvm_crc32c(0, image, Int(header.pageSizeBytes))
        return result(entry, sound ? nil : "wrong CRC of the image")
    }
}

extension SegmentPositionDescription {
    var position: SegmentPosition { SegmentPosition(generation: generation, epoch: epoch) }
}

extension SegmentDescription.Header {
    init(_ header: SegmentHeader) {
        formatVersion = "\(header.majorVersion).\(header.minorVersion)"
        uuid = header.uuid
        memoryBytes = header.memoryBytes
        ramFileBytes = header.ramFileBytes
        controlFileBytes = header.controlFileBytes
        pageSizeBytes = header.pageSizeBytes
        pageCount = header.pageCount
        undoCapacity = header.undoCapacity
        stateSlotBytes = header.stateSlotBytes
        creationGeneration = header.creationGeneration
        areas = [
            "live": header.live, "records": header.records, "states": header.states,
            "undo-index": header.undoIndex, "undo-images": header.undoImages,
            "disk-log": header.diskLog, "input-log": header.inputLog,
            "output-log": header.outputLog,
        ].filter { $0.value.bytes > 0 }
        numaNodes = header.numaNodes
    }
}

/// Undo entries that a dump shows unless told otherwise.
package let defaultDumpEntries = 16

extension Segment {
    /// Describes the segment as it is now, also while another process writes it.
    package func dump(entryLimit: Int = defaultDumpEntries) -> SegmentDescription {
        let bytes = UnsafeRawBufferPointer(start: control, count: Int(header.controlFileBytes))
        var description = SegmentInspector(control: bytes, entryLimit: entryLimit)
            .describe(pool: pool, name: name)
        description.primaryLocked = try? isLocked(.primary)
        description.managerLocked = try? isLocked(.manager)
        description.sampledPagesOnNodes = NumaPlacement.sample(
            ram, bytes: Int(header.ramFileBytes), pageBytes: pageSizeBytes)
        return description
    }
}

extension Pool {
    /// Describes a segment, also one that is too damaged to be opened. Read-only.
    ///
    /// Throws `.notFound` if it does not exist; everything else is in the description's `problems`.
    package func describeSegment(
        name: String, entryLimit: Int = defaultDumpEntries
    ) throws -> SegmentDescription {
        let openError: any Error
        do {
            return try openSegment(name: name, access: .read).dump(entryLimit: entryLimit)
        } catch let error as FtvmError where error.code == .notFound {
            throw error
        } catch {
            openError = error
        }
        let file = try storage.open(.control, of: name, writable: false)
        let what = "the control file of segment '\(name)'"
        let bytes = try file.fileBytes(what)
        guard bytes > 0 else {
            var description = SegmentDescription(pool: self.name, name: name)
            description.problems.append("the control file is empty")
            return description
        }
        let mapping = try Mapping(file, bytes: bytes, writable: false, what)
        var description = SegmentInspector(
            control: UnsafeRawBufferPointer(start: mapping.address, count: mapping.bytes),
            entryLimit: entryLimit
        ).describe(pool: self.name, name: name)
        if description.problems.isEmpty { description.problems.append("\(openError)") }
        return description
    }
}
