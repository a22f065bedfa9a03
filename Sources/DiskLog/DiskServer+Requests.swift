import CLinux
import Glibc
import Model

// What the guest asks for.
extension DiskServer {
    /// Reads what was written last.
    package func read(
        disk: Int, into target: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) -> Int32 {
        guard let start = target.baseAddress, target.count > 0 else { return 0 }
        let end = offset + UInt64(target.count)
        // Usually everything is in the log or nothing is: one gap is kept without allocating.
        var gap: Range<UInt64>?
        var moreGaps: [Range<UInt64>] = []
        func missing(_ from: UInt64, _ to: UInt64) {
            if gap == nil { gap = from..<to } else { moreGaps.append(from..<to) }
        }
        indexLock.read {
            var position = offset
            if PlantedBug.active != .readsImageOnly {
                indexes[disk].forEach(offset, end) { extent in
                    if extent.start > position { missing(position, extent.start) }
                    let place = start + Int(extent.start - offset)
                    let count = Int(extent.end - extent.start)
                    if extent.isZero {
                        memset(place, 0, count)
                    } else {
                        memcpy(place, log.data + Int(extent.source), count)
                    }
                    position = extent.end
                }
            }
            if position < end { missing(position, end) }
        }
        // Without the lock: what is written into the gaps from here on, is written at the same
        // time as this read.
        func fill(_ range: Range<UInt64>) -> Int32 {
            images[disk].read(
                into: UnsafeMutableRawBufferPointer(
                    start: start + Int(range.lowerBound - offset),
                    count: Int(range.upperBound - range.lowerBound)),
                at: range.lowerBound)
        }
        if let gap {
            let result = fill(gap)
            if result != 0 { return result }
        }
        for range in moreGaps {
            let result = fill(range)
            if result != 0 { return result }
        }
        return 0
    }

    /// Writes; with `flush` (FUA) a flush marker follows. A request beyond 1 MiB may be torn by a
    /// failure of everything, like one of a real disk.
    package func write(
        disk: Int, _ bytes: UnsafeRawBufferPointer, at offset: UInt64, flush: Bool = false
    ) -> Int32 {
        guard let start = bytes.baseAddress else { return 0 }
        var done: UInt64 = 0
        while done < UInt64(bytes.count) {
            let length = min(UInt64(bytes.count) - done, chunkBytes)
            let result = append(
                .write, disk: disk, at: offset + done, length: length, source: start + Int(done))
            if result != 0 { return result }
            done += length
        }
        return flush ? self.flush(disk: disk) : 0
    }

    /// Makes a range read as zeroes; `mayTrim`: its storage may be given back.
    package func zero(
        disk: Int, at offset: UInt64, bytes: UInt64, mayTrim: Bool, flush: Bool = false
    ) -> Int32 {
        guard bytes > 0 else { return 0 }
        let result = append(
            mayTrim ? .trim : .zero, disk: disk, at: offset, length: bytes, source: nil)
        return result == 0 && flush ? self.flush(disk: disk) : result
    }

    /// Everything that was answered before comes before everything that is asked for after it; and
    /// packets of this epoch wait for stable storage.
    package func flush(disk: Int) -> Int32 {
        append(.flush, disk: disk, at: 0, length: 0, source: nil)
    }
}

// MARK: - Extents

extension DiskServer {
    /// What a range consists of, in order: `body(offset, bytes, readsAsZeroes)` until it says false.
    /// At most 1,024 extents of the log are told in one call; the rest of the range is left out.
    package func extents(
        disk: Int, from offset: UInt64, to end: UInt64,
        _ body: (UInt64, UInt64, Bool) -> Bool
    ) {
        var logged: [Extent] = []
        var limit = end
        indexLock.read {
            indexes[disk].forEachWhile(offset, end) { extent in
                if logged.count == 1024 {
                    limit = extent.start
                    return false
                }
                logged.append(extent)
                return true
            }
        }
        func image(_ start: UInt64, _ end: UInt64) -> Bool {
            var position = start
            while position < end {
                let (isHole, stretch) = images[disk].extent(at: position)
                let stop = min(end, stretch)
                guard body(position, stop - position, isHole) else { return false }
                position = stop
            }
            return true
        }
        var position = offset
        for extent in logged {
            guard image(position, extent.start),
                body(extent.start, extent.end - extent.start, extent.isZero)
            else { return }
            position = extent.end
        }
        _ = image(position, limit)
    }
}
