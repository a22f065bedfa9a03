import BenchmarkSupport
import Foundation
import Model

/// What is aimed at, and what was seen of it.
struct PeerAims {
    let results: BenchmarkResults

    var text: String {
        var table = MarkdownTable(["aim", "seen", ""])
        for aim in epochs + peers + throughput + moves + idle {
            // What was not measured was not reached.
            let verdict = aim.holds.map { $0 ? "reached" : "MISSED" } ?? "NOT MEASURED"
            table.add([aim.what, aim.seen, verdict])
        }
        return table.text
    }

    private struct Aim {
        let what: String
        let seen: String
        let holds: Bool?
    }

    private func epoch(_ workload: String, _ peer: String, _ measure: String) -> Double {
        results.summary(EpochPart.part, workload, peer, measure).median
    }

    private func aim(_ what: String, _ seen: String, _ figures: [Double], _ holds: Bool) -> Aim {
        guard !figures.isEmpty, figures.allSatisfy(\.isFinite) else {
            return Aim(what: what, seen: "-", holds: nil)
        }
        return Aim(what: what, seen: seen, holds: holds)
    }

    private var epochs: [Aim] {
        let sizes = results.workloads(SizePart.part)
        func figures(_ measure: String) -> [Double] {
            sizes.map { results.summary(SizePart.part, $0, Ftvm.name, measure).median }
        }
        func text(_ figures: [Double]) -> String {
            zip(sizes, figures).map { "\($0): \(Format.number($1, decimals: 2))" }.joined(
                separator: ", ")
        }
        let (commits, pauses) = (figures("commit p50"), figures("pause p50"))
        let worst = commits.max() ?? .nan
        let best = commits.min() ?? .nan
        return [
            aim(
                "epoch pause p50 under 2 ms at 1,000 dirty pages", text(commits), commits,
                worst < 2),
            aim(
                "the same by QEMU's events, as the peers' pauses", text(pauses), pauses,
                (pauses.max() ?? .nan) < 2),
            aim(
                "and flat in the size of the guest's memory (at most 1.5 times)",
                "\(Format.number(worst / best, decimals: 2)) times", commits, worst < best * 1.5),
        ]
    }

    private var peers: [Aim] {
        var aims: [Aim] = []
        for workload in results.workloads(EpochPart.part) {
            let own = epoch(workload, Ftvm.name, "pause p50")
            for peer in EpochPart.peers.dropFirst(2) {
                let factor: Double? =
                    switch (workload.prefix(3), peer) {
                    case ("5k ", Colo.name): 2
                    case ("50k", Colo.name): 10
                    case (_, Colo.name): nil
                    case ("5k ", _), ("50k", _): 1
                    default: nil
                    }
                guard let factor else { continue }
                let other = epoch(workload, peer, "pause p50")
                aims.append(
                    aim(
                        "pause at \(workload) "
                            + (factor > 1
                                ? "at most 1/\(Int(factor)) of \(peer)'s"
                                : "shorter than \(peer)'s"),
                        "\(Format.number(own, decimals: 2)) against "
                            + "\(Format.number(other, decimals: 2)) ms, 1/"
                            + Format.number(other / own),
                        [own, other], own * factor <= other))
            }
        }
        return aims
    }

    private var throughput: [Aim] {
        var aims: [Aim] = []
        for workload in results.workloads(EpochPart.part) where workload.hasPrefix("5k ") {
            let share =
                epoch(workload, Ftvm.name, "throughput")
                / epoch(workload, Unprotected.name, "throughput")
            aims.append(
                aim(
                    "speed at \(workload) 80 % of unprotected", Format.percent(share), [share],
                    share >= 0.8))
        }
        for workload in results.workloads(TrafficPart.part) where workload.hasPrefix("redis") {
            func rate(_ peer: String) -> Double {
                results.summary(TrafficPart.part, workload, peer, "throughput").median
            }
            let share = rate(Ftvm.name) / rate(Unprotected.name)
            aims.append(
                aim(
                    "\(workload): 80 % of unprotected", Format.percent(share), [share],
                    share >= 0.8))
        }
        for workload in results.workloads(EpochPart.part) {
            let own = epoch(workload, Ftvm.name, "throughput")
            let others = EpochPart.peers.dropFirst(2).map {
                (peer: $0, speed: epoch(workload, $0, "throughput"))
            }.filter { $0.speed.isFinite }
            guard own.isFinite, let best = others.max(by: { $0.speed < $1.speed }) else { continue }
            aims.append(
                aim(
                    "speed at \(workload) ahead of every peer",
                    "\(Format.number(own, decimals: 0)) against "
                        + "\(Format.number(best.speed, decimals: 0)) /s of \(best.peer)",
                    [own, best.speed], own >= best.speed))
        }
        let echo = results.summary(
            TrafficPart.part, "request and answer, 1 connections", Ftvm.name, "latency p50"
        ).median
        aims.append(
            aim(
                "closed-loop TCP near COLO's 2 ms (at most 2.5)",
                "\(Format.number(echo, decimals: 2)) ms p50", [echo], echo <= 2.5))
        return aims
    }

    private var moves: [Aim] {
        func blackout(_ what: String, _ peer: String, _ measure: String) -> Double {
            results.summary(BlackoutPart.part, what, peer, measure).median
        }
        let kill = blackout("kill, 256 MiB", Ftvm.name, "blackout")
        let restart = blackout("kill, 256 MiB", BlackoutPart.restart, "blackout")
        let what = "planned move, 4 GiB"
        return [
            aim(
                "silence after a kill at most 1/10 of a restart's",
                "\(Format.number(kill, decimals: 0)) against "
                    + "\(Format.number(restart, decimals: 0)) ms, 1/"
                    + Format.number(restart / kill),
                [kill, restart], kill * 10 <= restart)
        ]
            + ["blackout", "total"].map { measure in
                let own = blackout(what, Ftvm.name, measure)
                let other = blackout(what, BlackoutPart.migration, measure)
                return aim(
                    "planned move of 4 GiB at most 1/5 of a live migration: "
                        + (measure == "total" ? "duration in all" : "silence"),
                    "\(Format.number(own, decimals: 0)) against "
                        + "\(Format.number(other, decimals: 0)) ms, 1/"
                        + Format.number(other / own),
                    [own, other], own * 5 <= other)
            }
    }

    private var idle: [Aim] {
        let cost = results.summary(PairsPart.part, "1 pair", Ftvm.name, "ftvmd CPU").median
        let many = results.summary(PairsPart.part, "16 pairs", Ftvm.name, "ftvmd CPU").median
        return [
            aim(
                "ftvmd under 3 % of a core with one idle pair", Format.number(cost) + " %", [cost],
                cost < 3),
            aim(
                "16 pairs on a host work", "they do, with \(Format.number(many)) % of a core",
                [many], many.isFinite),
        ]
    }
}
