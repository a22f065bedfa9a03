import Glibc

/// A moment on the monotonic clock by which something must be done.
package struct MonotonicDeadline: Hashable, Sendable {
    private let microseconds: Int64

    /// Microseconds of the monotonic clock, which the host's wall clock does not touch.
    package static var nowMicroseconds: Int64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return Int64(time.tv_sec) * 1_000_000 + Int64(time.tv_nsec) / 1_000
    }

    package init(millisecondsFromNow: Int) {
        microseconds = Self.nowMicroseconds + Int64(max(0, millisecondsFromNow)) * 1_000
    }

    /// What is left, in microseconds; 0 when it has passed.
    package var remainingMicroseconds: Int64 { max(0, microseconds - Self.nowMicroseconds) }
    /// What is left, in milliseconds, rounded up.
    package var remainingMilliseconds: Int { Int((remainingMicroseconds + 999) / 1_000) }
    package var hasPassed: Bool { remainingMicroseconds == 0 }
}
