import CLinux
import DiskLog
import MemoryPool
import Model

/// Which frames may leave as far as the disks are concerned: commits whose durability is waited for, oldest first. Fixed memory.
struct DiskHold {
    private struct Entry {
        var output: UInt64 = 0
        var durableAt: UInt64 = 0
    }
    private static let capacity = 256
    private var entries = [Entry](repeating: Entry(), count: DiskHold.capacity)
    private var first = 0
    private var count = 0
    /// Frames below this position of the output log may leave.
    private(set) var output: UInt64 = 0

    var isHolding: Bool { count > 0 }

    /// A commit has been published, with its end of the output log.
    mutating func add(output: UInt64, durableAt: UInt64) {
        if count == Self.capacity {
            // The youngest two leave together, when the later one may.
            entries[(first + count - 1) % Self.capacity] = Entry(
                output: output, durableAt: durableAt)
            return
        }
        entries[(first + count) % Self.capacity] = Entry(output: output, durableAt: durableAt)
        count += 1
    }

    mutating func advance(durable: UInt64) {
        while count > 0, entries[first].durableAt <= durable {
            output = entries[first].output
            first = (first + 1) % Self.capacity
            count -= 1
        }
    }
}

/// The epoch thread's side: no allocation, no waiting.
extension PairDisks {
    /// Before `stop`, which waits for every request: none may be held for room now.
    func willStop() {
        log.isStopping = true
        if log.isCrowded { connection?.ring() }
    }

    /// The guest was not stopped, or its commit has come to nothing.
    func didNotCommit() { log.isStopping = false }

    /// What the commit covers; the guest stands still.
    func seal() -> DiskSeal { log.seal() }

    /// The commit's record is published.
    func published(_ seal: DiskSeal, output: UInt64) {
        FaultPoint.reached("disks.published")
        log.publishSealed(seal.position)
        log.isStopping = false
        hold.add(output: output, durableAt: seal.durableAt)
        FaultPoint.reached("disks.sealed")
    }

    /// The guest runs again: whoever applies may begin.
    func ring() {
        if log.applied < log.sealed { connection?.ring() }
    }

    /// The end of the output log up to which frames may leave.
    func releasable() -> UInt64 {
        hold.advance(durable: log.durable)
        return hold.output
    }

    /// Frames of published commits wait for stable storage.
    var isHolding: Bool { hold.isHolding }

    var demand: GateDemand { log.wantsCommit ? .now : .none }

    /// Something is in the log that no commit covers.
    var hasUnsealed: Bool { log.sealed < log.head }

    /// Takes a primary up whose last commit was another's work.
    func resume(from commit: LogPositions?, released: UInt64) {
        hold = DiskHold()
        hold.add(output: released, durableAt: 0)
        if let commit {
            // Of a killed ftvmd: published, and not yet sealed.
            log.publishSealed(commit.disk)
            hold.add(output: commit.output, durableAt: min(log.flushed, commit.disk))
        }
        log.isStopping = false
        connection?.ring()
        _ = releasable()
    }
}
