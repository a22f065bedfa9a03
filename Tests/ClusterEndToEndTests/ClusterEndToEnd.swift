import EndToEndSupport
import Foundation
import Glibc
import Model
import Testing

/// What hosts decide about each other, for real. One at a time: they look at what is left on the machine.
@Suite(.serialized, .enabled(if: geteuid() == 0, "a lab needs root"))
enum ClusterEndToEnd {
    /// FTVM_CLUSTER_FULL: ten times each instead of once.
    static let isFull = Settings.variable("FTVM_CLUSTER_FULL") != nil
    static let rounds = isFull ? 10 : 1

    static func agent(_ name: String) -> String {
        Settings.repository("Tests/ClusterEndToEndTests/Agents/\(name)")
    }

    /// A `[[fence]]` of every host.
    static func fences(
        _ lab: TestLab, _ name: String, offMilliseconds: Int = 20_000, parameters: String = ""
    ) -> String {
        lab.hosts.map { host in
            """
            [[fence]]
            host = "\(host)"
            agent = "\(agent(name))"
            off_milliseconds = \(offMilliseconds)
            [fence.parameters]
            plug = "\(host)"
            directory = "\(lab.powerDirectory)"

            """
        }.joined() + parameters
    }

    /// From a host's death (wall clock) to the event that says that a promotion was decided, in milliseconds.
    static func decision(
        _ lab: TestLab, after number: UInt64, death: UInt64, of pair: String = TestLab.demo
    ) async throws -> Double {
        let events = try await lab.events(after: number)
        let event = try #require(
            events.first { $0.kind == .promotionStarted && $0.pair?.text == pair }, "\(events)")
        let offset =
            Date().timeIntervalSince1970 * 1_000 - Double(monotonicNanoseconds()) / 1_000_000
        return event.time * 1_000 - offset - Double(death) / 1_000_000
    }

    static func report(_ what: String, _ times: [Double]) {
        let sorted = times.sorted()
        guard !sorted.isEmpty else { return }
        let words = sorted.map { "\(Int($0.rounded()))" }.joined(separator: " ")
        print("\(what), ms: median \(Int(sorted[sorted.count / 2].rounded())), all: \(words)")
    }
}
