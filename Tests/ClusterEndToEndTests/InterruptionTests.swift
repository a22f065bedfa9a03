import ControlAPI
import EndToEndSupport
import Foundation
import Lab
import Model
import Testing

/// `ftvmd` dies at named points of a failover, on either side, and is started again by its host. (Those within a
/// promotion are `EndToEndTests`' Faults.)
extension ClusterEndToEnd {
    /// Of the pair's record: the old primary's host says that it is lost, another claims it.
    static let failoverPoints = [
        "failover.telling-loss", "failover.loss-told", "failover.claiming", "failover.claimed",
    ]
    /// Of the fence of a host between machines.
    static let fencePoints = ["fence.marking", "fence.marked", "fence.proving", "fence.proven"]

    /// All of them in a full run; one of them, another one each time, otherwise.
    static func chosen(_ points: [String], _ test: String) throws -> [String] {
        guard !isFull else { return points }
        var random = Settings.random(test)
        return [try #require(points.randomElement(using: &random))]
    }

    /// Every such point in the sources is in one of the lists here.
    @Test static func everyPointOfAFailoverIsTested() throws {
        let found = try Fault.pointsInSources().filter {
            $0.hasPrefix("fence.") || $0.hasPrefix("failover.")
        }
        #expect(found.sorted() == (failoverPoints + fencePoints).sorted())
    }

    /// The pair's primary is lost by `strike`, and some `ftvmd` dies over it.
    static func dies(
        at point: String, _ lab: TestLab, armed: (PairView) -> [HostName],
        strike: (PairView) async throws -> Void
    ) async throws {
        for _ in 1...rounds {
            let (guest, before) = try await lab.protectedDemo()
            let fault = Fault(lab, point, pass: 1)
            try await fault.arm(armed(before))
            let ready = try await lab.protected()
            try #require(
                ready.primary == before.primary && ready.generation == before.generation)
            let covered = try await guest.covered()
            let watch = PrimaryWatch(lab, try #require(before.segment))
            try await strike(before)
            try await fault.strikes()
            let pair = try await lab.protected("protected after \(fault)") {
                $0.generation > before.generation
            }
            // A generation that an interrupted claim may have used up is not used again.
            #expect(pair.generation.number <= before.generation.number + 2)
            try await guest.goesOn(from: covered)
            let report = try await watch.finish()
            #expect(report.violations == [])
            #expect(report.writers.first?.host == before.primary, "\(report.writers)")
            #expect(report.writers.last?.host == pair.primary, "\(report.writers)")
            try await fault.disarm()
            for host in lab.hosts where !lab.livingHosts.contains(host) {
                try await lab.start(host)
            }
            try await lab.allOnline()
            try await lab.expectNoLeak(try await lab.protected())
        }
    }
}

extension ClusterEndToEnd.Failovers {
    @Test func ftvmdDiesAtAPointOfAFailover() async throws {
        let lab = try TestLab.here()
        try await lab.prepare()
        for point in try ClusterEndToEnd.chosen(ClusterEndToEnd.failoverPoints, "failover") {
            try await ClusterEndToEnd.dies(at: point, lab, armed: { _ in lab.hosts }) { pair in
                try await lab.presentQEMU(pair.primary).kill()
            }
        }
    }
}

extension ClusterEndToEnd.Machines {
    @Test func ftvmdDiesAtAPointOfAFence() async throws {
        let lab = try TestLab.here()
        try await lab.prepare { _ in ClusterEndToEnd.fences(lab, "fence_liar") }
        for point in try ClusterEndToEnd.chosen(ClusterEndToEnd.fencePoints, "fence") {
            try await ClusterEndToEnd.dies(
                at: point, lab, armed: { pair in lab.hosts.filter { $0 != pair.primary } }
            ) { pair in
                try await lab.kill(pair.primary)
            }
        }
    }
}
