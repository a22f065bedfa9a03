import Foundation
import Glibc
import Model
import Synchronization
import Testing

/// Looks from outside, every few milliseconds, at who has a guest's RAM mapped for writing: never two at once,
/// whatever the hosts believe.
package final class PrimaryWatch: Sendable {
    /// One QEMU with write access.
    package struct Writer: Sendable, Hashable {
        package let host: HostName
        package let pid: Int32
        /// When it was first and last seen to have it, on the monotonic clock, in nanoseconds.
        package var from: UInt64
        package var to: UInt64
    }

    package struct Report: Sendable {
        package var violations: [String] = []
        package var looks = 0
        /// In the order in which they were first seen.
        package var writers: [Writer] = []
        /// Between two looks.
        package var longestMilliseconds = 0.0
    }

    private struct State {
        var report = Report()
        var lastLook: UInt64?
        var shallEnd = false
        var hasEnded = false
        /// Processes that were looked at, and whether they are QEMUs.
        var isQEMU: [Int32: Bool] = [:]
    }
    private final class Shared: Sendable {
        let state = Mutex(State())
    }

    private static let pauseMicroseconds: UInt32 = 4_000
    private static let mapBytes = 1 << 20
    private let shared = Shared()

    /// Watches the segment from now on.
    package init(_ lab: TestLab, _ segment: SegmentReference) {
        let file = "/segments/\(segment.name)/ram"
        let root = Self.controlGroups
        let groups = lab.hosts.map { ($0, "\(root)/\(lab.layout.name)/\($0)/cgroup.procs") }
        let thread = Thread { [shared] in
            var buffer = [UInt8](repeating: 0, count: Self.mapBytes)
            while !shared.state.withLock({ $0.shallEnd }) {
                Self.look(shared, groups, file, &buffer)
                usleep(Self.pauseMicroseconds)
            }
            shared.state.withLock { $0.hasEnded = true }
        }
        thread.name = "primary-watch"
        thread.start()
    }

    /// Where cgroup2 is mounted: not in the same place everywhere.
    private static var controlGroups: String {
        let mounts = ProcessView(pid: getpid()).text("mounts").split(separator: "\n")
        let fields = mounts.map { $0.split(separator: " ") }.first {
            $0.count > 2 && $0[2] == "cgroup2"
        }
        return fields.map { String($0[1]) } ?? "/sys/fs/cgroup"
    }

    deinit { shared.state.withLock { $0.shallEnd = true } }

    private static func look(
        _ shared: Shared, _ groups: [(HostName, String)], _ file: String, _ buffer: inout [UInt8]
    ) {
        var found: [Writer] = []
        for (host, group) in groups {
            for pid in pids(group, &buffer) where isQEMU(pid, shared) {
                let now = monotonicNanoseconds()
                if canWrite(pid, file, &buffer) {
                    found.append(Writer(host: host, pid: pid, from: now, to: now))
                }
            }
        }
        // Seen before the others, and seen again after them, with a thread that can still run: both at once.
        if found.count > 1 {
            found = found.filter {
                canWrite($0.pid, file, &buffer) && !ProcessView(pid: $0.pid).isEnding
            }
        }
        let now = monotonicNanoseconds()
        shared.state.withLock { state in
            if let last = state.lastLook {
                let milliseconds = Double(now - last) / 1_000_000
                state.report.longestMilliseconds = max(
                    state.report.longestMilliseconds, milliseconds)
            }
            state.lastLook = now
            state.report.looks += 1
            for writer in found {
                if let index = state.report.writers.firstIndex(where: {
                    $0.pid == writer.pid && $0.host == writer.host
                }) {
                    state.report.writers[index].to = writer.to
                } else {
                    state.report.writers.append(writer)
                }
            }
            if found.count > 1 {
                let names = found.map { "\($0.host) (\($0.pid))" }.joined(separator: " and ")
                state.report.violations.append("\(names) may write at once")
            }
        }
    }

    private static func read(_ path: String, _ buffer: inout [UInt8]) -> Int {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return 0 }
        defer { close(descriptor) }
        var length = 0
        while length < buffer.count {
            let capacity = buffer.count - length
            let got = buffer.withUnsafeMutableBytes { bytes in
                Glibc.read(descriptor, bytes.baseAddress?.advanced(by: length), capacity)
            }
            guard got > 0 else { break }
            length += got
        }
        return length
    }

    private static func pids(_ group: String, _ buffer: inout [UInt8]) -> [Int32] {
        let length = read(group, &buffer)
        return String(decoding: buffer[..<length], as: UTF8.self).split(separator: "\n")
            .compactMap { Int32($0) }
    }

    private static func isQEMU(_ pid: Int32, _ shared: Shared) -> Bool {
        if let known = shared.state.withLock({ $0.isQEMU[pid] }) { return known }
        let name = ProcessView(pid: pid).text("comm")
        let result = name.hasPrefix("qemu-system")
        // A fork of libvirtd that has not become a QEMU yet is looked at again.
        if result { shared.state.withLock { $0.isQEMU[pid] = true } }
        return result
    }

    /// A line of its maps is of the file, and has `w`.
    private static func canWrite(_ pid: Int32, _ file: String, _ buffer: inout [UInt8]) -> Bool {
        // The last byte stays free, for the end of the text.
        let length = min(read("/proc/\(pid)/maps", &buffer), buffer.count - 1)
        buffer[length] = 0
        return buffer.withUnsafeBytes { bytes -> Bool in
            guard let base = bytes.assumingMemoryBound(to: CChar.self).baseAddress else {
                return false
            }
            var from = 0
            while let hit = strstr(base + from, file) {
                let at = base.distance(to: hit)
                var start = at
                while start > 0, bytes[start - 1] != UInt8(ascii: "\n") { start -= 1 }
                // Such as `7f..-7f.. rw-s ...`.
                let line = bytes[start..<at]
                if let space = line.firstIndex(of: UInt8(ascii: " ")), space + 2 < at,
                    bytes[space + 2] == UInt8(ascii: "w")
                {
                    return true
                }
                from = at + 1
            }
            return false
        }
    }

    /// Who may write now.
    package var current: [HostName] {
        shared.state.withLock { state in
            let last = state.lastLook ?? 0
            return state.report.writers.filter { $0.to + 50_000_000 > last }.map(\.host)
        }
    }

    /// Ends, and gives what was seen.
    package func finish() async throws -> Report {
        shared.state.withLock { $0.shallEnd = true }
        try await eventually("the watch ends", seconds: 10, period: .milliseconds(5)) {
            shared.state.withLock { $0.hasEnded } ? () : nil
        }
        return shared.state.withLock { $0.report }
    }
}
