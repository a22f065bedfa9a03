import Model
import PairLogic
import Testing

private let h1 = HostName("h1")
private let h2 = HostName("h2")
private let h3 = HostName("h3")
private let broken = FtvmError(.unavailable, "QEMU does not start")

private func record(_ change: (inout PairRecord) -> Void = { _ in }) -> PairRecord {
    var record = PairRecord(
        name: PairName("demo"), uuid: "u", primary: h1, options: PairOptions(),
        domainXML: "<domain/>", persistent: true, memoryBytes: 1 << 30)
    record.state = .protected
    record.secondary = h2
    record.secondaryReady = true
    record.generation = Generation(7)
    change(&record)
    return record
}

extension RecordChange {
    fileprivate var updated: PairRecord? {
        if case .update(let record, _) = self { record } else { nil }
    }
}

@Suite struct RecordChangeTests {
    @Test func aClaimFitsOneGenerationOnly() throws {
        let claim = PairAction.claimPromotion(Generation(8))
        let claimed = try #require(claim.change(to: record(), by: h2).updated)
        #expect(claimed.generation == Generation(8))
        #expect(claimed.promoting == h2)
        #expect(claimed.primaryLost)
        #expect(claimed.state == .failingOver)
        // The same claim decided on by another host at the same time comes too late.
        #expect(claim.change(to: claimed, by: h3) == .outdated)
        // And so does one that was decided on before the guest shut down.
        for state in [PairState.starting, .unprotected, .disabled] {
            #expect(claim.change(to: record { $0.state = state }, by: h2) == .outdated)
        }
    }

    @Test func aPromotionIsReportedByItsClaimantOnly() throws {
        let claimed = record {
            $0.promoting = h2
            $0.primaryLost = true
            $0.promotionRequested = true
            $0.lastError = broken
        }
        #expect(PairAction.reportPromoted.change(to: claimed, by: h3) == .outdated)
        let promoted = try #require(PairAction.reportPromoted.change(to: claimed, by: h2).updated)
        #expect(promoted.primary == h2)
        #expect(promoted.secondary == nil)
        #expect(promoted.promoting == nil)
        #expect(promoted.state == .needSecondary)
        #expect(!promoted.primaryLost && !promoted.promotionRequested && !promoted.secondaryReady)
        #expect(promoted.lastError == nil)
        #expect(PairAction.reportPromoted.change(to: promoted, by: h2) == .outdated)
    }

