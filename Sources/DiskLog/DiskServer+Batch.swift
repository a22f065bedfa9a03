import CLinux
import Glibc
import Model

// Several groups at once, through the journal.
extension DiskServer {
    /// A plugin that was killed may have left a batch half in the images. Applying its groups once
    /// more, one after the other, would take the images back through states that no power cut could
    /// leave: the batch is brought in whole, and counts as applied.
    func replayJournal() -> ImageTrouble? {
        guard let journal else {
            hasReplayed = true
            return nil
        }
        do {
            try journal.settle()
            if let batch = try journal.batch() {
                try journal.apply(batch) { name in
                    // The disks are the log's own: `activate` has compared the identities.
                    guard let index = log.disks.firstIndex(where: { $0.name == name }) else {
                        throw FtvmError(.internalError, "no disk '\(name)'")
                    }
                    return images[index]
                }
                FaultPoint.reached("disklog.journal.replayed")
                if batch.end > log.applied { finishReplay(batch.end) }
            }
        } catch {
            return ImageTrouble(result: -EIO, disk: -1)
        }
        hasReplayed = true
        return nil
    }

    private func finishReplay(_ end: UInt64) {
        log.raise(.applied, to: end)
        FaultPoint.reached("disklog.journal.noted")
        indexLock.write {
            for index in indexes { index.remove(0, .max, below: end) }
        }
        // Of a record there is only where its data begin; behind the last one the end is known.
        free(below: end, dataEnd: end < log.head ? log.record(end)?.dataPosition ?? 0 : 0)
    }

    /// All is applied: the images alone are enough again.
    func settleJournal() -> Application {
        guard let journal, journal.isValid, PlantedBug.active != .staleJournal else { return .idle }
        let result = journal.clear()
        return result == 0 ? .idle : failed(result, -1)
    }

    /// Whether a batch of what waits would save more than it costs: it saves a sync for every group but
    /// two, and writes all data twice.
    private func batchPays(
        _ journal: DiskJournal, from start: UInt64, to limit: UInt64
    ) -> Bool {
        var (position, bytes, count) = (start, UInt64(0), 0)
        var hasWrites = false
        while position < limit, position - start < settings.groupRecords,
            bytes < journal.limits.dataBytes
        {
            // A damaged one is told of when it is collected.
            guard let record = log.record(position) else { break }
            position += 1
            if record.kind == .flush {
                if hasWrites { count += 1 }
                hasWrites = false
                continue
            }
            hasWrites = true
            if record.kind == .write { bytes += record.length }
        }
        if hasWrites { count += 1 }
        return count >= settings.batchGroups
            && bytes <= UInt64(max(count - 2, 0)) * settings.batchBytes
    }

    /// Several groups, when so many wait that one batch through the journal is cheaper. nil: apply
    /// the next group by itself.
    func applyBatch(from start: UInt64, to limit: UInt64) -> Application? {
        guard let journal, batchPays(journal, from: start, to: limit) else { return nil }
        for map in batchMaps { map.removeAll() }
        var batch = RecordGroup(end: start, dataEnd: 0)
        var ends: [UInt64] = []
        while batch.end < limit, batch.bytes < journal.limits.dataBytes,
            batchMaps.reduce(0, { $0 + $1.count }) < journal.limits.entries / 2,
            batch.end - start < settings.groupRecords
        {
            let end: UInt64
            let left = journal.limits.dataBytes - batch.bytes
            switch collectGroup(from: batch.end, to: limit, bytes: left, into: groups) {
            case .failure(let trouble):
                if ends.isEmpty { return failed(trouble.result, trouble.disk) }
                end = batch.end
            case .success(let group):
                // A group that was cut off at `limit` or by its size is one all the same.
                batch.dataEnd = group.dataEnd
                batch.bytes += group.bytes
                batch.hasWrites = batch.hasWrites || group.hasWrites
                end = group.end
            }
            if end == batch.end { break }
            for (disk, map) in groups.enumerated() {
                map.forEach(0, .max) { batchMaps[disk].insert($0) }
            }
            batch.end = end
            ends.append(end)
        }
        guard ends.count >= settings.batchGroups else { return nil }
        FaultPoint.reached("disklog.batch.collected")
        var entries: [DiskJournal.Entry] = []
        for (disk, map) in batchMaps.enumerated() {
            map.forEach(0, .max) { entries.append(DiskJournal.Entry(disk: disk, extent: $0)) }
        }
        guard entries.count <= journal.limits.entries else { return nil }
        let result = journal.write(entries, of: log, batch: start..<batch.end)
        if result != 0 { return failed(result, -1) }
        log.add(1, to: .syncs)
        return writeBatch(batch, from: start, ends)
    }

    /// Group by group, so that the images by themselves are no worse than after a power cut, should only
    /// the processes die; one sync at the end.
    private func writeBatch(_ batch: RecordGroup, from start: UInt64, _ ends: [UInt64])
        -> Application
    {
        var position = start
        for end in ends {
            switch collectGroup(from: position, to: end, into: groups, isVerified: true) {
            case .failure(let trouble): return failed(trouble.result, trouble.disk)
            case .success(let group): precondition(group.end == end, "the same group again")
            }
            if let trouble = writeGroup() { return failed(trouble.result, trouble.disk) }
            position = end
        }
        // Stable since the journal was synced. Said only now, so that what a client is told of is also in
        // the images by themselves, should only the processes die.
        log.raise(.durable, to: batch.end)
        FaultPoint.reached("disklog.batch.durable")
        notify?(.durable)
        if let trouble = synchronize(batchMaps, batch.end) {
            return failed(trouble.result, trouble.disk)
        }
        finish(batch, batchMaps)
        return .applied
    }
}
