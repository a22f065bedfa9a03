import Foundation
import MemoryPool
import Model
import Testing
import segment_crasher

/// The rings of frames in a segment.
@Suite struct FrameLogTests {
    let home: TestPool
    let segment: Segment
    let log: FrameLog

    init() throws {
        home = try TestPool()
        segment = try home.pool.createSegment(smallSegment())
        log = try #require(segment.outputLog)
    }

    /// What is in the log between two positions.
    static func frames(_ log: FrameLog, from start: UInt64, to limit: UInt64) -> [[UInt8]]? {
        var found: [[UInt8]] = []
        var position = start
        while true {
            switch log.frame(at: position, before: limit) {
            case .frame(let frame):
                found.append([UInt8](frame.bytes))
                position = frame.end
            case .end: return found
            case .damaged: return nil
            }
        }
    }

    @discardableResult
    private func append(_ frame: [UInt8], tail: UInt64) -> Bool {
        log.append(frame, count: frame.count, nic: 1, headerBytes: 10, keepingFrom: tail)
    }

    @Test func framesComeBackAsTheyWere() throws {
        let frames = (1...40).map { [UInt8](repeating: UInt8($0), count: 10 + $0) }
        for frame in frames { #expect(append(frame, tail: 0)) }
        #expect(Self.frames(log, from: 0, to: log.head) == frames)
        guard case .frame(let first) = log.frame(at: 0, before: log.head) else {
            throw TestTrouble("no frame")
        }
        #expect((first.nic, first.headerBytes, first.start, first.end) == (1, 10, 0, 40))
        #expect(Self.frames(log, from: first.end, to: log.head) == Array(frames.dropFirst()))
        // Another opener sees the same.
        let other = try home.pool.openSegment(name: "vm", access: .read)
        #expect(Self.frames(try #require(other.outputLog), from: 0, to: log.head) == frames)
        #expect(segment.inputLog?.head == 0)
    }

    /// A queue beside it says what must be in the ring, through thousands of turns of it.
    @Test(arguments: [1, 2, 3, 4, 5, 6] as [UInt64])
    func aRandomHistoryIsExact(seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        var expected: [(end: UInt64, bytes: [UInt8])] = []
        var tail: UInt64 = 0
        var full = 0
        var appended = 0
        for step in 0..<30_000 {
            if Int.random(in: 0..<100, using: &generator) < 45, let first = expected.first {
                guard case .frame(let frame) = log.frame(at: tail, before: log.head) else {
                    throw TestTrouble("step \(step): no frame at \(tail)")
                }
                try #require([UInt8](frame.bytes) == first.bytes, "step \(step)")
                try #require(frame.end == first.end, "step \(step)")
                expected.removeFirst()
                tail = frame.end
                continue
            }
            let largest = Int.random(in: 0..<20, using: &generator) == 0 ? 69_632 : 1_600
            let length = Int.random(in: 10...largest, using: &generator)
            let byte = UInt8.random(in: .min ... .max, using: &generator)
            let before = log.head
            if append([UInt8](repeating: byte, count: length), tail: tail) {
                appended += 1
                expected.append((log.head, [UInt8](repeating: byte, count: length)))
                #expect(log.head - tail <= log.capacityBytes)
            } else {
                full += 1
                #expect(log.head == before)
                // It was full indeed: less than two of the largest were free.
                #expect(log.head - tail + 2 * 69_664 > log.capacityBytes)
            }
        }
        #expect(Self.frames(log, from: tail, to: log.head)?.count == expected.count)
        #expect(log.head > 20 * log.capacityBytes && full > 0 && appended > 5_000)
    }

    @Test func aRecordEndsAtTheEndOfTheRing() throws {
        // The rest of the ring is exactly one record, then nothing, then 8, 16 and 24 bytes.
        for rest in [0, 8, 16, 24, 32] as [UInt64] {
            _ = try home.pool.createSegment(smallSegment("r\(rest)"))
            let segment = try home.pool.openSegment(name: "r\(rest)", access: .write)
            let log = try #require(segment.outputLog)
            let last = log.capacityBytes - rest
            var tail: UInt64 = 0
            while log.head < last {
                tail = log.head
                let count = min(60_000, Int(last - log.head) - 24)
                #expect(
                    log.append(
                        [UInt8](repeating: 1, count: count), count: count, nic: 0, headerBytes: 0,
                        keepingFrom: tail))
            }
            #expect(log.head == last)
            let frame = [UInt8](repeating: 7, count: 100)
            #expect(
                log.append(frame, count: 100, nic: 0, headerBytes: 0, keepingFrom: log.head))
            #expect(log.head == log.capacityBytes + 128)
            #expect(Self.frames(log, from: last, to: log.head) == [frame], "rest \(rest)")
        }
    }

    @Test func damageIsNoticed() throws {
        for frame in [[UInt8](repeating: 1, count: 100), [UInt8](repeating: 2, count: 50)] {
            append(frame, tail: 0)
        }
        let start = segment.header.outputLog.offset
        let path = home.path("vm", "control")
        for offset in [0, 3, 5, 6, 7, 8, 12, 16, 20, 24, 123] as [UInt64] {
            for flip in [true, false] {
                let file = try #require(FileHandle(forUpdatingAtPath: path))
                try file.seek(toOffset: start + offset)
                let byte = try #require(try file.read(upToCount: 1)?.first)
                try file.seek(toOffset: start + offset)
                try file.write(contentsOf: Data([byte ^ 0x40]))
                try file.close()
                #expect((Self.frames(log, from: 0, to: log.head) == nil) == flip, "\(offset)")
                #expect(segment.dump().problems.isEmpty == !flip)
            }
        }
        // A position that is none of a record, and limits that make no sense.
        for (position, limit) in [(8, log.head), (log.head, 0), (0, log.capacityBytes + 8)]
            as [(UInt64, UInt64)]
        {
            if case .damaged = log.frame(at: position, before: limit) { continue }
            Issue.record("frame at \(position) before \(limit)")
        }
    }

    @Test func aRollbackForgetsOutputAndKeepsInput() throws {
        let input = try #require(segment.inputLog)
        let committed = [UInt8](repeating: 1, count: 60)
        let lost = [UInt8](repeating: 2, count: 61)
        for log in [log, input] {
            #expect(
                log.append(committed, count: 60, nic: 0, headerBytes: 0, keepingFrom: 0))
        }
        let logs = LogPositions(output: log.head, input: input.head)
        #expect(segment.committedLogs == nil)
        try segment.publish(
            epoch: Epoch(1), generation: Generation(1), stateLength: 0, logs: logs)
        #expect(segment.committedLogs == logs)
        for log in [log, input] {
            #expect(log.append(lost, count: 61, nic: 0, headerBytes: 0, keepingFrom: 0))
        }
        for generation in [2, 3] as [UInt64] {
            try segment.raiseGeneration(to: Generation(generation))
            let commit = try segment.rollBack().commit
            #expect(commit.logs == logs)
            #expect(segment.cutOutput(to: commit.logs))
            #expect(Self.frames(log, from: 0, to: log.head) == [committed])
            #expect(Self.frames(input, from: logs.input, to: input.head) == [lost])
        }
        // Logs that do not fit the commit are emptied, and usable.
        segment.releasedOutput = logs.output + 8
        #expect(!segment.cutOutput(to: logs))
        #expect(segment.releasedOutput == logs.output && log.head == logs.output)
        #expect(
            log.append(lost, count: 61, nic: 0, headerBytes: 0, keepingFrom: logs.output))
        #expect(Self.frames(log, from: logs.output, to: log.head) == [lost])
    }

    @Test func theDumpShowsTheLogs() throws {
        append([UInt8](repeating: 1, count: 60), tail: 0)
        segment.releasedOutput = log.head
        append([UInt8](repeating: 1, count: 70), tail: 0)
        let description = segment.dump()
        #expect(description.problems == [])
        #expect(description.header?.formatVersion == "1.2")
        #expect(description.header?.areas["output-log"]?.bytes == smallLogBytes)
        let output = try #require(description.outputLog)
        #expect((output.frames, output.frameBytes, output.released) == (1, 70, 88))
        #expect(description.inputLog?.frames == 0)
        #expect(description.description.contains("1 frames, 70 bytes not sent yet; head 184"))
    }

    /// A segment that an older ftvm made: the areas' words are 0.
    @Test func aSegmentOfVersion1Dot0HasNoLogs() throws {
        let path = home.path("vm", "control")
        let file = try #require(FileHandle(forUpdatingAtPath: path))
        var header = [UInt8](try #require(try file.read(upToCount: 508)))
        header[12] = 0
        for offset in Array(192..<208) + Array(336..<352) { header[offset] = 0 }
        try file.seek(toOffset: 0)
        let crc = Self.crc32c(header)
        try file.write(
            contentsOf: Data(header + (0..<4).map { UInt8(truncatingIfNeeded: crc >> (8 * $0)) }))
        try file.close()
        let old = try home.pool.openSegment(name: "vm", access: .write)
        #expect(old.outputLog == nil && old.inputLog == nil)
        #expect(old.cutOutput(to: LogPositions(output: 5, input: 5)))
        #expect(old.dump().problems == [])
        #expect(old.dump().outputLog == nil)
    }

    private static func crc32c(_ bytes: [UInt8]) -> UInt32 {
        var crc: UInt32 = 0xffff_ffff
        for byte in bytes {
            crc ^= UInt32(byte)
            for _ in 0..<8 { crc = crc & 1 == 1 ? crc >> 1 ^ 0x82f6_3b78 : crc >> 1 }
        }
        return ~crc
    }

    @Test func sizesThatMakeNoSenseAreRefused() throws {
        for bytes in [0, 4096, 1 << 33] as [UInt64] {
            var specification = smallSegment("bad")
            specification.outputLogBytes = bytes
            _ = try ftvmError(.invalidArgument) { _ = try home.pool.createSegment(specification) }
        }
    }
}

