import Model
import Protection
import Testing

@Suite struct CommitPacingTests {
    private static let maximum: UInt64 = 50_000_000
    private static let pause: UInt64 = 2_000_000

    private func fresh() -> CommitPacing {
        CommitPacing(epochMaximumNanoseconds: Self.maximum, now: 1_000)
    }

    @Test func withoutOutputOnlyTheTimerCounts() {
        var pacing = fresh()
        #expect(pacing.due(.none) == 1_000 + Self.maximum)
        pacing.committed(now: 70_000_000, pause: Self.pause, frames: 0, bytes: 0)
        #expect(pacing.due(.none) == 70_000_000 + Self.maximum)
    }

    @Test func aWaitingFrameIsCommittedAfterAShortRunAndAFullLogAtOnce() {
        let pacing = fresh()
        #expect(pacing.due(.soon) == 1_000 + CommitPacing.shortestRun)
        #expect(pacing.due(.now) <= 1_000)
    }

    /// A server that answers one request after the other is never taken for a bulk sender.
    @Test func closedLoopTrafficStaysShort() {
        var pacing = fresh()
        var now: UInt64 = 1_000
        for _ in 0..<1_000 {
            now = pacing.due(.soon) + Self.pause
            pacing.committed(now: now, pause: Self.pause, frames: 3, bytes: 4_000)
            #expect(pacing.minimumRun == CommitPacing.shortestRun)
        }
    }

    /// Also when what is sent is many small acknowledgements.
    @Test(arguments: [(40, 3_000), (4, 256 << 10)] as [(UInt64, UInt64)])
    func bulkOutputLeavesTheGuestThreeQuartersOfItsTime(frames: UInt64, bytes: UInt64) {
        var pacing = fresh()
        var now: UInt64 = 1_000
        var paused: UInt64 = 0
        for _ in 0..<4 {
            now = pacing.due(.soon) + Self.pause
            pacing.committed(now: now, pause: Self.pause, frames: frames, bytes: bytes)
        }
        let began = now
        for _ in 0..<100 {
            now = pacing.due(.soon) + Self.pause
            paused += Self.pause
            pacing.committed(now: now, pause: Self.pause, frames: frames, bytes: bytes)
        }
        #expect(paused * 4 <= now - began)
        // And not much more than that: it is latency as well.
        #expect(paused * 5 >= now - began)
        pacing.committed(now: now, pause: Self.pause, frames: 2, bytes: 200)
        #expect(pacing.minimumRun == CommitPacing.shortestRun, "calm again, short again at once")
    }

