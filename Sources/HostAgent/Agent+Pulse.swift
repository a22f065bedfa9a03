import Model
import PairLogic
import Protection

/// A call to a task to look once more; calls that it has not come to yet are one.
struct WakeUps: Sendable {
    let stream: AsyncStream<Void>
    private let continuation: AsyncStream<Void>.Continuation

    init() { (stream, continuation) = AsyncStream.makeStream(bufferingPolicy: .bufferingNewest(1)) }

    /// From any thread.
    func call() { continuation.yield() }
}

/// When something regular is due next.
private struct Regular {
    let periodNanoseconds: UInt64
    private var due: UInt64 = 0

    init(_ periodNanoseconds: UInt64) { self.periodNanoseconds = periodNanoseconds }

    /// Whether it is; then it is due again a period from now.
    mutating func takeDue(_ now: UInt64) -> Bool {
        // A little early is due: or what has the pulse's own period would miss every other one.
        guard now + 1_000_000 >= due else { return false }
        due = now + periodNanoseconds
        return true
    }
}

/// One clock for everything that is done regularly: on a host where nothing happens a timer's wake-up costs more than
/// what is done at it.
extension Agent {
    /// How often everything is looked at when nothing changes, but something is under way or wrong.
    private static let tickNanoseconds: UInt64 = 50_000_000
    /// The same while all is well: what happens is told, by records, processes, hosts and libvirt; this is for what is not.
    private static let calmNanoseconds: UInt64 = 250_000_000
    private static let reportNanoseconds: UInt64 = 500_000_000
    /// How often QEMU's descriptors are counted: hardly any device comes without one.
    private static let devicesNanoseconds: UInt64 = 100_000_000

    /// Never waits for the store or for libvirt: who is heard, and this host's own end, depend on it.
    func pulse() async {
        // So often that the way from our beat to another's note and back to us takes less than two beats.
        var observing = Regular(environment.timing.heartbeatNanoseconds / 4)
        var ticks = Regular(Self.tickNanoseconds)
        var calmLooks = Regular(Self.calmNanoseconds)
        var reporting = Regular(Self.reportNanoseconds)
        var devices = Regular(Self.devicesNanoseconds)
        var members = Regular(environment.timing.renewalNanoseconds)
        var suspectMembers = Regular(environment.timing.heartbeatNanoseconds)
        let pause = min(observing.periodNanoseconds, Self.tickNanoseconds)
        while !Task.isCancelled {
            let now = MonotonicClock.nowNanoseconds()
            noteAlive(at: now)
            if observing.takeDue(now) { observeHosts() }
            if ticks.takeDue(now) {
                lookForHangs()
                if calmLooks.takeDue(now) || !isCalm { poke() }
            }
            if reporting.takeDue(now) { reports.call() }
            if devices.takeDue(now), runtimes.values.contains(where: { $0.driver != nil }) {
                deviceLooks.call()
            }
            let isAnybodySuspect = detector.states.values.contains(.suspect)
            if members.takeDue(now) || (isAnybodySuspect && suspectMembers.takeDue(now)) {
                memberReads.call()
            }
            try? await Task.sleep(for: .nanoseconds(pause))
        }
    }

    /// Nothing is under way, and nothing is to be waited for.
    private var isCalm: Bool {
        recordsKnown && maintenance[host] == nil && cluster.needs.isEmpty
            && detector.states.values.allSatisfy { $0 == .online }
            && records.values.allSatisfy { $0.record.isSettled }
            && runtimes.values.allSatisfy {
                $0.work == nil && $0.driverFailure == nil && !$0.isEnding && !$0.isClaiming
            }
    }
}
