import Commands
import ControlAPI
import Model
import Testing

/// The gate against a second copy of a protected guest.
@Suite struct LibvirtHookTests {
    private static let foreign = "<domain><name>demo</name></domain>"
    private static func ours(_ role: String) -> String {
        "<domain><metadata><ftvm:pair xmlns:ftvm='https://ftvm.dev/xmlns/domain/1' role='\(role)'/>"
            + "</metadata></domain>"
    }

    private func rule(
        _ xml: String, operation: String = "prepare", pair: PairView? = nil,
        failure: FtvmError? = nil
    ) -> HookRule {
        var rule = HookRule(domain: "demo", operation: operation, xml: xml)
        rule.host = HostName("h2")
        rule.pair = pair
        rule.failure = failure
        return rule
    }

    private func pair(on host: String, _ state: PairState = .unprotected) -> PairView {
        var record = PairRecord(
            name: PairName("demo"), uuid: "u", primary: HostName(host), options: PairOptions(),
            domainXML: Self.foreign, persistent: true, memoryBytes: 1 << 30)
        record.state = state
        return PairView(record: record)
    }

    @Test func onlyBeginningsAreAskedFor() {
        #expect(HookRule.asks(operation: "prepare", part: "begin"))
        #expect(HookRule.asks(operation: "migrate", part: "begin"))
        #expect(HookRule.asks(operation: "restore", part: "begin"))
        #expect(!HookRule.asks(operation: "start", part: "begin"))
        #expect(!HookRule.asks(operation: "release", part: "end"))
        #expect(!HookRule.asks(operation: "prepare", part: "end"))
    }

    @Test func aSecondCopyIsRefused() {
        for xml in [Self.foreign, Self.ours("primary")] {
            let refusal = rule(xml, pair: pair(on: "h1")).refusal
            #expect(refusal?.code == .failedPrecondition)
            #expect(refusal?.message.contains("h1") == true && refusal?.advice != nil)
            #expect(rule(xml, pair: pair(on: "h2")).refusal == nil)
            #expect(rule(xml).refusal == nil)
        }
    }

    @Test func aWaitingQEMUIsOurs() {
        let rule = rule(Self.ours("secondary"), pair: pair(on: "h1"))
        #expect(!rule.needsPair && rule.refusal == nil)
    }

    @Test func nothingIsStartedDuringAFailover() {
        var failing = pair(on: "h2")
        failing.promoting = HostName("h3")
        #expect(rule(Self.foreign, pair: failing).refusal?.message.contains("h3") == true)
    }

    /// Another host may go on from the last commit, until the record says that there is nothing to go on from.
    @Test func anEndIsRecordedBeforeABeginning() {
        for state in [PairState.protected, .needSecondary] {
            let rule = rule(Self.ours("primary"), pair: pair(on: "h2", state))
            #expect(rule.isEndUnrecorded)
            #expect(rule.refusal?.code == .timedOut)
        }
        for state in [PairState.unprotected, .starting, .disabled] {
            let rule = rule(Self.ours("primary"), pair: pair(on: "h2", state))
            #expect(!rule.isEndUnrecorded && rule.refusal == nil)
        }
        let failing = rule(Self.ours("primary"), pair: pair(on: "h2", .failingOver))
        #expect(!failing.isEndUnrecorded && failing.refusal?.code == .failedPrecondition)
        #expect(!rule(Self.foreign, pair: pair(on: "h1", .protected)).isEndUnrecorded)
    }

    @Test func whoCannotAskStartsNothingOfOurs() {
        let failure = FtvmError(.unavailable, "no ftvmd")
        #expect(rule(Self.ours("primary"), failure: failure).refusal?.code == .unavailable)
        #expect(rule(Self.foreign, failure: failure).refusal == nil)
    }

    @Test func aProtectedDomainIsNotMigrated() {
        let refusal = rule(Self.ours("primary"), operation: "migrate").refusal
        #expect(refusal?.advice?.contains("ftvm switchover demo") == true)
        #expect(rule(Self.foreign, operation: "migrate").refusal == nil)
    }
}
