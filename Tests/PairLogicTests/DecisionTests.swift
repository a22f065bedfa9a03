import Model
import PairLogic
import Testing

private let h1 = HostName("h1")
private let h2 = HostName("h2")
private let h3 = HostName("h3")
private let ram0 = PoolName("ram0")
private let fenced = FtvmError(.conflict, "generation 1 has been fenced")
private let hangs = FtvmError(.timedOut, "QEMU does not stop")
private let broken = FtvmError(.unavailable, "the tracker cannot be fetched")

/// A pair of h1 and h2 that is protected, seen by `me`, with everything in order.
private func situation(
    me: HostName = h1, _ adjust: (inout PairSituation) -> Void = { _ in }
) -> PairSituation {
    situation(me: me, record: { _ in }, look: adjust)
}

private func situation(
    me: HostName = h1, record change: (inout PairRecord) -> Void
) -> PairSituation {
    situation(me: me, record: change, look: { _ in })
}

private func situation(
    me: HostName = h1, record change: (inout PairRecord) -> Void,
    look adjust: (inout PairSituation) -> Void
) -> PairSituation {
    var record = PairRecord(
        name: PairName("demo"), uuid: "u", primary: h1, options: PairOptions(),
        domainXML: "<domain/>", persistent: true, memoryBytes: 1 << 30)
    record.state = .protected
    record.secondary = h2
    record.secondaryReady = true
    record.segment = SegmentReference(pool: ram0, name: "demo")
    change(&record)
    let view = HostView(state: .online, pools: [ram0], memoryAvailableBytes: 1 << 30)
    let local: LocalObservation =
        switch me {
        case h1: LocalObservation(domainPresent: true, qemu: .running, driver: .running)
        case h2: LocalObservation(domainPresent: true, qemu: .waiting, driver: .running)
        default: LocalObservation()
        }
    var situation = PairSituation(
        pair: record.name, record: record, me: me, hosts: [h1: view, h2: view, h3: view],
        local: local, primaryLock: me == h1 ? .heldHere : .held, segmentPresent: true,
        segmentPosition: SegmentPosition(generation: record.generation, epoch: Epoch(9)))
    adjust(&situation)
    return situation
}

@Suite struct DecisionTests {
    @Test func nothingIsToDoWhileAllIsWell() {
        for me in [h1, h2, h3] {
            #expect(PairDecision.decide(situation(me: me)) == [])
        }
    }

    @Test func nothingNewIsStartedWhileWorkIsUnderWay() {
        for work in PairWork.allCases {
            for me in [h1, h2, h3] {
                for qemu in QEMUState.allCases {
                    let seen = situation(me: me) {
                        $0.local.work = work
                        $0.local.qemu = qemu
                        $0.hosts[h1]?.state = me == h1 ? .online : .dead
                    }
                    // Only the secondary's host claims at once, while it still makes its QEMU.
                    if me == h2 && work == .makingSecondary { continue }
                    #expect(PairDecision.decide(seen) == [], "\(me) \(work) \(qemu)")
                }
            }
        }
        let gone = situation {
            $0.record = nil
            $0.local.work = .disabling
        }
        #expect(PairDecision.decide(gone) == [])
    }

    @Test func libvirtsSilenceProvesNothing() {
        for me in [h1, h2, h3] {
            let seen = situation(me: me) { $0.local.qemu = .unknown }
            #expect(PairDecision.decide(seen) == [])
        }
        for state in [PairState.starting, .unprotected, .disabled] {
            let seen = situation(
                record: { $0.state = state }, look: { $0.local.qemu = .unknown })
            #expect(PairDecision.decide(seen) == [])
        }
        let claimed = situation(
            me: h2, record: { $0.promoting = h2 },
            look: {
                $0.local.qemu = .unknown
                $0.primaryLock = .free
                $0.segmentPosition = SegmentPosition(generation: Generation(0), epoch: Epoch(9))
            })
        #expect(PairDecision.decide(claimed) == [])
    }

    @Test func noLockNoPromotion() {
        let dead = situation(me: h2) { $0.hosts[h1]?.state = .dead }
        let wait = PairAction.waitForFence(
            of: [h1], reason: "its QEMU still holds the primary lock")
        #expect(PairDecision.decide(dead) == [wait])

        var unknown = dead
        unknown.primaryLock = .unknown
        #expect(
            PairDecision.decide(unknown)
                == [.waitForFence(of: [h1], reason: "the primary lock cannot be asked for")])

