import MemoryPool
import Model

/// A small generator (SplitMix64, Steele et al. 2014): the same numbers in the process that is
/// killed and in the test that knows what it must have done.
package struct SeededGenerator: RandomNumberGenerator, Sendable {
    private var state: UInt64
    package init(seed: UInt64) { state = seed }
    package mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }
}

/// The n-th frame of a writer of frames.
package func testFrame(_ number: Int) -> [UInt8] {
    var generator = SeededGenerator(seed: UInt64(number))
    let length = Int.random(in: 14...9_000, using: &generator)
    return (0..<length).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ number) }
}

/// Logs frames as a gate does, of which all but the last 20 have been sent.
package func writeFrames(_ segment: Segment, count: Int) throws {
    guard let log = segment.outputLog else { return }
    var ends: [UInt64] = []
    for number in 0..<count {
        let frame = testFrame(number)
        guard
            log.append(
                frame, count: frame.count, nic: 0, headerBytes: 0,
                keepingFrom: segment.releasedOutput)
        else { throw FtvmError(.internalError, "the frame log is full") }
        ends.append(log.head)
        if ends.count > 20 { segment.releasedOutput = ends[ends.count - 21] }
    }
}

/// One step of a workload.
package enum Operation: Sendable {
    /// Put neighbouring pages into the undo log.
    case log(firstPage: UInt64, count: Int, epoch: Epoch)
    /// Give a logged page the contents of a version.
    case write(page: UInt64, version: UInt64)
    /// All pages are protected again: what is logged from here on is of the next epoch.
    case protectAgain
    /// Commit, with the device state of this epoch.
    case publish(Epoch)
    /// Raise the generation and roll back.
    case promote(Generation)
    /// The manager is restarted: open the segment again and adopt it.
    case adopt(Generation)
}

/// A random history of a segment, complete and legal, which depends on nothing but its parameters.
package struct Workload: Sendable {
    package let seed: UInt64
    package let pages: UInt64
    package let capacity: UInt64
    package let operations: [Operation]
    /// RAM (a version per page) at each commit: `snapshots[epoch]`; [0] is RAM before the first.
    package let snapshots: [[UInt64]]

    package init(seed: UInt64, pages: UInt64, capacity: UInt64, epochs: UInt64) {
        var builder = Builder(seed: seed, pages: pages, capacity: capacity)
        for number in 1...epochs { builder.addEpoch(Epoch(number)) }
        self.seed = seed
        self.pages = pages
        self.capacity = capacity
        operations = builder.operations
        snapshots = builder.snapshots
    }

    /// The device state of an epoch: 0 to 999 bytes.
    package func deviceState(_ epoch: Epoch) -> [UInt8] {
        var generator = SeededGenerator(seed: seed &* 31 &+ epoch.number)
        let length = Int.random(in: 0..<1000, using: &generator)
        return (0..<length).map { _ in UInt8.random(in: .min ... .max, using: &generator) }
    }

    /// Fills a page with the contents of a version, or a part of it: `range` in 8-byte words.
    package func fill(
        _ target: UnsafeMutableRawPointer, words range: Range<Int>, page: UInt64, version: UInt64
    ) {
        let first = firstWord(page: page, version: version)
        for index in range {
            target.storeBytes(
                of: first &+ UInt64(index) &* 0x0101_0101_0101_0101, toByteOffset: 8 * index,
                as: UInt64.self)
        }
    }

    /// Whether a page has exactly the contents of a version.
    package func matches(
        _ source: UnsafeRawPointer, words count: Int, page: UInt64, version: UInt64
    ) -> Bool {
        let first = firstWord(page: page, version: version)
        for index in 0..<count {
            let word = source.load(fromByteOffset: 8 * index, as: UInt64.self)
            if word != first &+ UInt64(index) &* 0x0101_0101_0101_0101 { return false }
        }
        return true
    }

    private func firstWord(page: UInt64, version: UInt64) -> UInt64 {
        var generator = SeededGenerator(seed: seed ^ (page << 40) ^ version)
        return generator.next()
    }
}

/// Makes the operations and follows what they do to RAM and to the log.
private struct Builder {
    var generator: SeededGenerator
    let pages: UInt64
    let capacity: UInt64
    var operations: [Operation] = []
    var snapshots: [[UInt64]]
    private var ram: [UInt64]
    private var nextVersion: UInt64 = 1
    private var generation = Generation(1)
    /// Entries since the undo start, and pages that were logged since the last protection.
    private var used: UInt64 = 0
    private var logged: Set<UInt64> = []

    init(seed: UInt64, pages: UInt64, capacity: UInt64) {
        generator = SeededGenerator(seed: seed)
        self.pages = pages
        self.capacity = capacity
        ram = [UInt64](repeating: 0, count: Int(pages))
        snapshots = [ram]
    }

    private mutating func chance(_ percent: Int) -> Bool {
        Int.random(in: 0..<100, using: &generator) < percent
    }

    mutating func addEpoch(_ epoch: Epoch) {
        touchPages(epoch, atMost: Int(capacity))
        if epoch.number > 1 {
            if chance(25) {
                promote()
                touchPages(epoch, atMost: 6)
            }
            if chance(20) {
                operations.append(.adopt(generation))
                // A manager that does not know which pages are unprotected logs some of them again,
                // with what they hold by now: the older image must win.
                if chance(50) { logged = [] }
                touchPages(epoch, atMost: 4)
            }
            if chance(10) {
                promote()
                promote()
            }
        }
        operations.append(.protectAgain)
        let atCommit = ram
        let usedBefore = used
        logged = []
        // Touched after everything was protected again and before the commit: of the next epoch.
        if chance(40) { touchPages(epoch.next, atMost: 3) }
        operations.append(.publish(epoch))
        snapshots.append(atCommit)
        used -= usedBefore
    }

    private mutating func touchPages(_ epoch: Epoch, atMost limit: Int) {
        for _ in 0..<Int.random(in: 0...limit, using: &generator) {
            let page = UInt64.random(in: 0..<pages, using: &generator)
            if !logged.contains(page) {
                var count = 1
                while count < 4, page + UInt64(count) < pages, chance(30),
                    !logged.contains(page + UInt64(count))
                {
                    count += 1
                }
                guard used + UInt64(count) <= capacity else { continue }
                operations.append(.log(firstPage: page, count: count, epoch: epoch))
                used += UInt64(count)
                for index in 0..<UInt64(count) { logged.insert(page + index) }
            }
            operations.append(.write(page: page, version: nextVersion))
            ram[Int(page)] = nextVersion
            nextVersion += 1
        }
    }

    private mutating func promote() {
        generation = generation.next
        operations.append(.promote(generation))
        if let committed = snapshots.last { ram = committed }
        // The rollback wrote to these pages, the new primary starts with all of them protected.
        logged = []
    }
}
