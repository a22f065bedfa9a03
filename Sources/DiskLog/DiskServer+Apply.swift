import CLinux
import Glibc
import Model

// The background: sealed records into the images, group by group, in order.
extension DiskServer {
    /// What became of an attempt to apply.
    package enum Application: Hashable, Sendable {
        /// Nothing is sealed that is not applied, or what is may wait for more.
        case idle
        /// A group is in the images and stable.
        case applied
        /// An image, or the log, refused: errno, and whose image.
        case failed(Int32, disk: Int)
        /// Somebody else's generation: this server has ended.
        case fenced
    }

    /// The applier's thread.
    func applyUntilEnd() {
        var failing = false
        while true {
            bell.lock()
            if !isRinging, !isClosing {
                bell.wait(
                    milliseconds: failing ? settings.retryMilliseconds : settings.lookMilliseconds)
            }
            let closing = isClosing
            let rung = isRinging
            isRinging = false
            bell.unlock()
            if closing { return }
            // After an error only time helps: a bell for every commit must not hammer the storage.
            if failing, rung, !isRetryDue { continue }
            failing = false
            var outcome = Application.applied
            while outcome == .applied {
                outcome = applyGroup(evenIfYoung: false)
                if isEnding { return }
            }
            switch outcome {
            case .fenced: return
            case .failed: failing = true
            case .idle, .applied: break
            }
        }
    }

    private var isEnding: Bool {
        bell.lock()
        defer { bell.unlock() }
        return isClosing
    }

    private var isRetryDue: Bool {
        ftvm_disk_now() >= failedAt + UInt64(settings.retryMilliseconds) * 1_000_000
    }

    /// Applies the next group of sealed records, if there is one and (unless `evenIfYoung`) somebody
    /// waits for it. For one thread at a time.
    package func applyGroup(evenIfYoung: Bool) -> Application {
        guard log.generation == generation || PlantedBug.active == .ignoresGeneration else {
            end(.ended)
            // Only this thread writes images, and nobody the log from here on.
            releaseLog()
            notify?(.fenced)
            onFenced?()
            return .fenced
        }
        if !hasReplayed, let trouble = replayJournal() {
            return failed(trouble.result, trouble.disk)
        }
        let start = log.applied
        let limit = PlantedBug.active == .appliesUnsealed ? log.head : log.sealed
        guard start < limit else {
            log[.waitingSince] = 0
            return settleJournal()
        }
        if log[.waitingSince] == 0 { log[.waitingSince] = ftvm_disk_now() }
        guard evenIfYoung || isDue(start) else { return .idle }
        if let outcome = applyBatch(from: start, to: limit) { return outcome }
        // An old batch must not be replayed over what is written now.
        if let journal, journal.isValid, PlantedBug.active != .staleJournal {
            let result = journal.clear()
            if result != 0 { return failed(result, -1) }
        }
        switch collectGroup(from: start, to: limit, into: groups) {
        case .failure(let trouble): return failed(trouble.result, trouble.disk)
        case .success(let group):
            FaultPoint.reached("disklog.apply.verified")
            if group.hasWrites {
                if let trouble = writeGroup() ?? synchronize(groups, group.end) {
                    return failed(trouble.result, trouble.disk)
                }
            }
            finish(group, groups)
            return .applied
        }
    }

    /// Notes what is in the images, and forgets it here.
    private func finish(_ group: Group, _ maps: [ExtentMap]) {
        FaultPoint.reached("disklog.apply.synced")
        log.raise(.applied, to: group.end)
        FaultPoint.reached("disklog.apply.noted")
        forget(group, maps)
        free(below: group.end, dataEnd: group.dataEnd)
        log.add(group.bytes, to: .appliedBytes)
        log[.failure] = 0
        log[.waitingSince] = group.end < log.sealed ? ftvm_disk_now() : 0
        notify?(.durable)
    }

    private func isDue(_ start: UInt64) -> Bool {
        if log.flushed > start || fullness >= 4 { return true }
        return ftvm_disk_now() - log[.waitingSince]
            >= UInt64(settings.lazyMilliseconds) * 1_000_000
    }

    private func failed(_ result: Int32, _ disk: Int) -> Application {
        log[.failure] = UInt64(disk + 1) << 32 | UInt64(UInt32(bitPattern: -result))
        log.add(1, to: .failures)
        failedAt = ftvm_disk_now()
        // Who is held for room gets this error.
        appending.lock()
        appending.broadcast()
        appending.unlock()
        notify?(.failed)
        return .failed(-result, disk: disk)
    }
}

// MARK: - Groups

private struct Trouble: Error {
    var result: Int32
    var disk: Int
}

/// Records that may reach the image in any order.
private struct Group {
    var end: UInt64
    var dataEnd: UInt64
    var bytes: UInt64 = 0
    var hasWrites = false
}

