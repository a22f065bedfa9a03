import Model

/// Reports of drills as people read them.
package enum DrillText {
    package static func page(_ report: DrillReport) -> String {
        var block = DetailBlock("drill \(report.kind.rawValue) of \(report.pair)")
        block.add("verdict", report.verdict.rawValue.uppercased())
        for problem in report.problems { block.add("  problem", problem) }
        block.add("from, to", "\(report.from), \(report.to?.text ?? "unknown")")
        block.add("detection", duration(report.detectionMilliseconds))
        block.add("fence", duration(report.fenceMilliseconds))
        block.add("promotion", duration(report.promotionMilliseconds))
        block.add("blackout", blackout(report))
        block.add("re-protection", duration(report.reprotectionMilliseconds))
        block.add("committed epochs lost", report.committedEpochsLost.map { "\($0)" })
        block.add(
            "released packets lost",
            report.releasedPacketsLost.map { "\($0)" } ?? "not counted: no network gate")
        if let probe = report.probe {
            block.add(
                "probe",
                "\(probe.target): \(probe.answered) of \(probe.sent) answered, longest gap before "
                    + HumanText.duration(milliseconds: probe.longestGapBeforeMilliseconds))
        }
        block.add("ends protected", report.endsProtected ? "yes" : "NO")
        block.add("id", report.id)
        return block.text
    }

    package static func table(_ reports: [DrillReport], dateText: (Double) -> String) -> String {
        var table = TextTable([
            .init("TIME"), .init("PAIR"), .init("KIND"), .init("FROM"), .init("TO"),
            .init("VERDICT"), .init("BLACKOUT", alignRight: true), .init("SEEN BY"),
            .init("RE-PROTECTION", alignRight: true), .init("PROBLEMS"),
        ])
        for report in reports {
            table.add([
                dateText(report.startedAt), report.pair.text, report.kind.rawValue,
                report.from.text, report.to?.text, report.verdict.rawValue,
                duration(report.blackoutMilliseconds),
                report.blackoutMilliseconds == nil ? nil : report.blackoutSource,
                duration(report.reprotectionMilliseconds),
                report.problems.joined(separator: "; "),
            ])
        }
        return table.text()
    }

    private static func blackout(_ report: DrillReport) -> String? {
        guard let seen = duration(report.blackoutMilliseconds) else { return nil }
        guard report.blackoutSource == "probe" else { return "\(seen), as the daemons saw it" }
        let daemons = duration(report.daemonBlackoutMilliseconds).map { "; \($0) for the daemons" }
        return "\(seen), as the probe saw it\(daemons ?? "")"
    }

    private static func duration(_ milliseconds: Double?) -> String? {
        milliseconds.map { HumanText.duration(milliseconds: $0) }
    }
}
