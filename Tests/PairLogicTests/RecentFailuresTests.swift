import Model
import PairLogic
import Testing

private let h1 = HostName("h1")
private let h2 = HostName("h2")
private let demo = PairName("demo")
private let broken = FtvmError(.unavailable, "QEMU does not start")

private func at(_ seconds: UInt64) -> MonotonicInstant {
    MonotonicInstant(nanoseconds: seconds * 1_000_000_000)
}

@Suite struct RecentFailuresTests {
    private let base: PairRecord = {
        var record = PairRecord(
            name: demo, uuid: "u", primary: h1, options: PairOptions(), domainXML: "<domain/>",
            persistent: true, memoryBytes: 1 << 30)
        record.state = .needSecondary
        record.secondary = h2
        return record
    }()

    private func after(_ action: PairAction, _ record: PairRecord, by host: HostName) -> PairRecord
    {
        guard case .update(let changed, _) = action.change(to: record, by: host) else {
            Issue.record("\(action) is outdated")
            return record
        }
        return changed
    }

    @Test func aSecondaryThatCouldNotBeMadeCountsForAMinute() {
        var failures = RecentFailures()
        let lost = after(
            .reportSecondaryLost(h2, reason: "x", error: broken), base, by: h2)
        failures.note(old: base, new: lost, at: at(10))
        #expect(failures.reason(demo, h2, at: at(69)) == "QEMU does not start")
        #expect(failures.reason(demo, h2, at: at(70)) == nil)
        #expect(failures.reason(demo, h1, at: at(11)) == nil)
        #expect(failures.reason(PairName("other"), h2, at: at(11)) == nil)
        failures.forget(demo)
        #expect(failures.reason(demo, h2, at: at(11)) == nil)
    }

    @Test func aSecondaryThatWasReadyAndDiedIsNoFailure() {
        var failures = RecentFailures()
        let ready = after(.reportSecondaryReady(Generation(1)), base, by: h2)
        let lost = after(
            .reportSecondaryLost(h2, reason: "h2 is dead", error: nil), ready, by: h1)
        failures.note(old: ready, new: lost, at: at(10))
        #expect(failures.reason(demo, h2, at: at(10)) == nil)
    }

    @Test func aPromotionThatFailedCounts() {
        var failures = RecentFailures()
        let claimed = after(.claimPromotion(Generation(2)), base, by: h2)
        failures.note(old: base, new: claimed, at: at(1))
        #expect(failures.reason(demo, h2, at: at(1)) == nil)
        let released = after(.releaseClaim(broken), claimed, by: h2)
        failures.note(old: claimed, new: released, at: at(2))
        #expect(failures.reason(demo, h2, at: at(3)) != nil)
    }

    @Test func successForgives() {
        var failures = RecentFailures()
        let lost = after(
            .reportSecondaryLost(h2, reason: "x", error: broken), base, by: h2)
        failures.note(old: base, new: lost, at: at(10))
        let placed = after(.placeSecondary(on: h2), lost, by: h1)
        failures.note(old: lost, new: placed, at: at(11))
        #expect(failures.reason(demo, h2, at: at(11)) != nil)
        let ready = after(.reportSecondaryReady(Generation(1)), placed, by: h2)
        failures.note(old: placed, new: ready, at: at(12))
        #expect(failures.reason(demo, h2, at: at(12)) == nil)

        failures.note(old: base, new: lost, at: at(20))
        let claimed = after(.claimPromotion(Generation(2)), lost, by: h2)
        let promoted = after(.reportPromoted, claimed, by: h2)
        failures.note(old: claimed, new: promoted, at: at(21))
        #expect(failures.reason(demo, h2, at: at(21)) == nil)
    }

    @Test func keepingForEverDoesNotOverflow() {
        var failures = RecentFailures(keepNanoseconds: .max)
        let lost = after(
            .reportSecondaryLost(h2, reason: "x", error: broken), base, by: h2)
        failures.note(old: base, new: lost, at: at(10))
        #expect(failures.reason(demo, h2, at: at(1_000_000)) != nil)
    }
}