/// A process that writes frames is killed at every step; what is in the log afterwards is a beginning of what it wrote,
/// whole, and at most one frame is missing.
@Suite struct FrameLogCrashTests {
    @Test(arguments: [
        "segment.frame.copied", "segment.frame.written", "segment.frame.published",
    ])
    func aKilledWriterLeavesWholeFrames(point: String) throws {
        let home = try TestPool()
        for count in [1, 2, 7, 150, 400] {
            _ = try home.pool.createSegment(smallSegment())
            let ending = try CrasherProcess.run(
                ["frames", home.directory, "tmpfs", "vm", "500", point, "\(count)"])
            #expect(ending == .killed, "\(point), \(count)")
            let segment = try home.pool.openSegment(name: "vm", access: .write)
            let log = try #require(segment.outputLog)
            let whole = point == "segment.frame.published" ? count : count - 1
            let found = try #require(
                FrameLogTests.frames(log, from: segment.releasedOutput, to: log.head))
            // The writer released all but the last 20.
            let expected = (max(0, whole - 20)..<whole).map { testFrame($0) }
            #expect(found.suffix(expected.count) == expected[...], "\(point), \(count)")
            #expect(found.count - expected.count <= 1)
            #expect(segment.dump().problems == [])
            // The next one goes on where it stopped.
            let next = testFrame(whole)
            #expect(
                log.append(
                    next, count: next.count, nic: 0, headerBytes: 0,
                    keepingFrom: segment.releasedOutput))
            #expect(
                FrameLogTests.frames(log, from: segment.releasedOutput, to: log.head)?.last == next)
            try home.pool.removeSegment(name: "vm")
        }
    }
}
