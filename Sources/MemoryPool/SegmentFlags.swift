/// Facts about a segment that a restarted `ftvmd`, on whatever host, must know.
package struct SegmentFlags: OptionSet, Sendable, Hashable, Codable, CustomStringConvertible {
    package let rawValue: UInt64
    package init(rawValue: UInt64) { self.rawValue = rawValue }

    /// QEMU was stopped by a commit, not by a user, and must be resumed.
    package static let pausedByCommit = SegmentFlags(rawValue: 1 << 0)
    /// The primary's QEMU has the segment mapped as its guest RAM.
    package static let grafted = SegmentFlags(rawValue: 1 << 1)
    /// The pair is being disabled: the segment's contents are being given back.
    package static let disabling = SegmentFlags(rawValue: 1 << 2)
    /// A user has paused the guest: whoever goes on from the last commit must not resume it.
    package static let pausedByUser = SegmentFlags(rawValue: 1 << 3)

    package var names: [String] {
        var names: [String] = []
        if contains(.pausedByCommit) { names.append("paused-by-commit") }
        if contains(.grafted) { names.append("grafted") }
        if contains(.disabling) { names.append("disabling") }
        if contains(.pausedByUser) { names.append("paused-by-user") }
        let unknown = rawValue & ~0b1111
        if unknown != 0 { names.append("0x" + String(unknown, radix: 16)) }
        return names
    }

    package var description: String { names.isEmpty ? "none" : names.joined(separator: ", ") }
}
