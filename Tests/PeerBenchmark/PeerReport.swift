import BenchmarkSupport
import Foundation
import Model

/// Writes what was measured into the document, between its marks, and the plots into `plots/`
/// beside it.
struct PeerReport {
    let results: BenchmarkResults

    private var parts: [(name: String, text: String)] {
        [
            ("peers aims", aims), ("peers epochs", epochs), ("peers sizes", sizes),
            ("peers moves", moves), ("peers traffic", traffic), ("peers pairs", pairs),
            ("peers machine", machine),
        ]
    }

    /// All tables.
    var text: String { parts.map(\.text).joined(separator: "\n\n") }

    func write(to document: String) throws {
        var text = try String(contentsOfFile: document, encoding: .utf8)
        for (name, part) in parts {
            guard let new = DocumentPart.replace(name, in: text, with: part) else {
                throw FtvmError(
                    .failedPrecondition, "\(document) has no place for '\(name)'",
                    advice: "put '<!-- begin \(name) -->' and '<!-- end \(name) -->' into it")
            }
            text = new
        }
        let plots = URL(fileURLWithPath: document).deletingLastPathComponent()
            .appendingPathComponent("plots")
        try FileManager.default.createDirectory(at: plots, withIntermediateDirectories: true)
        for (name, chart) in [("pauses", pauseChart), ("blackouts", blackoutChart)] {
            try chart.text.write(
                to: plots.appendingPathComponent("\(name).svg"), atomically: true, encoding: .utf8)
        }
        try text.write(toFile: document, atomically: true, encoding: .utf8)
    }

    // MARK: - How it was measured

    private var machine: String {
        var lines = results.machine.sorted { $0.key < $1.key }.map { "- \($0.key): \($0.value)" }
        for run in results.runs {
            lines.append(
                "- part `\(run.part)`\(run.isQuick ? " (`--quick`)" : ""): \(run.date), "
                    + "\(run.rounds) rounds, \(Int(run.seconds)) s, load average "
                    + "\(Format.number(run.loadBefore)) before and "
                    + "\(Format.number(run.loadAfter)) after")
        }
        return lines.joined(separator: "\n")
    }

    private func remarks(_ part: String) -> String {
        let mine = results.remarks.filter { $0.part == part }
        guard !mine.isEmpty else { return "" }
        return "\nNot measured, or not always:\n\n"
            + mine.map { "- \($0.peer): \($0.text)" }.joined(separator: "\n") + "\n"
    }

    // MARK: - Epochs

    private func epoch(_ workload: String, _ peer: String, _ measure: String) -> Summary {
        results.summary(EpochPart.part, workload, peer, measure)
    }

    private var epochPeers: [String] {
        let present = results.peers(EpochPart.part)
        return EpochPart.peers.filter(present.contains)
    }

    private var epochs: String {
        var pauses = MarkdownTable(["pause, ms: p50 / p99 / max"] + protectingPeers)
        var speeds = MarkdownTable(["speed of the guest", Unprotected.name] + protectingPeers)
        var cores = MarkdownTable(["CPU, cores"] + epochPeers)
        for workload in results.workloads(EpochPart.part) {
            pauses.add([workload] + protectingPeers.map { pauseText(workload, $0) })
            cores.add(
                [workload] + epochPeers.map { epoch(workload, $0, "cores").text(decimals: 2) })
            let free = epoch(workload, Unprotected.name, "throughput")
            guard free.count > 0 else { continue }
            speeds.add(
                [workload, free.text(decimals: 0) + " /s"]
                    + protectingPeers.map {
                        Format.percent(epoch(workload, $0, "throughput").median / free.median)
                    })
        }
        return pauses.text + "\n![Pauses](plots/pauses.svg)\n\n" + speeds.text + "\n" + cores.text
            + remarks(EpochPart.part)
    }

    private var protectingPeers: [String] { epochPeers.filter { $0 != Unprotected.name } }

    private func pauseText(_ workload: String, _ peer: String) -> String {
        let measures = ["pause p50", "pause p99", "pause max"].map { epoch(workload, peer, $0) }
        guard measures[0].count > 0 else { return "none" }
        var texts = measures.map { Format.number($0.median) }
        texts[0] = measures[0].text()
        return texts.joined(separator: " / ")
    }

    private var pauseChart: SVGChart {
        var chart = SVGChart(
            title: "Pause of the guest, median (spread of the rounds), a checkpoint every 100 ms",
            unit: "ms", series: protectingPeers.isEmpty ? [Ftvm.name] : protectingPeers)
        guard !protectingPeers.isEmpty else { return chart }
        for workload in results.workloads(EpochPart.part) {
            chart.add(
                workload.replacing(" pages/s", with: ""),
                protectingPeers.map { peer in
                    let summary = epoch(workload, peer, "pause p50")
                    return summary.count > 0 ? SVGChart.Bar(summary) : nil
                })
        }
        return chart
    }

