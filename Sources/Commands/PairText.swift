import ControlAPI
import Model

/// Pairs as people read them.
package enum PairText {
    /// One line a pair; the empty text for none.
    package static func table(_ pairs: [PairView]) -> String {
        var table = TextTable([
            .init("NAME"), .init("STATE"), .init("PRIMARY"), .init("SECONDARY"),
            .init("GENERATION", alignRight: true), .init("EPOCH", alignRight: true),
            .init("MEMORY", alignRight: true), .init("REASON"),
        ])
        for pair in pairs {
            table.add([
                pair.name.text, pair.state.rawValue, pair.primary.text, secondary(pair),
                pair.generation.description, pair.epoch?.description,
                HumanText.bytes(pair.memoryBytes), reason(pair),
            ])
        }
        return table.text()
    }

    /// `3 pairs: 2 protected, 1 need-secondary`.
    package static func summary(_ pairs: [PairView]) -> String {
        let counts = PairState.allCases.compactMap { state -> String? in
            let count = pairs.count { $0.state == state }
            return count == 0 ? nil : "\(count) \(state.rawValue)"
        }
        return "\(HumanText.count(pairs.count, "pair")): \(counts.joined(separator: ", "))"
    }

    /// Everything about one pair.
    package static func detail(_ pair: PairView) -> String {
        var block = DetailBlock(pair.name.text)
        let wanted = pair.desired == .disabled && pair.state != .disabled ? " (to be disabled)" : ""
        block.add("state", pair.state.rawValue + wanted)
        block.add("reason", pair.reason)
        block.add("progress", pair.progress.map { _ in PairWait.progressText(pair) })
        block.add("primary", pair.primary.text)
        block.add("secondary", secondary(pair))
        block.add(
            "promotion",
            pair.promoting.map { "under way on \($0)" }
                ?? (pair.promotionRequested ? "asked for" : nil))
        block.add(
            "switchover",
            pair.switchover.map {
                "to \($0.target) (\($0.requestedBy)): \(PairWait.moveText(pair))"
            })
        block.add("generation", pair.generation.description)
        block.add("epoch", epoch(pair))
        block.add("memory", memory(pair))
        block.add("segment", pair.segment.map { "\($0.pool)/\($0.name)" })
        if let statistics = pair.statistics {
            add(statistics, maximum: pair.epochMaximumMilliseconds, to: &block)
        } else {
            block.add("epochs", "at most \(pair.epochMaximumMilliseconds) ms each")
        }
        block.add("uuid", pair.uuid)
        if let error = pair.lastError {
            block.add("last error", error.message)
            block.add("  why", error.cause)
            block.add("  next", error.advice)
        }
        return block.text
    }

    private static func add(
        _ statistics: EpochStatistics, maximum: Int, to block: inout DetailBlock
    ) {
        let rate = HumanText.decimal(statistics.epochRatePerSecond)
        block.add(
            "epochs",
            "\(rate) a second, at most \(maximum) ms each, \(statistics.commits) commits")
        let median = HumanText.duration(microseconds: statistics.pauseMedianMicroseconds)
        let worst = HumanText.duration(microseconds: statistics.pauseP99Microseconds)
        block.add("pause", "median \(median), p99 \(worst)")
        if let held = statistics.heldFrames {
            var text = "\(held) now"
            if let released = statistics.releasedFrames { text += ", \(released) released" }
            if let median = statistics.holdMedianMicroseconds {
                text += ", held median \(HumanText.duration(microseconds: median))"
            }
            if let worst = statistics.holdP99Microseconds {
                text += ", p99 \(HumanText.duration(microseconds: worst))"
            }
            block.add("held packets", text)
        }
        block.add(
            "lag",
            HumanText.duration(milliseconds: statistics.lastCommitAgeMilliseconds)
                + " behind the guest")
        block.add(
            "dirty pages",
            "median \(statistics.dirtyPagesMedian) an epoch, "
                + "\(statistics.faults) faults")
        let used = statistics.undoUsedEntries
        let capacity = statistics.undoCapacityEntries
        let percent = capacity == 0 ? 0 : Double(used) / Double(capacity) * 100
        block.add(
            "undo log",
            "\(used) of \(capacity) entries (\(HumanText.decimal(percent, places: 0)) %), "
                + HumanText.count(Int(clamping: statistics.overflows), "early commit"))
        if let disks = statistics.disks { add(disks, to: &block) }
    }

    private static func add(_ disks: DiskStatistics, to block: inout DetailBlock) {
        let percent =
            disks.capacityBytes == 0
            ? 0 : Double(disks.waitingBytes) / Double(disks.capacityBytes) * 100
        var text =
            "\(HumanText.bytes(disks.waitingBytes)) of \(HumanText.bytes(disks.capacityBytes)) wait "
            + "(\(HumanText.decimal(percent, places: 0)) %)"
        if disks.ageMilliseconds > 0 {
            text +=
                ", the oldest for "
                + HumanText.duration(milliseconds: Double(disks.ageMilliseconds))
        }
        text += ", \(HumanText.bytes(UInt64(disks.appliedBytesPerSecond))) applied a second"
        block.add("disk log", text)
        if disks.heldRequests > 0 || disks.heldMilliseconds > 0 {
            block.add(
                "back-pressure",
                "\(HumanText.count(Int(clamping: disks.heldRequests), "write")) held now, "
                    + HumanText.duration(milliseconds: Double(disks.heldMilliseconds)) + " in all")
        }
        block.add("disk failure", disks.failure)
    }

    private static func secondary(_ pair: PairView) -> String? {
        guard let host = pair.secondary else { return nil }
        return pair.secondaryReady ? host.text : "\(host) (starting)"
    }

    /// The reason, or what went wrong last where no reason is given.
    private static func reason(_ pair: PairView) -> String? {
        if let progress = pair.progress, pair.reason.isEmpty || pair.reason == progress.step {
            return PairWait.progressText(pair)
        }
        return pair.reason.isEmpty ? pair.lastError?.message : pair.reason
    }

    private static func epoch(_ pair: PairView) -> String? {
        guard let epoch = pair.epoch else { return nil }
        guard let age = pair.statistics?.lastCommitAgeMilliseconds else { return "\(epoch)" }
        return "\(epoch), committed \(HumanText.duration(milliseconds: age)) ago"
    }

    private static func memory(_ pair: PairView) -> String {
        let size = HumanText.bytes(pair.memoryBytes)
        guard let page = pair.pageSizeBytes else { return size }
        return "\(size) in pages of \(HumanText.bytes(page))"
    }
}