    @Test func aReleasedClaimLeavesThePrimaryLost() throws {
        let claimed = record {
            $0.promoting = h2
            $0.primaryLost = true
        }
        let released = try #require(
            PairAction.releaseClaim(broken).change(to: claimed, by: h2).updated)
        #expect(released.promoting == nil)
        #expect(released.primaryLost)
        #expect(released.secondary == nil && !released.secondaryReady)
        #expect(released.lastError == broken)
        #expect(PairAction.releaseClaim(broken).change(to: claimed, by: h3) == .outdated)
    }

    @Test func whatThePrimarySaysIsOutdatedOnceSomebodyHasClaimed() {
        let claimed = record {
            $0.promoting = h2
            $0.primaryLost = true
        }
        let actions: [PairAction] = [
            .guestShutDown, .placeSecondary(on: h3), .reportPrimaryLost(reason: "x"),
            .reportPrimaryRunning, .beginDisable, .finishDisable, .reportEnabled,
            .reportEnablingFailed(broken), .beginEnabling,
        ]
        for action in actions {
            #expect(action.change(to: claimed, by: h1) == .outdated, "\(action)")
        }
    }

    @Test func nobodySpeaksForThePrimary() {
        let states: [PairState] = [.starting, .protected, .unprotected, .failingOver, .disabled]
        for state in states {
            let actions: [PairAction] = [
                .guestShutDown, .placeSecondary(on: h3), .reportPrimaryLost(reason: "x"),
                .beginDisable, .finishDisable, .reportEnabled, .reportEnablingFailed(broken),
                .beginEnabling,
            ]
            for action in actions {
                let present = record {
                    $0.state = state
                    $0.desired = .disabled
                }
                #expect(action.change(to: present, by: h3) == .outdated, "\(action) \(state)")
            }
        }
    }

    @Test func anAccusationIsTakenBackOnlyWhileNothingFollowedFromIt() {
        let accused = record { $0.state = .failingOver }
        let cleared = PairAction.reportPrimaryRunning.change(to: accused, by: h3).updated
        #expect(cleared?.state == .protected)
        #expect(cleared?.primary == h1)
        #expect(cleared?.reason == "")
        let answered = PairAction.reportPrimaryRunning.change(to: accused, by: h1).updated
        #expect(answered?.state == .protected)
        #expect(answered?.reason == "it goes on although its host was taken for dead")
        #expect(PairAction.reportPrimaryRunning.change(to: record(), by: h3) == .outdated)
        let lost = record {
            $0.state = .failingOver
            $0.primaryLost = true
        }
        #expect(PairAction.reportPrimaryRunning.change(to: lost, by: h3) == .outdated)
        #expect(PairAction.reportPrimaryRunning.change(to: lost, by: h1) == .outdated)
    }

    @Test func aSecondaryThatIsNoLongerNamedIsNotReady() {
        let ready = PairAction.reportSecondaryReady(Generation(7))
        #expect(ready.change(to: record { $0.secondary = nil }, by: h2) == .outdated)
        #expect(ready.change(to: record { $0.secondary = h3 }, by: h2) == .outdated)
        #expect(ready.change(to: record(), by: h2) == .outdated)
    }

    /// The pair may have been enabled anew, with other devices, while the QEMU was made.
    @Test func aSecondaryOfAnotherGenerationIsNotReady() {
        let placed = record {
            $0.state = .needSecondary
            $0.secondaryReady = false
        }
        let old = PairAction.reportSecondaryReady(Generation(6))
        #expect(old.change(to: placed, by: h2) == .outdated)
        let ready = PairAction.reportSecondaryReady(Generation(7))
        #expect(ready.change(to: placed, by: h2) != .outdated)
    }

    @Test func aSecondaryIsPlacedOnceAndNeverOnThePrimarysHost() {
        let free = record {
            $0.secondary = nil
            $0.secondaryReady = false
        }
        #expect(PairAction.placeSecondary(on: h1).change(to: free, by: h1) == .outdated)
        #expect(PairAction.placeSecondary(on: h3).change(to: record(), by: h1) == .outdated)
        let placed = PairAction.placeSecondary(on: h3).change(to: free, by: h1).updated
        #expect(placed?.secondary == h3)
        #expect(placed?.state == .needSecondary)
    }

    @Test func enablingAnewIsANewTerm() {
        let shutOff = record { $0.state = .unprotected }
        let begun = PairAction.beginEnabling.change(to: shutOff, by: h1).updated
        #expect(begun?.generation == Generation(8))
        #expect(begun?.state == .starting)
        let last = record {
            $0.state = .unprotected
            $0.generation = Generation(Generation.maximum)
        }
        #expect(PairAction.beginEnabling.change(to: last, by: h1) == .outdated)
    }

    @Test func workOnTheHostIsNoChange() {
        #expect(PairAction.adoptPrimary.change(to: record(), by: h1) == .none)
        #expect(PairAction.promote(Generation(8)).change(to: record(), by: h2) == .none)
    }

    @Test func disablingEndsWithTheRecordGone() {
        let wished = record { $0.desired = .disabled }
        let begun = PairAction.beginDisable.change(to: wished, by: h1).updated
        #expect(begun?.state == .disabled)
        guard let begun else { return }
        guard case .delete(let event) = PairAction.finishDisable.change(to: begun, by: h1) else {
            Issue.record("not deleted")
            return
        }
        #expect(event.kind == .disabled)
        #expect(PairAction.beginDisable.change(to: record(), by: h1) == .outdated)
        #expect(PairAction.finishDisable.change(to: record(), by: h1) == .outdated)
    }
}
