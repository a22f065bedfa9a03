import Foundation

/// What the test client (`ftvm-test-client`) says at its end, one JSON object on the last line of
/// its standard output. Times are on the machine's monotonic clock, in nanoseconds.
package protocol ClientReport: Codable, Sendable {
    /// Everything that must not be, in words; the first ones only.
    var violations: [String] { get }
    /// How many there were.
    var violationCount: Int { get }
}

/// A line on the way there: how far the slowest connection has come, and all together.
package struct ClientProgress: Codable, Sendable, Hashable {
    package var least: Int
    package var total: Int

    package init(least: Int, total: Int) {
        self.least = least
        self.total = total
    }
}

/// A time in which a connection heard nothing.
package struct Gap: Codable, Sendable, Hashable {
    package var connection: Int
    package var from: UInt64
    package var to: UInt64

    package init(connection: Int, from: UInt64, to: UInt64) {
        self.connection = connection
        self.from = from
        self.to = to
    }

    package var milliseconds: Double { Double(to - from) / 1e6 }
}

/// How long answers took, in milliseconds.
package struct LatencyReport: Codable, Sendable, Hashable {
    package var count = 0
    package var mean = 0.0
    package var p50 = 0.0
    package var p90 = 0.0
    package var p99 = 0.0
    package var maximum = 0.0

    package init() {}

    package init(microseconds samples: [UInt32]) {
        let sorted = samples.sorted()
        guard let last = sorted.last else { return }
        func at(_ share: Double) -> Double {
            Double(sorted[min(sorted.count - 1, Int(Double(sorted.count) * share))]) / 1_000
        }
        count = sorted.count
        mean = sorted.reduce(0) { $0 + Double($1) } / Double(count) / 1_000
        (p50, p90, p99) = (at(0.5), at(0.9), at(0.99))
        maximum = Double(last) / 1_000
    }
}

/// Violations in words, of which only the first ones are kept.
package struct Findings: Sendable {
    package private(set) var violations: [String] = []
    package private(set) var count = 0
    private static let kept = 20

    package init() {}

    package mutating func add(_ text: @autoclosure () -> String) {
        count += 1
        if violations.count < Self.kept { violations.append(text()) }
    }

    package mutating func add(_ other: Findings) {
        count += other.count
        violations += other.violations.prefix(max(0, Self.kept - violations.count))
    }
}

/// Of `ftvm-test-client counter`.
package struct CounterReport: ClientReport {
    package var violations: [String] = []
    package var violationCount = 0
    package var connections = 0
    package var replies = 0
    /// Connections that were reset, closed, or silent for too long.
    package var lostConnections = 0
    package var latency = LatencyReport()
    /// Longer than `CounterReport.gapThreshold`, of each connection, in their order.
    package var gaps: [Gap] = []
    package var bootID = ""

    package static let gapThreshold: UInt64 = 20_000_000

    package init() {}
}

/// Of `ftvm-test-client datagrams`.
package struct DatagramReport: ClientReport {
    package var violations: [String] = []
    package var violationCount = 0
    package var sent = 0
    package var answered = 0
    /// Answers that came more than once, the same each time: a network may do that.
    package var repeated = 0
    /// Questions that the guest has got twice.
    package var doubled = 0

    package init() {}
}

/// Of `ftvm-test-client download` and `upload`.
package struct TransferReport: ClientReport {
    package var violations: [String] = []
    package var violationCount = 0
    package var bytes: UInt64 = 0
    package var seconds = 0.0
    /// Hexadecimal, of what arrived.
    package var checksum = ""
    /// Of what was to arrive.
    package var expectedChecksum = ""
    package var gaps: [Gap] = []

    package init() {}
}

/// Of `ftvm-test-client redis`.
package struct RedisReport: ClientReport {
    package var violations: [String] = []
    package var violationCount = 0
    package var acknowledgedWrites = 0
    package var increments = 0
    package var verifiedKeys = 0
    package var lostConnections = 0
    /// What the key `shared` must be at the end: it is raised by each increment.
    package var shared = 0
    package var latency = LatencyReport()

    package init() {}
}

/// Of `ftvm-test-client capture`.
package struct CaptureReport: ClientReport {
    /// A stretch in which the guest's frames came from one port of the switch.
    package struct Stretch: Codable, Sendable, Hashable {
        package var port: String
        package var from: UInt64
        package var to: UInt64
        package var frames: Int

        package init(port: String, from: UInt64, to: UInt64, frames: Int) {
            self.port = port
            self.from = from
            self.to = to
            self.frames = frames
        }
    }

    package var violations: [String] = []
    package var violationCount = 0
    package var frames = 0
    /// Frames that the kernel could not hand to us: with any of them nothing is proved.
    package var dropped = 0
    package var beacons = 0
    /// Beacons that came more than once, the same each time.
    package var repeatedBeacons = 0
    /// Numbers between the first and the last beacon that never came.
    package var missingBeacons = 0
    /// Bytes of TCP that came more than once, the same each time.
    package var repeatedBytes = 0
    /// Of each of the guest's cards, by its MAC address.
    package var stretches: [String: [Stretch]] = [:]

    package init() {}
}
