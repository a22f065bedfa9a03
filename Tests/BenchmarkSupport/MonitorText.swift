import Foundation

/// Reads what QEMU's monitor says, for the measurements of QEMU's own ways.
package enum MonitorText {
    /// When an event was sent, in seconds of the wall clock; nil for what is no event.
    package static func time(ofEvent json: String) -> (name: String, seconds: Double)? {
        struct Event: Decodable {
            struct Time: Decodable {
                let seconds: Double
                let microseconds: Double
            }
            let event: String
            let timestamp: Time
        }
        guard let event = try? JSONDecoder().decode(Event.self, from: Data(json.utf8)) else {
            return nil
        }
        return (event.event, event.timestamp.seconds + event.timestamp.microseconds / 1e6)
    }

    /// How long the guest stood still each time, in milliseconds: from each STOP to the RESUME
    /// after it. A pause that began before the first event or has not ended by the last is left
    /// out.
    package static func pauses(_ events: [(name: String, seconds: Double)]) -> [Double] {
        var pauses: [Double] = []
        var stopped: Double?
        for event in events {
            switch event.name {
            case "STOP": stopped = event.seconds
            case "RESUME":
                if let began = stopped { pauses.append((event.seconds - began) * 1_000) }
                stopped = nil
            default: break
            }
        }
        return pauses
    }

    /// What `query-migrate` says.
    package struct Migration: Decodable, Equatable, Sendable {
        package var status: String?
        /// Milliseconds.
        package var totalTime: Double?
        package var downtime: Double?
        package var errorDescription: String?

        enum CodingKeys: String, CodingKey {
            case status, downtime
            case totalTime = "total-time"
            case errorDescription = "error-desc"
        }

        /// Whether it goes no further by itself: `colo` is where a migration for COLO ends.
        package var hasEnded: Bool {
            ["completed", "failed", "cancelled", "colo"].contains(status ?? "")
        }
    }
}

/// Reads what `redis-benchmark --csv` prints: a line for each test, its name and its requests a
/// second first.
package enum RedisBenchmarkText {
    package static func rate(of test: String, in output: String) -> Double? {
        for line in output.split(whereSeparator: \.isNewline) {
            let cells = line.split(separator: ",").map { $0.trimmingPrefix("\"") }
            guard cells.count >= 2, cells[0] == "\(test)\"" else { continue }
            return Double(cells[1].prefix { $0 != "\"" })
        }
        return nil
    }
}
