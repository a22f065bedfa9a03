import Glibc
import Synchronization

/// A moment by which something must be done, on the monotonic clock without the times in which this process is known to
/// have stood still. Whoever is waited for has mostly stood still as well (a machine that was stopped, a frozen control
/// group), and has its time all the same.
package struct MonotonicDeadline: Hashable, Sendable {
    private let microseconds: Int64

    /// Microseconds of the monotonic clock, which the host's wall clock does not touch.
    package static var nowMicroseconds: Int64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return Int64(time.tv_sec) * 1_000_000 + Int64(time.tv_nsec) / 1_000
    }

    /// How much later than it asked to be woken a thread must wake for a standstill, in microseconds.
    package static let standstillMicroseconds: Int64 = 200_000

    private static let stoodStill = Atomic<Int64>(0)
    private static let lastStandstillEnd = Mutex<Int64>(0)

    /// This thread was to go on at the one time (`nowMicroseconds`) and did at the other. Nothing unless that is much later;
    /// counted once, however many threads say so.
    package static func noteDelay(from: Int64, to: Int64) {
        guard to - from > standstillMicroseconds else { return }
        lastStandstillEnd.withLock { end in
            let from = max(from, end)
            guard to > from else { return }
            stoodStill.add(to - from, ordering: .relaxed)
            end = to
        }
    }

    private static var awakeMicroseconds: Int64 {
        nowMicroseconds - stoodStill.load(ordering: .relaxed)
    }

    package init(millisecondsFromNow: Int) {
        microseconds = Self.awakeMicroseconds + Int64(max(0, millisecondsFromNow)) * 1_000
    }

    /// What is left, in microseconds; 0 when it has passed.
    package var remainingMicroseconds: Int64 { max(0, microseconds - Self.awakeMicroseconds) }
    /// What is left, in milliseconds, rounded up.
    package var remainingMilliseconds: Int { Int((remainingMicroseconds + 999) / 1_000) }
    package var hasPassed: Bool { remainingMicroseconds == 0 }
}
