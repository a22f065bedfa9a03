import Hypervisor
import Testing

@Suite struct DeadlineTests {
    /// Nobody can have answered while everybody stood still.
    @Test func aStandstillIsNotHeldAgainstAnybody() {
        let deadline = MonotonicDeadline(millisecondsFromNow: 1_000)
        let now = MonotonicDeadline.nowMicroseconds
        let limit = MonotonicDeadline.standstillMicroseconds
        MonotonicDeadline.noteDelay(from: now, to: now + limit)
        #expect(deadline.remainingMicroseconds <= 1_000_000)
        MonotonicDeadline.noteDelay(from: now, to: now + 2 * limit)
        #expect((1_100_000...1_000_000 + 2 * limit).contains(deadline.remainingMicroseconds))
        // The same one, as other threads have felt it.
        MonotonicDeadline.noteDelay(from: now + 1_000, to: now + 2 * limit)
        MonotonicDeadline.noteDelay(from: now - 1_000, to: now + 2 * limit - 1_000)
        #expect(deadline.remainingMicroseconds <= 1_000_000 + 2 * limit)
        // Whoever begins later has no longer for that.
        #expect(MonotonicDeadline(millisecondsFromNow: 1_000).remainingMicroseconds <= 1_000_000)
        #expect(!deadline.hasPassed)
    }
}
