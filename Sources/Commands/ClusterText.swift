import ControlAPI
import Model

/// Hosts, events and pools as people read them.
package enum ClusterText {
    package static func table(_ hosts: [HostView]) -> String {
        var table = TextTable([
            .init("NAME"), .init("STATE"), .init("HEARTBEAT", alignRight: true),
            .init("PRIMARIES"), .init("SECONDARIES"), .init("AVAILABLE", alignRight: true),
            .init("POOLS"), .init("FTVMD"), .init("LIBVIRT"), .init("QEMU"),
        ])
        for host in hosts {
            table.add([
                host.name.text, state(host),
                heartbeat(host),
                names(host.primaries), names(host.secondaries),
                HumanText.bytes(roundedToMebibytes(host.memoryAvailableBytes)), names(host.pools),
                host.versions.ftvmd, host.versions.libvirt, host.versions.qemu,
            ])
        }
        let fences = hosts.compactMap(\.membership).filter {
            $0.fence?.incarnation == $0.incarnation
        }
        // Below, as what a fence came to is longer than any column.
        return ([table.text()] + fences.map(FenceText.summary)).joined(separator: "\n")
    }

    private static func state(_ host: HostView) -> String {
        var words = [host.state.rawValue]
        if host.maintenance != nil {
            let isEmpty = host.primaries.isEmpty && host.secondaries.isEmpty
            words.append(isEmpty ? "drained" : "draining")
        }
        if let member = host.membership, let fence = member.fence,
            fence.incarnation == member.incarnation
        {
            words.append(fence.method == nil ? "to be fenced" : "fenced")
        }
        return words.joined(separator: ", ")
    }

    /// `pool 40 ms ±3 ms, store 610 ms, udp 2.1 s!`
    private static func heartbeat(_ host: HostView) -> String? {
        guard let ways = host.ways, !ways.isEmpty else {
            return host.heartbeatAgeMilliseconds.map { HumanText.duration(milliseconds: $0) }
        }
        return ways.map { way in
            var text =
                "\(way.way.rawValue) \(HumanText.duration(milliseconds: way.ageMilliseconds))"
            if way.jitterMilliseconds >= 1, way.way != .store {
                text += " ±\(HumanText.duration(milliseconds: way.jitterMilliseconds))"
            }
            return way.heard || way.way == .store ? text : text + "!"
        }.joined(separator: ", ")
    }

    /// One line an event. Widths do not depend on the events, so that `--follow` keeps its columns.
    package static func table(
        _ events: [ClusterEvent], header: Bool, dateText: (Double) -> String
    ) -> String {
        var table = TextTable([
            .init("NUMBER", alignRight: true), .init("TIME", minimumWidth: 19),
            .init("HOST", minimumWidth: 6), .init("PAIR", minimumWidth: 10),
            .init("EVENT", minimumWidth: 17), .init("MESSAGE"),
        ])
        for event in events {
            table.add([
                "\(event.number)", dateText(event.time), event.host.text, event.pair?.text,
                event.kind.rawValue, message(event),
            ])
        }
        return table.text(header: header)
    }

    package static func table(_ pools: [PoolView]) -> String {
        var table = TextTable([
            .init("NAME"), .init("KIND"), .init("PAGES", alignRight: true),
            .init("SIZE", alignRight: true), .init("FREE", alignRight: true),
            .init("SEGMENTS", alignRight: true), .init("HOSTS"), .init("PATH"),
            .init("PROBLEM"),
        ])
        for pool in pools {
            table.add([
                pool.name.text, pool.kind.rawValue, HumanText.bytes(pool.pageSizeBytes),
                pool.capacityBytes.map { HumanText.bytes($0) },
                pool.freeBytes.map { HumanText.bytes(roundedToMebibytes($0)) },
                "\(pool.segmentCount)", names(pool.hosts), pool.path, pool.problem?.message,
            ])
        }
        return table.text()
    }

    package static func detail(_ detail: PoolDetailView) -> String {
        let pool = detail.pool
        var block = DetailBlock(pool.name.text)
        block.add("kind", "\(pool.kind.rawValue), pages of \(HumanText.bytes(pool.pageSizeBytes))")
        block.add("path", "\(pool.path) on \(pool.host)")
        block.add("size", pool.capacityBytes.map { HumanText.bytes($0) } ?? "no limit of its own")
        block.add("free", pool.freeBytes.map { HumanText.bytes($0) })
        block.add("hosts", names(pool.hosts))
        block.add("problem", pool.problem.map { "\($0)" })
        block.add("segments", "\(detail.segments.count)")
        let segments = table(detail.segments)
        return segments.isEmpty ? block.text : block.text + "\n\n" + segments
    }

    private static func table(_ segments: [SegmentView]) -> String {
        var table = TextTable([
            .init("SEGMENT"), .init("PAIR"), .init("RAM", alignRight: true),
            .init("RESERVED", alignRight: true), .init("PAGES", alignRight: true),
            .init("GENERATION", alignRight: true), .init("EPOCH", alignRight: true),
            .init("UNDO LOG", alignRight: true), .init("LOCK"), .init("BOUND TO"),
            .init("NODES"), .init("PROBLEM"),
        ])
        for segment in segments {
            table.add([
                segment.name, segment.pair?.text ?? "(left over)",
                HumanText.bytes(segment.ramBytes), HumanText.bytes(segment.reservedBytes),
                HumanText.bytes(segment.pageSizeBytes), segment.generation?.description,
                segment.epoch?.description, undo(segment),
                segment.primaryLockHeld.map { $0 ? "held" : "free" },
                segment.numaNodes.isEmpty
                    ? nil : segment.numaNodes.map { "\($0)" }.joined(separator: ","),
                placement(segment), segment.problem?.message,
            ])
        }
        return table.text()
    }

    /// `0: 128 MiB, 1: 128 MiB`.
    private static func placement(_ segment: SegmentView) -> String {
        segment.placement.map { "\($0.node): \(HumanText.bytes($0.bytes))" }
            .joined(separator: ", ")
    }

    private static func undo(_ segment: SegmentView) -> String? {
        guard let capacity = segment.undoCapacityEntries else { return nil }
        guard let used = segment.undoUsedEntries else { return "\(capacity)" }
        return "\(used)/\(capacity)"
    }

    private static func message(_ event: ClusterEvent) -> String {
        guard !event.figures.isEmpty else { return event.message }
        let figures = event.figures.sorted { $0.key < $1.key }.map { name, value in
            let places = value == value.rounded() ? 0 : 1
            return "\(name) \(HumanText.decimal(value, places: places))"
        }
        return "\(event.message) (\(figures.joined(separator: ", ")))"
    }

    private static func names(_ names: [some CustomStringConvertible]) -> String {
        names.map { "\($0)" }.joined(separator: ",")
    }

    /// Free memory changes with every look; below a mebibyte nobody cares.
    private static func roundedToMebibytes(_ bytes: UInt64) -> UInt64 {
        bytes < 1 << 20 ? bytes : bytes & ~((1 << 20) - 1)
    }
}
