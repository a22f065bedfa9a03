import Model
import PairLogic
import Testing

private let me = HostName("h1")
private let h2 = HostName("h2")
private let h3 = HostName("h3")

/// A detector with a period of 100 ms and hosts whose hearts a test can stop.
private struct Watch {
    var detector = Detector(me: me)
    var milliseconds: UInt64 = 1_000
    var readings: [HostName: Detector.Reading] = [:]
    var beating: Set<HostName> = []

    init(_ hosts: HostName...) {
        for host in hosts {
            readings[host] = Detector.Reading(
                host: host, incarnation: 1, counter: 1, processHoldsSlot: true)
            beating.insert(host)
        }
        _ = look()
    }

    mutating func look() -> [String] {
        detector.observe(
            Array(readings.values), at: MonotonicInstant(nanoseconds: milliseconds * 1_000_000)
        ).map {
            "\($0.host): \($0.from?.rawValue ?? "new") -> \($0.to.rawValue): \($0.reason)"
        }
    }

    /// Looks every 50 ms; everybody who beats does so every 100 ms.
    mutating func pass(_ duration: UInt64) -> [String] {
        var told: [String] = []
        for _ in 0..<(duration / 50) {
            milliseconds += 50
            if milliseconds % 100 == 0 {
                for host in beating { readings[host]?.counter += 1 }
            }
            told += look().map { "\(milliseconds) \($0)" }
        }
        return told
    }
}

@Suite struct DetectorTests {
    @Test func hostsThatBeatAreOnline() {
        var watch = Watch(h2, h3)
        #expect(watch.detector.states == [h2: .online, h3: .online])
        #expect(watch.pass(10_000) == [])
    }

    @Test func aHostIsNewOnce() {
        var detector = Detector(me: me)
        let reading = Detector.Reading(
            host: h2, incarnation: 1, counter: 1, processHoldsSlot: true)
        let at = MonotonicInstant(nanoseconds: 5)
        let transitions = detector.observe([reading], at: at)
        #expect(transitions.map(\.to) == [.online])
        #expect(transitions.first?.from == nil)
        #expect(detector.observe([reading], at: at) == [])
        #expect(detector.lastBeat(of: h2) == at)
    }

