import CLinux
import Foundation
import Model

/// What was received and not yet looked at, in one buffer that grows only for lines that need it.
/// A line's bytes stay valid until the next call.
struct QMPInput {
    /// A line and what it is; ranges are relative to the line.
    struct Line {
        let range: Range<Int>
        let kind: QMPLine.Kind
        let value: Range<Int>
    }

    private static let initialBytes = 64 << 10

    private let descriptor: Int32
    private let label: String
    private let lineBytes: Int
    private var buffer: UnsafeMutableRawBufferPointer
    /// Received bytes are `start..<end`; no line feed is in `start..<scanned`.
    private var start = 0
    private var scanned = 0
    private var end = 0
    /// Polled together; the socket is the first.
    private let watched: UnsafeMutablePointer<pollfd>
    private var watchedCount = 1
    private var attendant: (any MonitorAttendant)?

    /// Whether to stay awake for a short answer. A guest stands still meanwhile, so nobody misses the CPU; a sleeping
    /// thread takes 40 us and more to wake, and wakes on the CPU of whoever wakes it, in the way of QEMU's next command.
    var staysAwake = false
    private static let awakeMicroseconds: Int64 = 3_000

    /// Whether whoever is to answer never will: asked when an answer is slow. A process that was killed keeps its sockets
    /// open until its memory has been taken apart.
    var isPeerEnding: (() -> Bool)?
    /// An answer is slow after this, and asked for that often then.
    private static let slowMicroseconds: Int64 = 2_000

    /// Attendants have at most so many descriptors.
    static let attendantLimit = 63