        // Said once.
        var said = dead
        if let record = said.record,
            case .update(let changed, let event) = wait.change(to: record, by: h2)
        {
            said.record = changed
            #expect(
                changed.reason
                    == "waiting for a fence of h1 (its QEMU still holds the primary lock)")
            #expect(changed.state == .failingOver)
            #expect(event?.kind == .waitingForFence)
        }
        #expect(PairDecision.decide(said) == [])

        var free = said
        free.primaryLock = .free
        #expect(PairDecision.decide(free) == [.claimPromotion(Generation(2))])
    }

    @Test func suspicionAloneDoesNothing() {
        for me in [h1, h2, h3] {
            for other in [h1, h2, h3] where other != me {
                let seen = situation(me: me) { $0.hosts[other]?.state = .suspect }
                #expect(PairDecision.decide(seen) == [])
            }
        }
    }

    /// h1 and h2 take each other for dead, and both live: each says so once.
    @Test func hostsThatAccuseEachOtherComeToRest() throws {
        var record = try #require(situation().record)
        var changes: [String] = []
        func act(_ me: HostName) {
            let seen = situation(
                me: me, record: { $0 = record },
                look: {
                    $0.hosts[me == h1 ? h2 : h1]?.state = .dead
                    $0.hosts[h3] = nil
                    if record.secondary == nil && me == h2 { $0.local = LocalObservation() }
                })
            for action in PairDecision.decide(seen) {
                if case .update(let changed, _) = action.change(to: record, by: me) {
                    record = changed
                    changes.append(action.kind)
                }
            }
        }
        for _ in 0..<20 {
            act(h2)
            act(h1)
        }
        #expect(
            changes == [
                "waitForFence", "reportPrimaryRunning", "reportSecondaryLost", "waitForFence",
                "reportPrimaryRunning", "noteReason",
            ])
        #expect(record.state == .needSecondary)
        #expect(
            record.reason == "it goes on although its host was taken for dead; "
                + "no host for the secondary: h2: dead")
    }

    @Test func suspicionAndAFreeLockAreEnough() {
        let seen = situation(me: h2) {
            $0.hosts[h1]?.state = .suspect
            $0.primaryLock = .free
        }
        #expect(PairDecision.decide(seen) == [.claimPromotion(Generation(2))])
        let held = situation(me: h2) {
            $0.hosts[h1]?.state = .suspect
            $0.primaryLock = .held
        }
        #expect(PairDecision.decide(held) == [])
    }

    @Test func aClaimantPromotesOnlyWhenItsWaitingQEMUIsReadyAndTheLockIsFree() {
        func claimed(
            _ qemu: QEMUState, _ driver: DriverState, _ lock: PrimaryLockState
        ) -> [PairAction] {
            PairDecision.decide(
                situation(
                    me: h2,
                    record: {
                        $0.promoting = h2
                        $0.primaryLost = true
                        $0.state = .failingOver
                        $0.generation = Generation(2)
                    },
                    look: {
                        $0.local.qemu = qemu
                        $0.local.driver = driver
                        $0.primaryLock = lock
                        $0.segmentPosition = SegmentPosition(
                            generation: Generation(1), epoch: Epoch(9))
                    }))
        }
        #expect(claimed(.waiting, .running, .free) == [.promote(Generation(2))])
        #expect(claimed(.waiting, .none, .free) == [.adoptSecondary])
        #expect(claimed(.waiting, .enabling, .free) == [])
        #expect(claimed(.waiting, .running, .held) == [.raiseSegmentGeneration(Generation(2))])
        #expect(
            claimed(.waiting, .running, .heldHere)
                == [.cleanUpStale(reason: "its promotion was interrupted")])
        #expect(
            claimed(.waiting, .failed(broken), .free)
                == [.cleanUpStale(reason: "its promotion failed: \(broken.message)")])
        #expect(claimed(.none, .failed(broken), .free) == [.releaseClaim(broken)])
        #expect(claimed(.none, .none, .free) == [.createSecondary])
        #expect(claimed(.none, .none, .held) == [.createSecondary])
        #expect(claimed(.running, .none, .heldHere) == [.adoptPrimary])
        #expect(claimed(.running, .running, .heldHere) == [.reportPromoted])
        #expect(claimed(.paused, .none, .heldHere) == [.adoptPrimary])
        #expect(claimed(.running, .none, .unknown) == [])
        #expect(
            claimed(.running, .none, .free)
                == [.cleanUpStale(reason: "it runs without the primary lock")])
    }

    @Test func aGenerationIsUsedForOnePromotionOnly() {
        let begun = situation(
            me: h2,
            record: {
                $0.promoting = h2
                $0.primaryLost = true
                $0.generation = Generation(2)
            },
            look: {
                $0.local.qemu = .none
                $0.local.driver = .none
                $0.primaryLock = .free
                $0.segmentPosition = SegmentPosition(generation: Generation(2), epoch: Epoch(9))
            })
        #expect(PairDecision.decide(begun) == [.claimPromotion(Generation(3))])
    }

    @Test func aPrimaryThatWasFencedEndsItsQEMU() {
        let seen = situation { $0.local.driver = .failed(fenced) }
        #expect(
            PairDecision.decide(seen)
                == [.cleanUpStale(reason: "it has been fenced: \(fenced.message)")])
        let superseded = situation(record: { $0.promoting = h2 })
        #expect(
            PairDecision.decide(superseded)
                == [.cleanUpStale(reason: "h2 has claimed the promotion")])
        let replaced = situation(record: {
            $0.primary = h2
            $0.secondary = nil
        })
        #expect(
            PairDecision.decide(replaced)
                == [.cleanUpStale(reason: "its primary is on h2, generation 1")])
    }

    @Test func aQEMUThatHangsIsEndedOnlyIfASecondaryIsReady() {
        let hanging = situation { $0.local.driver = .failed(hangs) }
        #expect(
            PairDecision.decide(hanging)
                == [.cleanUpStale(reason: "it hangs: \(hangs.message)")])
        var alone = hanging
        alone.hosts[h2]?.state = .dead
        #expect(PairDecision.decide(alone) == [.noteError(hangs)])
        alone.record?.lastError = hangs
        #expect(PairDecision.decide(alone) == [])
        let failed = situation { $0.local.driver = .failed(broken) }
        #expect(PairDecision.decide(failed) == [.noteError(broken)])
    }

    @Test func aDomainThatStartedAgainBehindUsIsNotThePrimary() {
        let seen = situation { $0.primaryLock = .free }
        #expect(PairDecision.decide(seen) == [.guestShutDown])
        // Somebody holds the lock and it is not this QEMU: the view may be old. Wait.
        let other = situation { $0.primaryLock = .held }
        #expect(PairDecision.decide(other) == [])
    }

    @Test func withoutARecordOnlyWaitingQEMUsAndUnusedSegmentsGo() {
        func left(_ qemu: QEMUState, _ lock: PrimaryLockState, _ segment: Bool) -> [PairAction] {
            PairDecision.decide(
                situation(me: h3) {
                    $0.record = nil
                    $0.local.qemu = qemu
                    $0.primaryLock = lock
                    $0.segmentPresent = segment
                })
        }
        #expect(left(.waiting, .free, true) == [.cleanUpStale(reason: "there is no pair demo")])
        #expect(left(.running, .free, false) == [])
        #expect(left(.running, .heldHere, true) == [])
        #expect(left(.running, .held, true) == [])
        #expect(left(.none, .unknown, true) == [])
        #expect(left(.none, .free, true) == [.removeSegment])
        #expect(left(.running, .free, true) == [.removeSegment])
        #expect(left(.none, .free, false) == [])
    }

    @Test func theSecondarysHostSaysWhatBecameOfIt() {
        func seen(_ adjust: (inout PairSituation) -> Void) -> [PairAction] {
            PairDecision.decide(
                situation(
                    me: h2,
                    record: {
                        $0.secondaryReady = false
                        $0.state = .needSecondary
                    }, look: adjust))
        }
        #expect(seen { _ in } == [.reportSecondaryReady(Generation(1))])
        #expect(seen { $0.local.driver = .none } == [.adoptSecondary])
        #expect(seen { $0.local = LocalObservation() } == [.createSecondary])
        #expect(
            seen { $0.local = LocalObservation(driver: .failed(broken)) }
                == [.reportSecondaryLost(h2, reason: broken.message, error: broken)])
        #expect(
            seen { $0.local.qemu = .running }
                == [.cleanUpStale(reason: "its primary is on h1, generation 1")])
        #expect(
            seen { $0.primaryLock = .heldHere }
                == [.cleanUpStale(reason: "its promotion was interrupted")])
        let actions = seen {
            $0.local = LocalObservation()
            $0.segmentPresent = false
        }
        guard case .reportSecondaryLost(h2, let reason, let error) = actions.first else {
            Issue.record("\(actions)")
            return
        }
        #expect(reason == "h2 does not see the segment")
        #expect(error?.code == .notFound)
    }
}
