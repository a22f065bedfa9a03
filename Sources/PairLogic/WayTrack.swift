import Model

/// One way's beats of one host: when the last came, and how regular they are.
struct WayTrack: Sendable, Hashable {
    /// When the counter was last seen to have changed, put off by our own delays.
    var lastBeat: UInt64
    var counter: UInt64?
    /// Mean deviation of the beats from their period, in nanoseconds: an exponential mean over some
    /// 16 beats, of what is late only.
    private(set) var jitter: UInt64 = 0

    /// When it was last read, and the last reading before the newest beat: the beat came later.
    private var lastReading: UInt64?
    private(set) var beatenAfter: UInt64 = 0

    init(lastBeat: UInt64) { self.lastBeat = lastBeat }

    /// How many beats lie between the last reading and this one.
    func beats(to counter: UInt64, isNew: Bool) -> UInt64 {
        guard !isNew, let last = self.counter else { return 1 }
        return counter > last ? counter - last : (counter == last ? 0 : 1)
    }

    mutating func read(at time: UInt64, hasBeaten: Bool) {
        if hasBeaten { beatenAfter = lastReading ?? 0 }
        lastReading = time
    }

    mutating func take(
        _ counter: UInt64, _ beats: UInt64, _ isNew: Bool, at time: UInt64, period: UInt64
    ) {
        if !isNew, self.counter != nil, time > lastBeat {
            let interval = (time - lastBeat) / max(beats, 1)
            // One real outage must not make us deaf for the next one.
            let late = min(interval > period ? interval - period : 0, 4 * period)
            jitter = jitter - jitter / 16 + late / 16
        }
        self.counter = counter
        lastBeat = max(lastBeat, time)
    }

    /// What a deadline is longer for this way's jitter, in nanoseconds. Looks are half a period
    /// apart, so less than that is no jitter.
    func margin(period: UInt64) -> UInt64 {
        let quantum = period / 4
        guard jitter > quantum else { return 0 }
        return min(4 * (jitter - quantum), 5 * period)
    }
}
