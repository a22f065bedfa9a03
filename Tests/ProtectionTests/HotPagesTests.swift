import Model
import Protection
import Testing

@Suite struct HotPagesTests {
    /// Plays epochs: which pages are written in each, and gives for each epoch what was logged ahead for it and what faulted.
    private func play(
        pages: UInt64 = 1024, epochs: ClosedRange<UInt64>, writes: (UInt64, UInt64) -> Bool
    ) -> [(ahead: Int, wasted: Int, faults: Int)] {
        let hot = HotPages(pageCount: pages)
        defer { hot.release() }
        var ahead: Set<UInt64> = []
        var result: [(ahead: Int, wasted: Int, faults: Int)] = []
        for epoch in epochs {
            var next: Set<UInt64> = []
            var entry = (ahead: ahead.count, wasted: 0, faults: 0)
            for page in 0..<pages {
                let isWritten = writes(epoch, page)
                if isWritten, !ahead.contains(page) { entry.faults += 1 }
                if !isWritten, ahead.contains(page) { entry.wasted += 1 }
                guard isWritten || ahead.contains(page) else { continue }
                if hot.isHot(page: page, endOf: Epoch(epoch)) { next.insert(page) }
                #expect(!hot.isHot(page: page, endOf: Epoch(epoch)), "asked twice")
            }
            for page in next { hot.logged(page: page) }
            ahead = next
            result.append(entry)
        }
        return result
    }

    @Test func aSteadyWorkingSetHardlyFaults() {
        let epochs = play(epochs: 1...400) { _, page in page < 500 }
        #expect(epochs[0].faults == 500)
        let later = epochs.suffix(200)
        // One trial in 32 epochs for each page, and nothing wasted.
        let faults = later.map(\.faults).reduce(0, +)
        let trials = 200 * 500 / Int(HotPages.longestTrial)
        #expect(faults <= trials + 200)
        #expect(faults >= trials / 2, "pages are never tried")
        #expect(later.allSatisfy { $0.wasted == 0 })
    }

    @Test func pagesTouchedOnceAreNotLoggedAhead() {
        let epochs = play(epochs: 1...200) { epoch, page in page == epoch }
        #expect(epochs.allSatisfy { $0.ahead == 0 && $0.faults <= 1 })
    }

    /// A writer that goes through memory in order comes back too late to be worth anything.
    @Test func pagesTouchedFarApartAreNotLoggedAhead() {
        let epochs = play(epochs: 1...1000) { epoch, page in page % 10 == epoch % 10 }
        #expect(epochs.allSatisfy { $0.ahead == 0 })
    }

    @Test func aWorkingSetThatHasGoneColdDropsOut() {
        let epochs = play(epochs: 1...500) { epoch, page in epoch <= 300 && page < 400 }
        #expect(epochs[299].ahead > 300)
        #expect(epochs[300].ahead > 300)
        // Each page is tried once in 32 epochs, and is not missed.
        #expect(epochs[301 + Int(HotPages.longestTrial)].ahead == 0)
        #expect(epochs.last?.ahead == 0)
    }

    /// Images are taken while the guest stands still, and take memory's time from QEMU: of a large working set only the first.
    @Test(arguments: [(400, true), (2000, false)])
    func aLargeWorkingSetIsNoLongerPause(pages: UInt64, isLittle: Bool) {
        var plan = LogAhead(pageCount: 4096, pageSizeBytes: 4096, undoCapacity: 65_536)
        defer { plan.release() }
        for epoch in 1...4 as ClosedRange<UInt64> {
            plan.begin()
            for page in 0..<pages { _ = plan.plan(page, endOf: Epoch(epoch)) }
        }
        // But for those that are on trial.
        #expect(plan.planned > pages / 2)
        #expect(plan.kept == 256)
        #expect(plan.leftToPrepare == (isLittle ? plan.planned : 512))
        #expect(plan.isLittle == isLittle)
        plan.prepared = plan.leftToPrepare
        #expect(plan.leftToPrepare == 0)
    }

    @Test func aBusyPageIsLeftAloneAndTriedAgain() {
        let hot = HotPages(pageCount: 64)
        defer { hot.release() }
        #expect(!hot.isBusy(page: 7, in: Epoch(1)))
        hot.wasBusy(page: 7)
        let left = (1...16).prefix { hot.isBusy(page: 7, in: Epoch($0)) }.count
        #expect(left < 16, "it is tried again")
        #expect(!hot.isBusy(page: 7, in: Epoch(UInt64(left) + 2)), "until it was busy again")
        // What is known otherwise is not lost.
        for epoch in 1...6 as ClosedRange<UInt64> {
            hot.wasBusy(page: 9)
            _ = hot.isHot(page: 9, endOf: Epoch(epoch))
        }
        #expect((7...10).contains { hot.isHot(page: 9, endOf: Epoch($0)) })
    }
}
