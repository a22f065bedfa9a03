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
    func finish(_ group: RecordGroup, _ maps: [ExtentMap]) {
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
        if log.flushed > start || log.usedBytes >= settings.groupBytes || fullness >= 4 {
            return true
        }
        return ftvm_disk_now() - log[.waitingSince]
            >= UInt64(settings.lazyMilliseconds) * 1_000_000
    }

    func failed(_ result: Int32, _ disk: Int) -> Application {
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

struct ImageTrouble: Error {
    var result: Int32
    var disk: Int
}

/// Records that may reach the image in any order.
struct RecordGroup {
    var end: UInt64
    var dataEnd: UInt64
    var bytes: UInt64 = 0
    var hasWrites = false
}

extension DiskServer {
    /// Merges the records from `start` on, up to the first flush marker behind a write and with the
    /// markers that follow it.
    ///
    /// - Parameter isVerified: their data have been looked at just now.
    func collectGroup(
        from start: UInt64, to limit: UInt64, bytes: UInt64 = .max, into maps: [ExtentMap],
        isVerified: Bool = false
    ) -> Result<RecordGroup, ImageTrouble> {
        for map in maps { map.removeAll() }
        var group = RecordGroup(end: start, dataEnd: 0)
        var isComplete = false
        while group.end < limit, group.bytes < min(bytes, settings.groupBytes),
            group.end - start < settings.groupRecords
        {
            guard let record = log.record(group.end), record.generation <= generation else {
                return .failure(ImageTrouble(result: -EBADMSG, disk: -1))
            }
            if isComplete, record.kind != .flush { break }
            group.dataEnd = record.dataPosition + record.dataBytes
            group.end += 1
            if record.kind == .flush {
                isComplete = group.hasWrites && PlantedBug.active != .mergesAcrossFlush
                continue
            }
            if record.kind == .write {
                guard
                    isVerified || log.hasIntactData(record)
                        || PlantedBug.active == .ignoresDamage
                else {
                    return .failure(ImageTrouble(result: -EBADMSG, disk: record.disk))
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
    func writeGroup() -> ImageTrouble? {
        for (disk, map) in groups.enumerated() where map.count > 0 {
            var result: Int32 = 0
            var start: UInt64 = 0
            var end: UInt64 = 0
            var unbegun: UInt64 = 0
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
                unbegun += extent.end - extent.start
                guard unbegun >= settings.writebackBytes else { return }
                unbegun = 0
                result = writePieces(disk, at: start)
                if result == 0 { images[disk].beginWriteback() }
                hasBegunWriteback = true
                FaultPoint.reached("disklog.apply.writing-back")
            }
            if result == 0, !pieces.isEmpty { result = writePieces(disk, at: start) }
            if result != 0 { return ImageTrouble(result: result, disk: disk) }
        }
        return nil
    }

    private func writePieces(_ disk: Int, at offset: UInt64) -> Int32 {
        let result = pieces.withUnsafeMutableBufferPointer { images[disk].write($0, at: offset) }
        pieces.removeAll(keepingCapacity: true)
        FaultPoint.reached("disklog.apply.written")
        return result
    }

    func synchronize(_ maps: [ExtentMap], _ end: UInt64) -> ImageTrouble? {
        if PlantedBug.active == .appliedBeforeSync { log.raise(.applied, to: end) }
        FaultPoint.reached("disklog.apply.all-written")
        for (disk, map) in maps.enumerated() where map.count > 0 {
            if PlantedBug.active == .syncsOneDisk, disk + 1 < maps.count,
                maps[(disk + 1)...].contains(where: { $0.count > 0 })
            {
                continue
            }
            if PlantedBug.active == .trustsWriteback, hasBegunWriteback {
                hasBegunWriteback = false
                continue
            }
            let result = images[disk].synchronize()
            if result != 0 { return ImageTrouble(result: result, disk: disk) }
            log.add(1, to: .syncs)
            FaultPoint.reached("disklog.apply.one-synced")
        }
        return nil
    }

    /// Takes the group out of the index; newer writes to the same bytes stay. In slices, so that
    /// nobody waits long.
    private func forget(_ group: RecordGroup, _ maps: [ExtentMap]) {
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
