import Glibc
import Hypervisor

/// The threads that run a guest's CPUs.
package final class VirtualCPUs {
    /// `/proc/PID/task/TID/stat` of each, open.
    private let files: [Int32]

    private struct CPU: Decodable {
        let thread: Int32
        private enum CodingKeys: String, CodingKey { case thread = "thread-id" }
    }

    /// - Returns: nil where they are not to be seen.
    package init?(of process: QEMUProcess, _ monitor: any Monitor) {
        guard
            let cpus = try? monitor.execute("query-cpus-fast").decode([CPU].self), !cpus.isEmpty
        else { return nil }
        let paths = Set(cpus.map(\.thread)).map { "/proc/\(process.processID)/task/\($0)/stat" }
        let files = paths.map { open($0, O_RDONLY | O_CLOEXEC) }
        self.files = files
        guard files.allSatisfy({ $0 >= 0 }) else { return nil }
    }

    deinit { for file in files where file >= 0 { close(file) } }

    /// No CPU of the guest runs in this moment: halted, or kept waiting by QEMU or by us. Some 3 us for each.
    package var areAsleep: Bool { files.allSatisfy(Self.isAsleep) }

    /// proc(5): the state comes after the name, which is in parentheses and may have some itself.
    private static func isAsleep(_ file: Int32) -> Bool {
        withUnsafeTemporaryAllocation(byteCount: 512, alignment: 8) { buffer in
            let length = pread(file, buffer.baseAddress, buffer.count, 0)
            guard length > 0, let end = buffer[..<length].lastIndex(of: UInt8(ascii: ")")),
                end + 2 < length
            else { return false }
            return buffer[end + 2] == UInt8(ascii: "S")
        }
    }
}

/// Looks for the moment in which a guest whose output waits has nothing more to do: its CPUs sleep, and did so at the look
/// before, and it has touched no page between the two (a CPU that waits for us, in a fault, sleeps as well). Nobody
/// loses anything then if it is stopped.
package struct GuestRest: Equatable, Sendable {
    /// The first look comes so long after a frame, the next one so long after the first at which all sleep.
    package static let soon: UInt64 = 60_000
    /// The distance of looks at a guest that works doubles up to this.
    package static let longest: UInt64 = 400_000

    /// When to look next; `.max`: not before there are frames.
    package private(set) var looksAt = UInt64.max
    /// Since when it rests, as far as is known.
    package private(set) var since: UInt64?
    private var asleepAt: UInt64?
    private var touched: UInt64 = 0
    private var distance = Self.soon

    package init() {}

    /// Something has come from the guest, or for it.
    package mutating func stirred(now: UInt64) {
        self = GuestRest()
        looksAt = now + Self.soon
    }

    /// What a look has found.
    /// - Parameter touched: pages in the running epoch.
    package mutating func looked(now: UInt64, areAsleep: Bool, touched: UInt64) {
        if areAsleep, let first = asleepAt, self.touched == touched {
            since = since ?? first
            distance = min(distance * 2, Self.longest)
        } else if areAsleep {
            (asleepAt, since, distance) = (now, nil, Self.soon)
        } else {
            (asleepAt, since) = (nil, nil)
            distance = min(distance * 2, Self.longest)
        }
        self.touched = touched
        looksAt = now + distance
    }
}