    private var sizes: String {
        var table = MarkdownTable([
            "memory", "pause p50, ms", "pause p99, ms", "whole commit p50, ms", "dirty pages",
        ])
        for size in results.workloads(SizePart.part) {
            func text(_ measure: String, _ decimals: Int = 2) -> String {
                results.summary(SizePart.part, size, Ftvm.name, measure).text(decimals: decimals)
            }
            table.add([
                size, text("pause p50"), text("pause p99"), text("commit p50"),
                text("dirty pages", 0),
            ])
        }
        return table.text + remarks(SizePart.part)
    }

    // MARK: - Moves

    private var moves: String {
        var table = MarkdownTable(["what", "by", "silence or standstill, ms", "in all, ms"])
        for part in [BlackoutPart.part, MovePart.part] {
            for workload in results.workloads(part) {
                for peer in results.peers(part) {
                    let blackout = results.summary(part, workload, peer, "blackout")
                    let total = results.summary(part, workload, peer, "total")
                    guard blackout.count + total.count > 0 else { continue }
                    table.add([
                        workload, peer, blackout.text(decimals: 0) + count(blackout),
                        total.text(decimals: 0),
                    ])
                }
            }
        }
        return table.text + "\n![Blackouts](plots/blackouts.svg)\n" + remarks(BlackoutPart.part)
            + remarks(MovePart.part)
    }

    private func count(_ summary: Summary) -> String {
        summary.count > 1 ? ", \(summary.count) times" : ""
    }

    private func blackout(_ what: String, _ size: String, _ peer: String) -> Summary {
        results.summary(BlackoutPart.part, "\(what), \(size)", peer, "blackout")
    }

    private var blackoutChart: SVGChart {
        let series = [Ftvm.name, BlackoutPart.restart, BlackoutPart.migration]
        var chart = SVGChart(
            title: "Silence that a client hears, median (spread)", unit: "ms", series: series)
        for workload in results.workloads(BlackoutPart.part) {
            chart.add(
                workload,
                series.map { peer in
                    let summary = results.summary(BlackoutPart.part, workload, peer, "blackout")
                    return summary.count > 0 ? SVGChart.Bar(summary) : nil
                })
        }
        return chart
    }

    // MARK: - Traffic and pairs

    private var traffic: String {
        var table = MarkdownTable([
            "workload", "unprotected", "ftvm", "share", "latency unprotected, p50 / p99 ms",
            "latency ftvm, p50 / p99 ms",
        ])
        let parts = [TrafficPart.part, StoragePart.part]
        for (part, workload) in parts.flatMap({ part in
            results.workloads(part).map { (part, $0) }
        }) {
            func summary(_ peer: String, _ measure: String) -> Summary {
                results.summary(part, workload, peer, measure)
            }
            let free = summary(Unprotected.name, "throughput")
            let kept = summary(Ftvm.name, "throughput")
            let unit =
                results.samples.first {
                    $0.part == part && $0.workload == workload
                        && $0.measure == "throughput"
                }?.unit ?? ""
            func latency(_ peer: String) -> String {
                let middle = summary(peer, "latency p50")
                guard middle.count > 0 else { return "" }
                return Format.number(middle.median) + " / "
                    + Format.number(summary(peer, "latency p99").median)
            }
            table.add([
                workload, "\(free.text(decimals: 0)) \(unit)", "\(kept.text(decimals: 0)) \(unit)",
                Format.percent(kept.median / free.median), latency(Unprotected.name),
                latency(Ftvm.name),
            ])
        }
        return table.text + parts.map(remarks).joined()
    }

    private var pairs: String {
        let measures = [
            "ftvmd CPU", "libvirtd CPU", "qemu CPU", "segment above RAM", "waiting QEMU",
            "ftvmd, two hosts",
        ]
        var table = MarkdownTable(["idle"] + measures)
        for workload in results.workloads(PairsPart.part) {
            let peer =
                results.summary(PairsPart.part, workload, Ftvm.name, "qemu CPU").count > 0
                ? Ftvm.name : Unprotected.name
            table.add(
                [workload]
                    + measures.map { measure in
                        let unit = measure.hasSuffix("CPU") ? " %" : " MiB"
                        let summary = results.summary(PairsPart.part, workload, peer, measure)
                        return summary.count > 0 ? summary.text() + unit : ""
                    })
        }
        return table.text + remarks(PairsPart.part)
    }

    private var aims: String { PeerAims(results: results).text }
}
