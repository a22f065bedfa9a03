import CLinux
import Glibc
import Model

/// Asks a primary's epoch loop for a commit before its time; any thread may.
package final class CommitRequest: Sendable {
    /// An eventfd. Its value counts: requests in the low half, full logs in the high half.
    let descriptor: Int32
    private static let highWaterUnit: UInt64 = 1 << 32

    init() throws {
        descriptor = ftvm_eventfd()
        guard descriptor >= 0 else {
            throw FtvmError(
                .resourceExhausted, "cannot make an eventfd for the epoch loop",
                cause: String(cString: strerror(-descriptor)))
        }
    }

    deinit { close(descriptor) }

    /// Never blocks.
    package func signal(_ reason: CommitReason = .request) {
        var value: UInt64 = reason == .highWater ? Self.highWaterUnit : 1
        _ = write(descriptor, &value, 8)
    }

    /// Takes what has been asked for so far; nil: nothing.
    func take() -> CommitReason? {
        var value: UInt64 = 0
        guard read(descriptor, &value, 8) == 8 else { return nil }
        return value >= Self.highWaterUnit ? .highWater : .request
    }
}

/// What the epoch thread waits at.
struct EpochWait {
    private let set: UnsafeMutablePointer<pollfd>
    private let count: Int

    /// `release` gives the memory back.
    init(request: CommitRequest, gate descriptors: [Int32]) {
        count = 2 + descriptors.count
        set = .allocate(capacity: count)
        for (index, descriptor) in ([request.descriptor] + descriptors + [-1]).enumerated() {
            (set + index).initialize(
                to: pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0))
        }
    }

    func release() { set.deallocate() }

    /// Waits for a request, for frames, or for the monotonic time, whichever is first.
    /// - Parameter disks: the disk log's connection; -1: none.
    func wait(
        untilNanoseconds due: UInt64, disks: Int32 = -1
    ) -> (isAsked: Bool, hasFrames: Bool) {
        set[count - 1].fd = disks
        set[count - 1].revents = 0
        let now = MonotonicClock.nowNanoseconds()
        let left = due > now ? due - now : 0
        guard ftvm_poll_set(set, Int32(count), left) > 0 else { return (false, false) }
        let hasFrames = (1..<count - 1).contains { set[$0].revents != 0 }
        return (set[0].revents != 0, hasFrames)
    }

    /// The last wait has found something of the disk log.
    var hasDisks: Bool { return set[count - 1].revents != 0 }
}