    @Test func aStuckCounterIsSuspectAfterTwoAndDeadAfterFivePeriods() {
        var watch = Watch(h2, h3)
        _ = watch.pass(1_000)  // the last beat of h2 is at 2000
        watch.beating.remove(h2)
        #expect(
            watch.pass(2_000) == [
                "2200 h2: online -> suspect: 2 heartbeats missed",
                "2500 h2: suspect -> dead: 5 heartbeats missed",
            ])
        #expect(watch.detector.states == [h2: .dead, h3: .online])
    }

    @Test func aHostThatIsOnlySlowRecoversFromSuspicionAtOnce() {
        var watch = Watch(h2)
        watch.beating.remove(h2)
        #expect(watch.pass(350).count == 1)
        watch.beating.insert(h2)
        #expect(watch.pass(100) == ["1400 h2: suspect -> online: its heartbeat is back"])
    }

    @Test func aDeadHostMustBeatTwiceToBeBack() {
        var watch = Watch(h2)
        watch.beating.remove(h2)
        _ = watch.pass(1_000)
        #expect(watch.detector.states[h2] == .dead)
        watch.readings[h2]?.counter += 1
        #expect(watch.pass(1_000) == [])
        watch.beating.insert(h2)
        #expect(watch.pass(200) == ["3100 h2: dead -> online: its heartbeat is back"])
    }

    @Test func aProcessThatIsGoneIsSuspectAtOnceAndDeadInTime() {
        var watch = Watch(h2)
        watch.beating.remove(h2)
        watch.readings[h2]?.processHoldsSlot = false
        #expect(
            watch.pass(50) == ["1050 h2: online -> suspect: the process of its ftvmd is gone"])
        #expect(watch.pass(5_000) == ["1500 h2: suspect -> dead: 5 heartbeats missed"])
    }

    @Test func aHostFirstSeenGoneIsSuspect() {
        var watch = Watch()
        watch.readings[h2] = Detector.Reading(
            host: h2, incarnation: 4, counter: 9, processHoldsSlot: false)
        #expect(watch.look() == ["h2: new -> suspect: the process of its ftvmd is gone"])
    }

    @Test func aNewIncarnationIsOnlineAtOnce() {
        var watch = Watch(h2)
        watch.readings[h2]?.processHoldsSlot = false
        _ = watch.look()
        watch.readings[h2] = Detector.Reading(
            host: h2, incarnation: 2, counter: 1, processHoldsSlot: true)
        #expect(watch.look() == ["h2: suspect -> online: its ftvmd has started"])
        // Too quick to be seen: one look sees incarnation 2, the next incarnation 3.
        watch.readings[h2]?.incarnation = 3
        #expect(watch.look() == [])
        #expect(watch.detector.states[h2] == .online)
    }

    @Test func anOldSlotDoesNotSpeakForANewIncarnation() {
        var watch = Watch()
        let old = Detector.Reading(
            host: h2, incarnation: 1, counter: 70, processHoldsSlot: false)
        let new = Detector.Reading(host: h2, incarnation: 2, counter: 1, processHoldsSlot: true)
        let at = MonotonicInstant(nanoseconds: 2_000_000_000)
        #expect(watch.detector.observe([old, new], at: at).map(\.to) == [.online])
        #expect(watch.detector.observe([new, old], at: at) == [])
        #expect(watch.detector.observe([old], at: at) == [])
        // A store that was begun anew counts incarnations from 1 again: a held slot is the truth.
        let again = Detector.Reading(host: h2, incarnation: 1, counter: 1, processHoldsSlot: true)
        #expect(watch.detector.observe([again], at: at) == [])
        #expect(watch.detector.states[h2] == .online)
    }

    @Test func aHostThatWasFrozenAccusesNobody() {
        var watch = Watch(h2, h3)
        _ = watch.pass(1_000)
        // An hour without a look of ours; nobody else's counter moved either (the whole machine
        // slept).
        watch.milliseconds += 3_600_000
        #expect(watch.look() == [])
        // h2 really is dead: found out after a whole time-out of our own waking time.
        watch.beating.remove(h2)
        #expect(
            watch.pass(1_000).map { String($0.drop { $0 != "h" }) } == [
                "h2: online -> suspect: 2 heartbeats missed",
                "h2: suspect -> dead: 5 heartbeats missed",
            ])
        #expect(watch.detector.states[h3] == .online)
    }

    @Test func aHostThatIsStarvedAgainAndAgainAccusesNobody() {
        var watch = Watch(h2)
        watch.beating.remove(h2)
        // Looks that are 300 ms apart prove nothing, however long it goes on.
        for _ in 0..<100 {
            watch.milliseconds += 300
            #expect(watch.look() == [])
        }
        // Once it is on time again, it finds out.
        #expect(watch.pass(600).count == 2)
    }

    @Test func ownDelayDoesNotHideThatAProcessIsGone() {
        var watch = Watch(h2)
        watch.milliseconds += 60_000
        watch.readings[h2]?.processHoldsSlot = false
        #expect(watch.look().count == 1)
        #expect(watch.detector.states[h2] == .suspect)
    }

    @Test func aHostThatIsExpectedAndNeverSeenIsDead() {
        var watch = Watch()
        let now = MonotonicInstant(nanoseconds: watch.milliseconds * 1_000_000)
        watch.detector.expect([me, h2], at: now)
        #expect(
            watch.pass(1_000) == [
                "1200 h2: new -> suspect: 2 heartbeats missed",
                "1500 h2: suspect -> dead: 5 heartbeats missed",
            ])
        watch.detector.expect([h2], at: now)
        #expect(watch.look() == [])
        watch.detector.forget(h2)
        #expect(watch.detector.states == [:])
    }

    @Test func ownHeartbeatIsNotLookedAt() {
        var watch = Watch(me, h2)
        watch.beating = [h2]
        #expect(watch.pass(2_000) == [])
        #expect(watch.detector.states == [h2: .online])
    }
}
