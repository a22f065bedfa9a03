import Model

/// Tells which pages are worth logging ahead: those that were touched in several of the last epochs.
///
/// Whether a page that was logged ahead has been written cannot be seen, for it does not fault. So each such page is left
/// out from time to time: if it faults then it stays hot, and is tried less often; if not, it has dropped out, without
/// anybody having to look for it. A page that has gone cold thus costs a few copies, each a small part of a fault.
///
/// It also knows the pages that are touched all the time, so that protecting them while the guest still runs is no use.
///
/// Two bytes a page, and no work for pages that are not touched.
package struct HotPages {
    /// A page is hot after so many touches, each near the one before it.
    package static let touchesUntilHot: UInt16 = 4
    /// Epochs between two touches that count as near.
    package static let nearEpochs: UInt8 = 3
    /// A hot page is left out once in 4 epochs at first, and once in so many in the end.
    package static let longestTrial: UInt64 = 32
    private static let scoreLimit: UInt16 = 7

    private static let aheadBit: UInt16 = 0x80
    private static let busyBit: UInt16 = 0x40
    private static let scoreMask: UInt16 = 0x3f
    /// A busy page is tried again once in so many epochs.
    private static let busyTrial: UInt64 = 16

    /// For each page: the low byte of the epoch of its last known touch, a bit "logged ahead in the running epoch", a bit
    /// "busy", and its score.
    private let words: UnsafeMutablePointer<UInt16>
    private let pageCount: UInt64

    /// `release` gives the memory back.
    package init(pageCount: UInt64) {
        self.pageCount = pageCount
        words = .allocate(capacity: Int(pageCount))
        words.initialize(repeating: 0, count: Int(pageCount))
    }

    package func release() { words.deallocate() }

    /// To be told, at the end of an epoch, of each page that was touched in it or had been logged ahead for it.
    /// - Returns: whether to log it ahead for the next epoch; `logged` has to be called when that has been done. Asked a
    ///   second time in the same epoch: false.
    package func isHot(page: UInt64, endOf epoch: Epoch) -> Bool {
        precondition(page < pageCount, "a page of the guest's RAM")
        let index = Int(page)
        let now = UInt8(truncatingIfNeeded: epoch.number)
        let word = words[index]
        var score = word & Self.scoreMask
        if word & Self.aheadBit == 0 {
            let age = now &- UInt8(truncatingIfNeeded: word >> 8)
            if age == 0 { return false }
            score = (1...Self.nearEpochs).contains(age) ? min(score + 1, Self.scoreLimit) : 1
        }
        words[index] = UInt16(now) << 8 | word & Self.busyBit | score
        return score >= Self.touchesUntilHot && !isOnTrial(page, score, in: epoch.next)
    }

    /// The page has been logged ahead for the epoch that begins now.
    package func logged(page: UInt64) { words[Int(page)] |= Self.aheadBit }

    /// Whether the page is one that was touched again at once whenever it had been protected early. Forgets it from time to
    /// time: then `wasBusy` tells anew.
    package func isBusy(page: UInt64, in epoch: Epoch) -> Bool {
        guard words[Int(page)] & Self.busyBit != 0 else { return false }
        guard (page &+ epoch.number) % Self.busyTrial == 0 else { return true }
        words[Int(page)] &= ~Self.busyBit
        return false
    }

    /// Between early protection and the end of the epoch the page has been touched.
    package func wasBusy(page: UInt64) { words[Int(page)] |= Self.busyBit }

    /// Whether a hot page is left out in this epoch. Pages take turns.
    private func isOnTrial(_ page: UInt64, _ score: UInt16, in epoch: Epoch) -> Bool {
        let period = min(Self.longestTrial, 4 << UInt64(score - Self.touchesUntilHot))
        return ((page ^ (page >> 5)) &+ epoch.number) & (period - 1) == 0
    }
}
