/// When the running epoch is to be committed. Held frames ask for an early commit; but a guest that
/// sends without end would then stand still for most of its time. So the guest runs for a minimum
/// time first: a short one while its output comes in small portions, as from a server that answers
/// and waits for the next request; a longer one, a multiple of what a commit costs, once epoch
/// after epoch is full of frames. (Acknowledgements of what the guest receives in bulk are such
/// frames too.) A bulk sender that has fallen silent has filled its connections' windows, and waits
/// for acknowledgements of what we hold: its long run ends then.
///
/// A guest that was still sending when it was stopped has more to say, to other clients than those that wait: stopped
/// after each word it would stand still for most of its time, and all of them would wait for that. Its runs get longer,
/// up to the same multiple of a pause; one that had fallen silent has short runs again.
///
/// A guest that rests, all its CPUs halted, loses nothing when it is stopped: it is committed as soon as it has sent as much as
/// in the epoch before, which in a closed loop means that everybody has asked again; or when nobody has asked for a moment.
///
/// A guest that has sent nothing, written to no disk and touched little for a while is idle. Nobody
/// outside could tell how far a failover would take it back, so its epochs get older; the first
/// sign of work ends that at once, at the latest after an ordinary epoch.
///
/// A value without a clock: all times are monotonic nanoseconds given by the caller.
package struct CommitPacing: Equatable, Sendable {
    /// An epoch with so many frames or bytes is full.
    package static let bulkFrames: UInt64 = 32
    package static let bulkBytes: UInt64 = 192 << 10
    /// One with fewer than these is not: the next one may be short again.
    package static let calmFrames: UInt64 = 8
    package static let calmBytes: UInt64 = 32 << 10
    /// The minimum run of a guest whose output comes in small portions.
    package static let shortestRun: UInt64 = 1_500_000
    /// Under bulk output the guest runs for at least so many times a pause: it stands still for a
    /// quarter of the time.
    package static let runPerPause: UInt64 = 3
    /// A bulk sender without data for half a pause, and for no less than this, has nothing more to
    /// send.
    package static let shortestQuiet: UInt64 = 300_000

    /// Frames that came so shortly before the stop say that the guest was still sending, if there were so many at least in
    /// the epoch: one answer to one client is no sign of it.
    package static let stillSending: UInt64 = 600_000
    package static let stillSendingFrames: UInt64 = 2

    /// A guest that rests and has sent less than before is committed when it has rested for a quarter of a pause, and for no
    /// less than this.
    package static let shortestRest: UInt64 = 150_000

    /// A guest that was just promoted is cold: everything costs it more, and several clients wait
    /// for an answer.
    package static let coldPhase: UInt64 = 150_000_000
    /// It runs for at least so many times a pause, and for so long, until its output is a reason to
    /// stop it again.
    package static let coldRunPerPause: UInt64 = 2
    package static let longestColdRun: UInt64 = 10_000_000

    /// After so many epochs with little work in a row a guest is idle.
    package static let calmEpochsUntilIdle = 20
    /// Its epochs get so many times as old as others, but no older than this (unless others do).
    package static let idleEpochs: UInt64 = 20
    package static let longestIdleEpoch: UInt64 = 1_000_000_000
    /// With fewer entries in its undo log (of huge pages) a guest is never idle: an old epoch could fill it, and the overflow of
    /// a log leaves nothing to go back to.
    package static let idleLogEntries: UInt64 = 4_096
    /// Little work: fewer touched pages than these in the time of an ordinary epoch.
    package static let idlePages: UInt64 = 64

    package let epochMaximum: UInt64
    private let mayIdle: Bool
    /// Epochs with little work, the last ones in a row.
    private var calmEpochs = 0
    /// Until when the guest counts as cold.
    private let coldUntil: UInt64
    /// How long the running epoch has to run before its frames are a reason for a commit.
    package private(set) var minimumRun: UInt64
    /// The mean of the last pauses.
    package private(set) var meanPause: UInt64 = 0
    /// Of the last epoch that had any.
    private var lastFrames: UInt64 = 0
    /// When the guest began to run.
    private var began: UInt64
    /// A commit has failed: the next try is a matter of the timer.
    private var hasFailed = false

    /// - Parameters:
    ///   - isCold: the guest was promoted just now.
    ///   - mayIdle: the undo log has room for the old epochs of an idle guest.
    package init(
        epochMaximumNanoseconds: UInt64, now: UInt64, isCold: Bool = false, mayIdle: Bool = true
    ) {
        precondition(epochMaximumNanoseconds > 0, "an epoch has a length")
        epochMaximum = epochMaximumNanoseconds
        self.mayIdle = mayIdle
        coldUntil = isCold ? now + Self.coldPhase : now
        minimumRun = min(Self.shortestRun, epochMaximumNanoseconds)
        began = now
    }

    /// The guest has done little for a while.
    package var isIdle: Bool { calmEpochs >= Self.calmEpochsUntilIdle }

    /// A commit has been made; its epoch had this output, and touched so many pages.
    /// - Parameters:
    ///   - hasWritten: to a disk.
    ///   - lastFrame: when the last of its frames came.
    package mutating func committed(
        now: UInt64, pause: UInt64, frames: UInt64, bytes: UInt64, pages: UInt64 = .max,
        hasWritten: Bool = false, lastFrame: UInt64? = nil
    ) {
        let ordinaryEpochs = max(1, (now &- began) / epochMaximum)
        let isCalm =
            mayIdle && frames == 0 && !hasWritten && pages / ordinaryEpochs < Self.idlePages
        calmEpochs = isCalm ? min(calmEpochs + 1, Self.calmEpochsUntilIdle) : 0
        began = now
        hasFailed = false
        meanPause = meanPause == 0 ? pause : (meanPause * 7 + pause) / 8
        if frames > 0 { lastFrames = frames }
        let shortest = min(Self.shortestRun, epochMaximum)
        let longest = min(max(Self.runPerPause * meanPause, shortest), epochMaximum)
        let wasSending =
            frames >= Self.stillSendingFrames
            && lastFrame.map { $0 + pause + Self.stillSending >= now } ?? false
        if frames >= Self.bulkFrames || bytes >= Self.bulkBytes {
            minimumRun = min(max(minimumRun, shortest) * 2, longest)
        } else if wasSending {
            minimumRun = min(max(minimumRun, shortest) * 3 / 2, longest)
        } else if frames < Self.calmFrames && bytes < Self.calmBytes {
            minimumRun = shortest
        }
    }

    /// A commit could not be made, or there was nothing to commit.
    package mutating func notCommitted(now: UInt64) {
        began = now
        hasFailed = true
        calmEpochs = 0
    }

    /// When the epoch is to be committed, if nothing else happens.
    /// - Parameters:
    ///   - lastData: when the guest last sent data in this epoch, if it did.
    ///   - isWorking: it touches more pages than an idle guest does, or has written to a disk.
    ///   - restingSince: since when all its CPUs have been halted, if they are.
    ///   - frames: so many it has sent in this epoch.
    package func due(
        _ demand: GateDemand, lastData: UInt64? = nil, isWorking: Bool = false,
        restingSince: UInt64? = nil, frames: UInt64 = 0
    ) -> UInt64 {
        let latest = began + (isIdle && !isWorking ? idleMaximum : epochMaximum)
        if hasFailed { return latest }
        switch demand {
        case .none: return latest
        case .soon:
            let run = max(minimumRun, coldRun)
            let quiet = lastData.map {
                max(
                    $0 + max(meanPause / 2, Self.shortestQuiet),
                    began + max(min(minimumRun, Self.shortestRun), coldRun))
            }
            let rested = restingSince.map {
                frames >= lastFrames ? $0 : $0 + max(meanPause / 4, Self.shortestRest)
            }
            return min(began + run, quiet ?? latest, rested ?? latest, latest)
        case .now: return began
        }
    }

    private var idleMaximum: UInt64 {
        max(epochMaximum, min(Self.idleEpochs * epochMaximum, Self.longestIdleEpoch))
    }

    private var coldRun: UInt64 {
        began < coldUntil ? min(Self.coldRunPerPause * meanPause, Self.longestColdRun) : 0
    }
}

/// Looks at an idle guest once in the time of an ordinary epoch: whether it still touches little.
package struct IdleLook: Equatable, Sendable {
    /// When to look next, in monotonic nanoseconds.
    package private(set) var looksAt: UInt64 = 0
    /// What it touched between the last two looks is not little.
    package private(set) var isWorking = false
    private var pages: UInt64 = 0

    package init() {}

    /// - Parameter pages: how many of the running epoch are logged.
    package mutating func look(now: UInt64, pages present: UInt64, epochMaximum: UInt64) {
        guard now >= looksAt else { return }
        isWorking = present >= pages + CommitPacing.idlePages
        pages = present
        looksAt = now + epochMaximum
    }

    /// An epoch has begun.
    /// - Parameter pages: how many are logged already, ahead of their first touch.
    package mutating func committed(pages present: UInt64) {
        isWorking = false
        pages = present
    }
}
