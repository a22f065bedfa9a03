import Glibc

/// Bytes `start ..< end` of a disk, and where their newest contents are.
package struct Extent: Hashable, Sendable {
    package var start: UInt64
    package var end: UInt64
    /// Place of the first byte in the log's data, or `Extent.zeros`.
    package var source: UInt64
    /// The record that wrote it.
    package var sequence: UInt64

    /// Reads as zeroes, storage may be given back (a trim, or a zero that allows it).
    package static let hole = UInt64.max
    /// Reads as zeroes, storage is to be kept.
    package static let zeros = UInt64.max - 1
    package var isZero: Bool { source >= Extent.zeros }

    package init(start: UInt64, end: UInt64, source: UInt64, sequence: UInt64) {
        (self.start, self.end, self.source, self.sequence) = (start, end, source, sequence)
    }

    /// The part of this extent from `offset` on.
    @inline(__always)
    func from(_ offset: UInt64) -> Extent {
        var part = self
        part.start = offset
        if !isZero { part.source += offset - start }
        return part
    }
}

/// Disjoint extents of one disk, sorted: which bytes are in the log, and where. Chunks of up to 128
/// extents, so that a change moves 4 KiB at most and a look-up is two binary searches.
///
/// Not safe for several threads: its owner has a lock.
package final class ExtentMap {
    private static let chunkCapacity = 128

    private struct Chunk {
        var firstStart: UInt64
        var count: Int
        let extents: UnsafeMutablePointer<Extent>

        init() {
            (firstStart, count) = (0, 0)
            extents = .allocate(capacity: ExtentMap.chunkCapacity)
        }
    }

    private struct Place {
        var chunk: Int
        var index: Int
    }

    private var chunks: [Chunk] = []
    package private(set) var count = 0

    package init() {}

    deinit { removeAll() }

    package func removeAll() {
        for chunk in chunks { chunk.extents.deallocate() }
        chunks.removeAll(keepingCapacity: true)
        count = 0
    }

    /// Notes the newest contents of a range: whatever was there is forgotten.
    package func insert(_ extent: Extent) {
        precondition(extent.start < extent.end, "an extent has at least one byte")
        remove(extent.start, extent.end, below: .max)
        insert(extent, at: locate(extent.start))
    }

    /// Forgets what is known about `start ..< end`, but for what a record of number `sequence` or
    /// later has written.
    package func remove(_ start: UInt64, _ end: UInt64, below sequence: UInt64) {
        var place = locate(start)
        while place.chunk < chunks.count {
            let extent = chunks[place.chunk].extents[place.index]
            if extent.start >= end { return }
            if extent.sequence >= sequence {
                place = next(place)
            } else if extent.start < start {
                chunks[place.chunk].extents[place.index].end = start
                place = next(place)
                if extent.end > end {
                    insert(extent.from(end), at: place)
                    return
                }
            } else if extent.end > end {
                chunks[place.chunk].extents[place.index] = extent.from(end)
                if place.index == 0 { chunks[place.chunk].firstStart = end }
                return
            } else {
                place = remove(at: place)
            }
        }
    }

    /// The extents that overlap `start ..< end`, cut to it, in order.
    @inline(__always)
    package func forEach(_ start: UInt64, _ end: UInt64, _ body: (Extent) -> Void) {
        forEachWhile(start, end) { extent in
            body(extent)
            return true
        }
    }

    /// The same, until `body` says false.
    @inline(__always)
    package func forEachWhile(_ start: UInt64, _ end: UInt64, _ body: (Extent) -> Bool) {
        var place = locate(start)
        while place.chunk < chunks.count {
            var extent = chunks[place.chunk].extents[place.index]
            if extent.start >= end { return }
            if extent.start < start { extent = extent.from(start) }
            if extent.end > end { extent.end = end }
            guard body(extent) else { return }
            place = next(place)
        }
    }

    /// The first extent that ends behind `offset`.
    private func locate(_ offset: UInt64) -> Place {
        var (low, high) = (0, chunks.count)
        while low < high {
            let middle = (low + high) / 2
            if chunks[middle].firstStart <= offset { low = middle + 1 } else { high = middle }
        }
        guard low > 0 else { return Place(chunk: 0, index: 0) }
        let chunk = chunks[low - 1]
        var (first, last) = (0, chunk.count)
        while first < last {
            let middle = (first + last) / 2
            if chunk.extents[middle].end > offset { last = middle } else { first = middle + 1 }
        }
        return first < chunk.count
            ? Place(chunk: low - 1, index: first) : Place(chunk: low, index: 0)
    }

    private func next(_ place: Place) -> Place {
        place.index + 1 < chunks[place.chunk].count
            ? Place(chunk: place.chunk, index: place.index + 1)
            : Place(chunk: place.chunk + 1, index: 0)
    }

    /// Inserts before `place`, which may be the end.
    private func insert(_ extent: Extent, at wanted: Place) {
        var place = wanted
        if place.index == 0, place.chunk > 0 {
            // Rather at the end of the chunk before: neighbours grow in order.
            let before = place.chunk - 1
            if chunks[before].count < ExtentMap.chunkCapacity || place.chunk == chunks.count {
                place = Place(chunk: before, index: chunks[before].count)
            }
        }
        if chunks.isEmpty { chunks.append(Chunk()) }
        if chunks[place.chunk].count == ExtentMap.chunkCapacity { place = split(place) }
        let extents = chunks[place.chunk].extents
        let moved = chunks[place.chunk].count - place.index
        if moved > 0 {
            memmove(
                extents + place.index + 1, extents + place.index,
                moved * MemoryLayout<Extent>.stride)
        }
        extents[place.index] = extent
        chunks[place.chunk].count += 1
        if place.index == 0 { chunks[place.chunk].firstStart = extent.start }
        count += 1
    }

    /// Makes room in a full chunk; gives the place that `place` has become.
    private func split(_ place: Place) -> Place {
        var added = Chunk()
        let capacity = ExtentMap.chunkCapacity
        // At the very end: a writer that goes on in order leaves full chunks behind.
        let kept = place.index == capacity ? capacity : capacity / 2
        added.count = capacity - kept
        let extents = chunks[place.chunk].extents
        if added.count > 0 {
            memcpy(added.extents, extents + kept, added.count * MemoryLayout<Extent>.stride)
            added.firstStart = added.extents[0].start
        }
        chunks[place.chunk].count = kept
        chunks.insert(added, at: place.chunk + 1)
        return place.index < kept || (place.index == kept && kept < capacity)
            ? place : Place(chunk: place.chunk + 1, index: place.index - kept)
    }

    /// Removes an extent; gives the place of the one behind it.
    private func remove(at place: Place) -> Place {
        count -= 1
        let extents = chunks[place.chunk].extents
        let moved = chunks[place.chunk].count - place.index - 1
        if moved > 0 {
            memmove(
                extents + place.index, extents + place.index + 1,
                moved * MemoryLayout<Extent>.stride)
        }
        chunks[place.chunk].count -= 1
        if chunks[place.chunk].count == 0 {
            extents.deallocate()
            chunks.remove(at: place.chunk)
            return Place(chunk: place.chunk, index: 0)
        }
        if place.index == 0 { chunks[place.chunk].firstStart = extents[0].start }
        return place.index < chunks[place.chunk].count
            ? place : Place(chunk: place.chunk + 1, index: 0)
    }
}
