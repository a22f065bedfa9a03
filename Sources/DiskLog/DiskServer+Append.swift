import CLinux
import Glibc
import Model

// The end of the log: room, order, back-pressure.
extension DiskServer {
    func append(
        _ kind: LogRecord.Kind, disk: Int, at offset: UInt64, length: UInt64,
        source: UnsafeRawPointer?
    ) -> Int32 {
        let room = kind == .write ? LogRecord.room(for: length) : 0
        appending.lock()
        defer { appending.unlock() }
        if kind == .flush {
            // Nothing was ever written here.
            if state == .waiting { return 0 }
            if state == .active, lastKind == .flush, canJoinMarker(disk) { return 0 }
        }
        let admitted = admit(room, disk)
        if admitted != 0 { return admitted }
        var record = LogRecord(
            sequence: head, generation: generation, offset: offset, length: length,
            dataPosition: place(room), dataCRC: 0, kind: kind, disk: disk)
        if PlantedBug.active == .headTooEarly {
            record.write(to: log.slot(head))
            log[.head] = head + 1
        }
        if let source {
            let target = log.data + Int(record.dataPosition % log.header.dataBytes)
            record.dataCRC = ftvm_crc32c_copy(target, source, Int(length))
            FaultPoint.reached("disklog.append.data-copied")
        }
        record.write(to: log.slot(head))
        FaultPoint.reached("disklog.append.record-written")
        if PlantedBug.active == .headTooLate {
            publishHeadLate(record)
            return 0
        }
        indexLock.write {
            if kind != .flush { note(record) }
            log[.head] = head + 1
        }
        FaultPoint.reached("disklog.append.head-published")
        head += 1
        lastKind = kind
        dataHead = record.dataPosition + room
        if kind == .flush {
            if log.disks[disk].durability == .commit, PlantedBug.active != .forgetsFlush {
                log.raise(.flushed, to: head)
            }
            FaultPoint.reached("disklog.flush.published")
        }
        log[.usedBytes] = dataHead - dataTail
        if isFullerThan(half: true, dataHead, head), isMostlyUnsealed { wantCommit() }
        return 0
    }

    /// The planted bug: answered, and published only with the next record.
    private func publishHeadLate(_ record: LogRecord) {
        log[.head] = head
        indexLock.write { if record.kind != .flush { note(record) } }
        head += 1
        lastKind = record.kind
        dataHead = record.dataPosition + record.dataBytes
        if record.kind == .flush { log.raise(.flushed, to: head) }
    }

    /// Whether the marker at the end of the log is as good as a new one: it is not when it is one
    /// that no packets wait for, and this flush wants them to wait.
    private func canJoinMarker(_ disk: Int) -> Bool {
        guard log.generation == generation else { return false }
        // Of what is applied nothing has to be waited for any more.
        if head == log.applied { return true }
        return log.disks[disk].durability == .pool || log.flushed >= head
    }

    /// Where data of this size go: never around the end of the ring.
    private func place(_ room: UInt64) -> UInt64 {
        let left = log.header.dataBytes - dataHead % log.header.dataBytes
        return room > left ? dataHead + left : dataHead
    }

    /// Whether more than half (or three quarters) of the log were in use with this end.
    private func isFullerThan(half: Bool, _ dataEnd: UInt64, _ recordEnd: UInt64) -> Bool {
        let (data, records) = (log.header.dataBytes, log.header.recordCapacity)
        let (dataMark, recordMark) =
            half ? (data / 2, records / 2) : (data / 4 * 3, records / 4 * 3)
        return dataEnd - dataTail > dataMark || recordEnd - recordTail > recordMark
    }

    /// Waits until there is room, with `appending` held. 0, or why there will be none.
    private func admit(_ room: UInt64, _ disk: Int) -> Int32 {
        var heldSince: UInt64 = 0
        defer {
            if heldSince != 0 {
                log.add(ftvm_disk_now() - heldSince, to: .heldNanoseconds)
                log.add(.max, to: .heldNow)
            }
        }
        while true {
            switch state {
            case .waiting: return -EROFS
            case .ended: return -ESHUTDOWN
            case .active: break
            }
            guard log.generation == generation || PlantedBug.active == .ignoresGeneration else {
                return -ESHUTDOWN
            }
            let end = place(room) + room
            if !isFullerThan(half: false, end, head + 1) { return 0 }
            if log.isStopping {
                // The last quarter; beyond it QEMU keeps the request and repeats it (werror).
                let fits =
                    end - dataTail <= log.header.dataBytes
                    && head + 1 - recordTail <= log.header.recordCapacity
                return fits ? 0 : -ENOSPC
            }
            let failure = log[.failure]
            if failure != 0 {
                // Its own error for the disk whose image it is. The guest must not hear of it from a sound disk, whose
                // requests QEMU keeps while the guest stands still (werror).
                return Int(failure >> 32) == disk + 1
                    ? -Int32(truncatingIfNeeded: failure & 0xffff_ffff) : -ENOSPC
            }
            if heldSince == 0 {
                heldSince = max(ftvm_disk_now(), 1)
                log.add(1, to: .heldNow)
                FaultPoint.reached("disklog.append.held")
            }
            // While sealed records wait, the storage is what is slow: a commit makes no room.
            if log.applied >= log.sealed || isMostlyUnsealed { wantCommit() }
            appending.wait(milliseconds: 50)
        }
    }

    /// Whether a quarter of the log waits for a commit: only that is a reason to want one early.
    private var isMostlyUnsealed: Bool {
        let sealed = log.sealed
        guard sealed < head else { return false }
        if head - sealed > log.header.recordCapacity / 4 { return true }
        guard let first = log.record(sealed) else { return false }
        return dataHead - first.dataPosition > log.header.dataBytes / 4
    }

    /// Asks ftvmd for a commit, once until it has made one.
    private func wantCommit() {
        guard log.head > log.sealed, log.exchange(.demand, 0, 1) else { return }
        notify?(.commitWanted)
    }

    /// Gives back the room of everything below `sequence`, whose data end at `dataEnd`.
    func free(below sequence: UInt64, dataEnd: UInt64) {
        appending.lock()
        recordTail = sequence
        dataTail = sequence == head ? dataHead : max(dataTail, dataEnd)
        log[.usedBytes] = dataHead - dataTail
        appending.broadcast()
        appending.unlock()
    }

    /// What is used of the log, in sixteenths of its data or of its records.
    var fullness: UInt64 {
        appending.lock()
        defer { appending.unlock() }
        return max(
            (dataHead - dataTail) * 16 / log.header.dataBytes,
            (head - recordTail) * 16 / log.header.recordCapacity)
    }
}
