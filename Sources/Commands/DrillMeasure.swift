import ControlAPI
import Model

/// Makes a drill's report from what was seen: a value, fed with events, the pair and the probe.
package struct DrillMeasure: Sendable {
    private var report: DrillReport

    package init(_ report: DrillReport) { self.report = report }

    /// When the fault was made, where the client has made it itself; seconds since 1970.
    package mutating func faultMade(at time: Double) { report.startedAt = time }

    /// Whether it has been seen through: what had to happen has happened, and the pair is protected again.
    package func isOver(_ pair: PairView, _ events: [ClusterEvent]) -> Bool {
        guard pair.state == .protected, pair.switchover == nil else { return false }
        if report.kind.movesGuest {
            return pair.generation > report.generation
                && events.contains {
                    $0.kind == .protected && isLater($0, than: .guestRunning, events)
                }
        }
        return events.contains {
            $0.kind == .protected && isLater($0, than: .secondaryLost, events)
        }
    }

    private func isLater(
        _ event: ClusterEvent, than kind: ClusterEvent.Kind, _ events: [ClusterEvent]
    ) -> Bool {
        events.contains { $0.kind == kind && $0.number < event.number }
    }

    /// - Parameters:
    ///   - events: the cluster's events from just before the drill, oldest first.
    ///   - pair: as it is in the end; nil when it is gone or nobody tells.
    ///   - commits: it was seen to commit after it was protected again.
    package func finished(
        events: [ClusterEvent], pair: PairView?, commits: Bool, probe: DrillReport.Probe?
    ) -> DrillReport {
        var result = report
        result.to = pair?.primary
        result.endsProtected = pair?.state == .protected && commits
        addTimes(events.filter { $0.pair == report.pair || $0.pair == nil }, &result)
        result.probe = probe
        result.blackoutMilliseconds = result.daemonBlackoutMilliseconds
        if let probe {
            result.blackoutMilliseconds = probe.longestGapMilliseconds
            result.blackoutSource = "probe"
        } else if !report.kind.movesGuest {
            result.blackoutMilliseconds = 0
        }
        if let before = result.epochBefore, let resumed = result.epochResumed {
            result.committedEpochsLost =
                before > resumed ? before.number - resumed.number : 0
        }
        result.problems = problems(result, pair)
        result.verdict = result.problems.isEmpty ? .passed : .failed
        return result
    }

    private func addTimes(_ events: [ClusterEvent], _ result: inout DrillReport) {
        let start = report.startedAt
        func milliseconds(_ from: Double, _ to: Double) -> Double {
            (max(0, to - from) * 100_000).rounded() / 100
        }
        func first(_ kinds: Set<ClusterEvent.Kind>) -> ClusterEvent? {
            events.first { kinds.contains($0.kind) && $0.time >= start - 0.005 }
        }
        let noticed: Set<ClusterEvent.Kind> = [
            .primaryLost, .secondaryLost, .hostSuspected, .hostDead, .failed, .promotionStarted,
        ]
        let word = first(noticed)
        if report.kind != .switchover {
            result.detectionMilliseconds = word.map { milliseconds(start, $0.time) }
        }
        let claim = first([.promotionStarted])
        if report.kind != .switchover, let word, let claim {
            result.fenceMilliseconds = milliseconds(word.time, claim.time)
        }
        if let running = first([.guestRunning]) {
            result.figures = running.figures
            result.promotionMilliseconds = running.figures["promotionMilliseconds"]
            result.epochResumed = running.figures["epoch"].map { Epoch(UInt64($0)) }
            result.releasedPacketsLost = running.figures["releasedFramesLost"].map { UInt64($0) }
            result.daemonBlackoutMilliseconds =
                report.kind == .switchover
                ? MoveSteps(events: events).stoodStillMilliseconds
                : milliseconds(start, running.time)
        }
        if report.kind == .switchover {
            result.figures.merge(first([.handedOver])?.figures ?? [:]) { ours, _ in ours }
            result.fenceMilliseconds = first([.handedOver])?.figures["handOverMilliseconds"]
        }
        if let again = events.last(where: { $0.kind == .protected && $0.time >= start }) {
            result.reprotectionMilliseconds = milliseconds(start, again.time)
        }
    }

    private func problems(_ result: DrillReport, _ pair: PairView?) -> [String] {
        var problems: [String] = []
        if !result.endsProtected {
            let state = pair.map { pair in
                pair.reason.isEmpty ? pair.state.rawValue : "\(pair.state.rawValue): \(pair.reason)"
            }
            problems.append("it is NOT PROTECTED: \(state ?? "nobody tells how it is")")
        }
        if report.kind.movesGuest {
            if let to = result.to, to == report.from {
                problems.append("the guest is still on \(to)")
            }
            if let pair, pair.generation.number > report.generation.number + 1 {
                let count = pair.generation.number - report.generation.number
                problems.append("it took \(count) promotions")
            }
        } else if result.to != nil, result.to != report.from {
            problems.append("the guest has moved, although only its secondary was killed")
        }
        if let lost = result.committedEpochsLost, lost > 0 {
            problems.append("\(lost) committed epochs were lost")
        }
        if let lost = result.releasedPacketsLost, lost > 0 {
            problems.append("\(lost) packets that clients have were forgotten by the guest")
        }
        if let probe = result.probe, probe.longestGapMilliseconds > 10_000 {
            problems.append("the guest did not answer for more than 10 s")
        }
        return problems
    }
}