    /// Its connections' windows are full: what they wait for is the commit.
    @Test func aBulkSenderThatFallsSilentIsNotWaitedFor() {
        var pacing = fresh()
        for _ in 0..<4 {
            pacing.committed(now: 1_000, pause: Self.pause, frames: 40, bytes: 1 << 20)
        }
        let quiet = Self.pause / 2
        #expect(pacing.due(.soon) == 1_000 + 3 * Self.pause)
        #expect(pacing.due(.soon, lastData: 2_500_000) == 2_500_000 + quiet)
        #expect(
            pacing.due(.soon, lastData: 2_000) == 1_000 + CommitPacing.shortestRun,
            "no less than anybody")
        let late = 3 * Self.pause - 5_000
        #expect(pacing.due(.soon, lastData: late) == 1_000 + 3 * Self.pause, "and no longer")
        #expect(fresh().due(.soon, lastData: 1_500_000) == 1_000 + CommitPacing.shortestRun)
    }

    @Test func whatIsNeitherCalmNorBulkChangesNothing() {
        var pacing = fresh()
        for _ in 0..<2 {
            pacing.committed(now: 0, pause: Self.pause, frames: 64, bytes: 0)
        }
        let grown = pacing.minimumRun
        #expect(grown > CommitPacing.shortestRun)
        pacing.committed(
            now: 0, pause: Self.pause, frames: CommitPacing.calmFrames + 1, bytes: 0)
        #expect(pacing.minimumRun == grown)
    }

    @Test func noEpochIsLongerThanTheMaximum() {
        var pacing = CommitPacing(epochMaximumNanoseconds: 1_000_000, now: 0)
        #expect(pacing.due(.soon) == 1_000_000)
        for _ in 0..<20 {
            pacing.committed(now: 0, pause: 900_000_000, frames: 1_000, bytes: 1 << 30)
        }
        #expect(pacing.due(.soon) == 1_000_000)
    }

    /// After a promotion it runs for longer until its frames stop it, for a while.
    @Test func aColdGuestRunsLonger() {
        var pacing = CommitPacing(
            epochMaximumNanoseconds: Self.maximum, now: 1_000, isCold: true)
        #expect(pacing.due(.soon) == 1_000 + CommitPacing.shortestRun, "no pause is known yet")
        pacing.committed(now: 5_000_000, pause: Self.pause, frames: 1, bytes: 60)
        #expect(
            pacing.due(.soon) == 5_000_000 + CommitPacing.coldRunPerPause * Self.pause)
        #expect(pacing.due(.now) == 5_000_000)
        pacing.committed(now: 9_000_000, pause: 900_000_000, frames: 1, bytes: 60)
        #expect(pacing.due(.soon) == 9_000_000 + CommitPacing.longestColdRun)
        let warm = 1_000 + CommitPacing.coldPhase
        pacing.committed(now: warm, pause: Self.pause, frames: 1, bytes: 60)
        #expect(pacing.due(.soon) == warm + CommitPacing.shortestRun)
    }

    /// A commit that cannot be made is not tried again and again while its frames wait.
    @Test func aFailureIsATimersMatter() {
        var pacing = fresh()
        pacing.notCommitted(now: 5_000)
        for demand in [GateDemand.none, .soon, .now] {
            #expect(pacing.due(demand) == 5_000 + Self.maximum)
        }
        pacing.committed(now: 6_000, pause: Self.pause, frames: 1, bytes: 1)
        #expect(pacing.due(.soon) == 6_000 + CommitPacing.shortestRun)
    }

    /// With many clients, each of which waits for its answer: the guest is not stopped after each of them.
    @Test func aGuestThatWasStillSendingRunsLongerUntilItFallsSilent() {
        var pacing = fresh()
        var now: UInt64 = 1_000
        for _ in 0..<10 {
            let stop = pacing.due(.soon)
            now = stop + Self.pause
            pacing.committed(
                now: now, pause: Self.pause, frames: 3, bytes: 300, lastFrame: stop - 100_000)
        }
        #expect(pacing.minimumRun == CommitPacing.runPerPause * Self.pause)
        var one = pacing
        let stop = pacing.due(.soon)
        now = stop + Self.pause
        pacing.committed(
            now: now, pause: Self.pause, frames: 3, bytes: 300,
            lastFrame: stop - CommitPacing.stillSending - 1)
        #expect(pacing.minimumRun == CommitPacing.shortestRun)
        // One answer to one client.
        one.committed(
            now: now, pause: Self.pause, frames: 1, bytes: 100, lastFrame: stop - 100_000)
        #expect(one.minimumRun == CommitPacing.shortestRun)
    }

    // MARK: - Guests that rest

    /// Everybody who was answered has asked again, and is answered: nothing would be gained by waiting.
    @Test func aGuestThatRestsIsCommittedWhenItHasSentAsMuchAsBefore() {
        var pacing = fresh()
        pacing.committed(now: 1_000, pause: Self.pause, frames: 8, bytes: 800)
        let rest: UInt64 = 400_000
        #expect(pacing.due(.soon, restingSince: rest, frames: 8) == rest)
        #expect(pacing.due(.soon, restingSince: rest, frames: 9) == rest)
        let patience = max(Self.pause / 4, CommitPacing.shortestRest)
        #expect(pacing.due(.soon, restingSince: rest, frames: 7) == rest + patience)
        // No later than one that does not rest, and not at all without frames.
        #expect(
            pacing.due(.soon, restingSince: 1_400_000, frames: 1)
                == 1_000 + CommitPacing.shortestRun)
        #expect(pacing.due(.none, restingSince: rest, frames: 0) == pacing.due(.none))
        // An epoch without frames says nothing of who will ask.
        pacing.committed(now: 2_000, pause: Self.pause, frames: 0, bytes: 0)
        #expect(pacing.due(.soon, restingSince: rest, frames: 7) == rest + patience)
    }

    @Test func aGuestRestsWhenItsCPUsSleepTwiceAndHaveTouchedNothingMeanwhile() {
        var rest = GuestRest()
        #expect(rest.looksAt == .max)
        rest.stirred(now: 1_000)
        #expect(rest.looksAt == 1_000 + GuestRest.soon && rest.since == nil)
        rest.looked(now: 100_000, areAsleep: true, touched: 5)
        #expect(rest.since == nil && rest.looksAt == 100_000 + GuestRest.soon)
        rest.looked(now: 160_000, areAsleep: true, touched: 6)
        #expect(rest.since == nil, "a CPU that waits in a fault sleeps as well")
        rest.looked(now: 220_000, areAsleep: true, touched: 6)
        #expect(rest.since == 160_000)
        rest.looked(now: 300_000, areAsleep: false, touched: 6)
        #expect(rest.since == nil)
        rest.looked(now: 500_000, areAsleep: true, touched: 6)
        #expect(rest.since == nil, "one look is none")
        rest.looked(now: 560_000, areAsleep: true, touched: 6)
        #expect(rest.since == 500_000)
        rest.stirred(now: 600_000)
        #expect(rest.since == nil && rest.looksAt == 600_000 + GuestRest.soon)
    }

    @Test func aGuestThatWorksIsLookedAtLessAndLess() {
        var rest = GuestRest()
        rest.stirred(now: 0)
        var distances: [UInt64] = []
        for _ in 1...5 {
            let now = rest.looksAt
            rest.looked(now: now, areAsleep: false, touched: 0)
            distances.append(rest.looksAt - now)
        }
        #expect(distances == [120_000, 240_000, 400_000, 400_000, 400_000])
    }

    // MARK: - Idle guests

    /// One that does nothing that anybody could see.
    private func idle() -> (CommitPacing, now: UInt64) {
        var pacing = fresh()
        var now: UInt64 = 1_000
        for _ in 0..<CommitPacing.calmEpochsUntilIdle {
            #expect(!pacing.isIdle && pacing.due(.none) == now + Self.maximum)
            now = pacing.due(.none) + Self.pause
            pacing.committed(now: now, pause: Self.pause, frames: 0, bytes: 0, pages: 30)
        }
        return (pacing, now)
    }

    @Test func anIdleGuestsEpochsGetOlderAndItsFramesDoNotWaitLonger() {
        var (pacing, now) = idle()
        #expect(pacing.isIdle && pacing.due(.none) == now + CommitPacing.longestIdleEpoch)
        #expect(pacing.due(.soon) == now + CommitPacing.shortestRun)
        #expect(pacing.due(.now) == now)
        now = pacing.due(.none)
        // As many pages a second as before.
        pacing.committed(now: now, pause: Self.pause, frames: 0, bytes: 0, pages: 300)
        #expect(pacing.isIdle)
    }

    @Test func theFirstSignOfWorkEndsIt() {
        let (pacing, now) = idle()
        #expect(pacing.due(.none, isWorking: true) == now + Self.maximum)
        for (frames, pages, hasWritten) in [
            (1, 30, false), (0, CommitPacing.idlePages, false), (0, 30, true),
        ] as [(UInt64, UInt64, Bool)] {
            var pacing = pacing
            let end = now + Self.maximum
            pacing.committed(
                now: end, pause: Self.pause, frames: frames, bytes: 0, pages: pages,
                hasWritten: hasWritten)
            #expect(!pacing.isIdle && pacing.due(.none) == end + Self.maximum)
        }
        var failed = pacing
        failed.notCommitted(now: now)
        #expect(failed.due(.none) == now + Self.maximum)
    }

    /// What counts is what it touches in the time of an ordinary epoch, and not in all of its long one.
    @Test func anIdleGuestMayTouchALittleForALongTime() {
        var look = IdleLook()
        var pages: UInt64 = 0
        for time in 0..<20 {
            pages += CommitPacing.idlePages - 1
            look.look(
                now: UInt64(time) * Self.maximum, pages: pages, epochMaximum: Self.maximum)
            #expect(!look.isWorking)
        }
        // Between two looks nobody looks.
        look.look(now: look.looksAt - 1, pages: pages + 1_000, epochMaximum: Self.maximum)
        #expect(!look.isWorking)
        look.look(
            now: look.looksAt, pages: pages + CommitPacing.idlePages, epochMaximum: Self.maximum)
        #expect(look.isWorking)
        // What is logged ahead of an epoch is not touched yet.
        look.committed(pages: 100)
        #expect(!look.isWorking)
        look.look(
            now: look.looksAt, pages: 99 + CommitPacing.idlePages, epochMaximum: Self.maximum)
        #expect(!look.isWorking)
    }

    @Test func aGuestWithASmallLogIsNeverIdle() {
        var pacing = CommitPacing(epochMaximumNanoseconds: Self.maximum, now: 0, mayIdle: false)
        for _ in 0...CommitPacing.calmEpochsUntilIdle {
            pacing.committed(now: 0, pause: 0, frames: 0, bytes: 0, pages: 0)
        }
        #expect(!pacing.isIdle && pacing.due(.none) == Self.maximum)
    }

    @Test func whoAsksForLongEpochsGetsNoLongerOnes() {
        for maximum in [1_000_000, 2_000_000_000] as [UInt64] {
            var pacing = CommitPacing(epochMaximumNanoseconds: maximum, now: 0)
            for _ in 0..<CommitPacing.calmEpochsUntilIdle {
                pacing.committed(now: 0, pause: 0, frames: 0, bytes: 0, pages: 0)
            }
            #expect(pacing.due(.none) == max(maximum, maximum == 1_000_000 ? 20_000_000 : 0))
        }
    }
}