    init(descriptor: Int32, label: String, lineBytes: Int) {
        self.descriptor = descriptor
        self.label = label
        self.lineBytes = lineBytes
        self.buffer = .allocate(byteCount: Self.initialBytes, alignment: 64)
        watched = .allocate(capacity: 1 + Self.attendantLimit)
        watched.initialize(
            repeating: pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0),
            count: 1 + Self.attendantLimit)
    }

    func release() {
        buffer.deallocate()
        watched.deallocate()
    }

    /// Who has something to do while lines are waited for; nil: nobody.
    mutating func setAttendant(_ attendant: (any MonitorAttendant)?) {
        self.attendant = attendant
        watchedCount = 1
        for descriptor in attendant?.descriptors ?? [] {
            precondition(watchedCount <= Self.attendantLimit, "an attendant has few descriptors")
            watched[watchedCount].fd = descriptor
            watchedCount += 1
        }
    }

    /// Whether a line, or the end, can be read without waiting.
    func isReadable() -> Bool {
        scanned < end || ftvm_socket_wait(descriptor, false, 0) != 0
    }

    /// The next line that is not empty.
    /// - Throws: `.timedOut`; `.unavailable` at the end of the stream; `.resourceExhausted` for a
    ///   line over the limit.
    mutating func nextLine(_ deadline: MonotonicDeadline) throws -> Line {
        while true {
            if let range = takeLine() {
                let line = QMPLine(bytes(range))
                return Line(range: range, kind: line.kind, value: line.value)
            }
            try makeRoom()
            try receive(deadline)
        }
    }

    func bytes(_ range: Range<Int>) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(rebasing: buffer[range])
    }

    func bytes(_ line: Line) -> UnsafeRawBufferPointer { bytes(line.range) }

    func text(_ range: Range<Int>) -> String { String(decoding: bytes(range), as: UTF8.self) }

    func absolute(_ range: Range<Int>, of line: Line) -> Range<Int> {
        line.range.lowerBound + range.lowerBound..<line.range.lowerBound + range.upperBound
    }

    func garbage(_ line: Line) -> FtvmError {
        FtvmError(
            .unavailable, "monitor of \(label) does not speak QMP",
            cause: "it said \(text(line.range.prefix(120)))",
            advice: "see what listens on its socket")
    }

    func gone(cause: String) -> FtvmError {
        FtvmError(.unavailable, "QEMU of \(label) is gone", cause: cause)
    }

    private mutating func takeLine() -> Range<Int>? {
        while scanned < end, let base = buffer.baseAddress {
            guard let found = memchr(base + scanned, 0x0A, end - scanned) else {
                scanned = end
                return nil
            }
            let feed = UnsafeRawPointer(found) - UnsafeRawPointer(base)
            var range = start..<feed
            start = feed + 1
            scanned = start
            if let last = range.last, buffer[last] == 0x0D { range = range.dropLast() }
            if !range.isEmpty { return range }
        }
        return nil
    }

    private mutating func makeRoom() throws {
        if start == end {
            start = 0
            scanned = 0
            end = 0
        }
        guard end == buffer.count, let base = buffer.baseAddress else { return }
        let kept = end - start
        guard kept < lineBytes else {
            throw FtvmError(
                .resourceExhausted, "monitor of \(label) sends a line that is too long",
                cause: "more than \(lineBytes) bytes")
        }
        if start > 0 {
            memmove(base, base + start, kept)
        } else {
            let size = min(buffer.count * 2, max(lineBytes, buffer.count + 1))
            let larger = UnsafeMutableRawBufferPointer.allocate(byteCount: size, alignment: 64)
            larger.copyMemory(from: UnsafeRawBufferPointer(rebasing: buffer[..<end]))
            buffer.deallocate()
            buffer = larger
        }
        scanned -= start
        start = 0
        end = kept
    }

    private mutating func receive(_ deadline: MonotonicDeadline) throws {
        let sleepsFrom = staysAwake ? MonotonicDeadline.nowMicroseconds + Self.awakeMicroseconds : 0
        var looksAt = MonotonicDeadline.nowMicroseconds + Self.slowMicroseconds
        var isPeerGone = false
        /// When the next round of this loop is due at the latest.
        var dueAt = MonotonicDeadline.nowMicroseconds
        while true {
            let count = ftvm_socket_receive(
                descriptor, buffer.baseAddress?.advanced(by: end), buffer.count - end)
            if count > 0 {
                end += count
                return
            }
            if count == 0 { throw gone(cause: "its monitor connection ended") }
            if count == -Int(EINTR) { continue }
            guard count == -Int(EAGAIN) else {
                throw gone(cause: String(cString: strerror(Int32(-count))))
            }
            if isPeerGone { throw gone(cause: "its process is ending") }
            let now = MonotonicDeadline.nowMicroseconds
            MonotonicDeadline.noteDelay(from: dueAt, to: now)
            dueAt = now
            let left = deadline.remainingMicroseconds
            guard left > 0 else { throw FtvmError(.timedOut, "no answer in time") }
            if let isPeerEnding, now >= looksAt {
                if isPeerEnding() {
                    // What it said last, why it ends among it, is in the socket by now.
                    isPeerGone = true
                    continue
                }
                looksAt = now + Self.slowMicroseconds
            }
            let isAwake = now < sleepsFrom
            if isAwake {
                sched_yield()
                if watchedCount == 1 { continue }
            }
            let patience = isPeerEnding == nil ? left : min(left, max(0, looksAt - now))
            if !isAwake { dueAt += patience }
            let ready = ftvm_poll_set(
                watched, Int32(watchedCount), isAwake ? 0 : UInt64(patience) * 1_000)
            guard ready >= 0 else { throw gone(cause: String(cString: strerror(-ready))) }
            if let attendant, (1..<watchedCount).contains(where: { watched[$0].revents != 0 }) {
                attendant.attend()
                // It may have given up one that has nothing more to say.
                setAttendant(attendant)
            }
        }
    }
}

/// Events that wait to be taken, in slots that are allocated once and used again.
struct EventRing {
    private static let slotBytes = 512

    private var slots: [[UInt8]]
    private var first = 0
    private var count = 0
    /// How many were dropped for newer ones.
    private(set) var dropped = 0

    init(limit: Int) {
        precondition(limit > 0, "there must be room for one event")
        slots = (0..<limit).map { _ in
            var slot: [UInt8] = []
            slot.reserveCapacity(Self.slotBytes)
            return slot
        }
    }

    var isEmpty: Bool { count == 0 }

    mutating func append(_ bytes: UnsafeRawBufferPointer) {
        if count == slots.count {
            first = (first + 1) % slots.count
            count -= 1
            dropped += 1
        }
        let index = (first + count) % slots.count
        slots[index].removeAll(keepingCapacity: true)
        slots[index].append(contentsOf: bytes)
        count += 1
    }

    mutating func takeAll() -> [MonitorEvent] {
        let result = (0..<count).map { position in
            Self.event(slots[(first + position) % slots.count])
        }
        first = 0
        count = 0
        return result
    }

    private static func event(_ bytes: [UInt8]) -> MonitorEvent {
        // The value is the event's name in quotes; names need no escapes.
        let name = bytes.withUnsafeBytes { raw in
            String(decoding: raw[QMPLine(raw).value].dropFirst().dropLast(), as: UTF8.self)
        }
        return MonitorEvent(name: name, json: String(decoding: bytes, as: UTF8.self))
    }
}