extension DiskServer {
    /// Merges the records from `start` on, up to the first flush marker behind a write and with the
    /// markers that follow it.
    private func collectGroup(
        from start: UInt64, to limit: UInt64, bytes: UInt64 = .max, into maps: [ExtentMap]
    ) -> Result<Group, Trouble> {
        for map in maps { map.removeAll() }
        var group = Group(end: start, dataEnd: 0)
        var isComplete = false
        while group.end < limit, group.bytes < min(bytes, settings.groupBytes),
            group.end - start < settings.groupRecords
        {
            guard let record = log.record(group.end), record.generation <= generation else {
                return .failure(Trouble(result: -EBADMSG, disk: -1))
            }
            if isComplete, record.kind != .flush { break }
            group.dataEnd = record.dataPosition + record.dataBytes
            group.end += 1
            if record.kind == .flush {
                isComplete = group.hasWrites && PlantedBug.active != .mergesAcrossFlush
                continue
            }
            if record.kind == .write {
                guard log.hasIntactData(record) || PlantedBug.active == .ignoresDamage else {
                    return .failure(Trouble(result: -EBADMSG, disk: record.disk))
                }
                group.bytes += record.length
            }
            group.hasWrites = true
            insert(record, into: maps[record.disk])
        }
        return .success(group)
    }

    private func insert(_ record: LogRecord, into map: ExtentMap) {
        let extent = extent(of: record)
        if PlantedBug.active == .oldestWins {
            var covered = false
            map.forEach(extent.start, extent.end) { _ in covered = true }
            if covered { return }
        }
        map.insert(extent)
    }

    /// Writes the merged group: what follows one another on the disk goes out in one call.
    private func writeGroup() -> Trouble? {
        for (disk, map) in groups.enumerated() where map.count > 0 {
            var result: Int32 = 0
            var start: UInt64 = 0
            var end: UInt64 = 0
            pieces.removeAll(keepingCapacity: true)
            map.forEach(0, .max) { extent in
                guard result == 0 else { return }
                if !pieces.isEmpty, extent.isZero || extent.start != end || pieces.count == 1024 {
                    result = writePieces(disk, at: start)
                }
                guard result == 0 else { return }
                if extent.isZero {
                    if PlantedBug.active != .dropsTrims || extent.source != Extent.hole {
                        result = images[disk].zero(
                            at: extent.start, bytes: extent.end - extent.start,
                            punch: extent.source == Extent.hole)
                    }
                    FaultPoint.reached("disklog.apply.zeroed")
                    return
                }
                if pieces.isEmpty { start = extent.start }
                pieces.append(
                    iovec(
                        iov_base: log.data + Int(extent.source),
                        iov_len: Int(extent.end - extent.start)))
                end = extent.end
            }
            if result == 0, !pieces.isEmpty { result = writePieces(disk, at: start) }
            if result != 0 { return Trouble(result: result, disk: disk) }
        }
        return nil
    }

    private func writePieces(_ disk: Int, at offset: UInt64) -> Int32 {
        let result = pieces.withUnsafeMutableBufferPointer { images[disk].write($0, at: offset) }
        pieces.removeAll(keepingCapacity: true)
        FaultPoint.reached("disklog.apply.written")
        return result
    }

    private func synchronize(_ maps: [ExtentMap], _ end: UInt64) -> Trouble? {
        if PlantedBug.active == .appliedBeforeSync { log.raise(.applied, to: end) }
        FaultPoint.reached("disklog.apply.all-written")
        for (disk, map) in maps.enumerated() where map.count > 0 {
            if PlantedBug.active == .syncsOneDisk, disk + 1 < maps.count,
                maps[(disk + 1)...].contains(where: { $0.count > 0 })
            {
                continue
            }
            let result = images[disk].synchronize()
            if result != 0 { return Trouble(result: result, disk: disk) }
            log.add(1, to: .syncs)
            FaultPoint.reached("disklog.apply.one-synced")
        }
        return nil
    }

    /// Takes the group out of the index; newer writes to the same bytes stay. In slices, so that
    /// nobody waits long.
    private func forget(_ group: Group, _ maps: [ExtentMap]) {
        let below = PlantedBug.active == .forgetsNewer ? UInt64.max : group.end
        for (disk, map) in maps.enumerated() where map.count > 0 {
            var position: UInt64 = 0
            var done = false
            while !done {
                indexLock.write {
                    var left = 256
                    done = true
                    map.forEachWhile(position, .max) { extent in
                        guard left > 0 else {
                            done = false
                            return false
                        }
                        left -= 1
                        indexes[disk].remove(extent.start, extent.end, below: below)
                        position = extent.end
                        return true
                    }
                }
            }
        }
    }
}

// MARK: - Batches

extension DiskServer {
    /// A plugin that was killed may have left a batch half in the images. Applying its groups once
    /// more, one after the other, would take the images back through states that no power cut could
    /// leave: the batch is brought in whole, and counts as applied.
    private func replayJournal() -> Trouble? {
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
            return Trouble(result: -EIO, disk: -1)
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
    private func settleJournal() -> Application {
        guard let journal, journal.isValid, PlantedBug.active != .staleJournal else { return .idle }
        let result = journal.clear()
        return result == 0 ? .idle : failed(result, -1)
    }

    /// Several groups, when so many wait that one batch through the journal is cheaper. nil: apply
    /// the next group by itself.
    private func applyBatch(from start: UInt64, to limit: UInt64) -> Application? {
        guard let journal else { return nil }
        for map in batchMaps { map.removeAll() }
        var batch = Group(end: start, dataEnd: 0)
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
    private func writeBatch(_ batch: Group, from start: UInt64, _ ends: [UInt64]) -> Application {
        var position = start
        for end in ends {
            switch collectGroup(from: position, to: end, into: groups) {
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
