import ControlAPI
import EndToEndSupport
import Foundation
import Glibc
import GuestClients
import Lab
import Model
import Testing

/// Hosts that share no kernel and are cut off from everything there is, or stand still: they end by themselves what
/// others may then go on with. Seen from outside all the while: never two that may write, never two that send.
extension ClusterEndToEnd.Machines {
    static let watchdogSeconds = 3

    @Test func whoIsCutOffEndsItsGuestsBeforeOthersGoOn() async throws {
        let lab = try TestLab.here()
        try await withSelfFence(lab) {
            let (guest, first) = try await lab.protectedDemo()
            var pair = first
            let cuts: [NetworkCut] =
                ClusterEndToEnd.isFull ? NetworkCut.allCases : [.both, .hearsNothing]
            for round in 1...ClusterEndToEnd.rounds {
                for way in cuts {
                    pair = try await cutOffPrimary(lab, guest, pair, way, round)
                }
                pair = try await freezePrimary(lab, guest, pair, round)
                guard ClusterEndToEnd.isFull else { continue }
                for way in cuts { pair = try await cutOffOther(lab, guest, pair, way) }
            }
            try await lab.removeDemo()
        }
    }

    private func cutOffPrimary(
        _ lab: TestLab, _ guest: Guest, _ before: PairView, _ way: NetworkCut, _ round: Int
    ) async throws -> PairView {
        let covered = try await guest.covered()
        let watch = PrimaryWatch(lab, try #require(before.segment))
        let capture = try await beacons(lab, guest)
        let number = try await lab.lastEvent(on: before.secondary)
        let victim = before.primary
        let wasCut = monotonicNanoseconds()
        lab.leaveOut(victim)
        try await lab.cutOff(victim, way)
        let promoted = try await lab.pair("promoted without \(victim), cut off (\(way))") {
            $0.primary == before.secondary && $0.generation > before.generation
        }
        #expect(promoted.generation == before.generation.next)
        let events = try await lab.events(after: number, on: before.secondary)
        #expect(
            events.contains { $0.reason == .fenceProven(victim, .selfFence) },
            "round \(round), \(way): \(events.map(\.message))")
        try await guest.goesOn(from: covered)
        let writers = try await expectOneAtATime(watch, [victim, promoted.primary])
        // By itself: its watchdog would have come later.
        if let old = writers.first, old.to > wasCut {
            let milliseconds = (old.to - wasCut) / 1_000_000
            print("cut off (\(way)), its guest was ended after \(milliseconds) ms")
            #expect(milliseconds < UInt64(Self.watchdogSeconds) * 1_000)
        }
        try await expectOneSender(capture, guest, [victim, promoted.primary])
        try await lab.reconnect(victim, way)
        lab.leaveOut(victim, false)
        #expect(try await lab.status().hosts.allSatisfy { $0.pid != nil })
        let pair = try await lab.protected("protected again with all hosts, \(way)") {
            $0.primary == promoted.primary && $0.generation == promoted.generation
        }
        try await lab.allOnline()
        try await lab.expectNoLeak(pair)
        return pair
    }

    /// The secondary's host: it is replaced. The third one: nothing. And nobody's guest stands still.
    private func cutOffOther(
        _ lab: TestLab, _ guest: Guest, _ start: PairView, _ way: NetworkCut
    ) async throws -> PairView {
        var before = start
        for role in ["secondary", "bystander"] {
            let covered = try await guest.covered()
            let others = lab.hosts.filter { $0 != before.primary }
            let victim = try #require(
                others.first { ($0 == before.secondary) == (role == "secondary") })
            let watch = PrimaryWatch(lab, try #require(before.segment))
            lab.leaveOut(victim)
            try await lab.cutOff(victim, way)
            try await eventually("\(victim) is dead", seconds: 20) { () async throws -> Void? in
                let views = try await lab.ftvm(
                    [HostView].self, "hosts", on: before.primary)
                return views.first { $0.name == victim }?.state == .dead ? () : nil
            }
            let now = try await lab.protected("protected without \(role) \(victim), \(way)") {
                $0.secondary != victim
            }
            #expect(now.primary == before.primary && now.generation == before.generation)
            try await guest.goesOn(from: covered)
            try await expectOneAtATime(watch, [before.primary])
            try await lab.reconnect(victim, way)
            lab.leaveOut(victim, false)
            try await lab.allOnline()
            before = try await lab.protected { $0.generation == start.generation }
            try await lab.expectNoLeak(before)
        }
        return before
    }

    /// It can do nothing at all, so its watchdog does it.
    private func freezePrimary(
        _ lab: TestLab, _ guest: Guest, _ before: PairView, _ round: Int
    ) async throws -> PairView {
        let covered = try await guest.covered()
        let watch = PrimaryWatch(lab, try #require(before.segment))
        let number = try await lab.lastEvent(on: before.secondary)
        try await lab.freeze(before.primary)
        let pair = try await lab.protected("protected without its host, round \(round)") {
            $0.primary == before.secondary && $0.secondary != before.primary
        }
        #expect(pair.generation == before.generation.next)
        let events = try await lab.events(after: number, on: before.secondary)
        #expect(events.contains { $0.reason == .fenceProven(before.primary, .selfFence) })
        try await guest.goesOn(from: covered)
        try await expectOneAtATime(watch, [before.primary, pair.primary])
        try await lab.start(before.primary)
        try await lab.allOnline()
        try await lab.expectNoLeak(pair)
        return pair
    }

    /// Its ftvmd hangs, its libvirt answers: that ends the primary, and says so.
    @Test func libvirtEndsWhatNobodyDrives() async throws {
        let lab = try TestLab.here()
        try await lab.prepare { _ in
            lab.hosts.map { host in
                """
                [[fence]]
                host = "\(host)"
                libvirt_uri = "\(lab.layout.libvirtURI(of: host))"

                """
            }.joined()
        }
        var (guest, pair) = try await lab.protectedDemo()
        for round in 1...ClusterEndToEnd.rounds {
            let before = pair
            let secondary = try #require(before.secondary)
            let covered = try await guest.covered()
            let watch = PrimaryWatch(lab, try #require(before.segment))
            let capture = try await beacons(lab, guest)
            let number = try await lab.lastEvent(on: secondary)
            let hung = try #require(try await lab.daemon(before.primary))
            lab.leaveOut(before.primary)
            try await Lab.running(lab.layout).withStoreUnlocked {
                try #require(Glibc.kill(hung.pid, SIGSTOP) == 0)
            }
            let promoted = try await lab.pair("promoted, round \(round)") {
                $0.primary == secondary && $0.generation > before.generation
            }
            #expect(promoted.generation == before.generation.next)
            let events = try await lab.events(after: number, on: secondary)
            #expect(
                events.contains { $0.reason == .fenceProven(before.primary, .libvirt) },
                "\(events.map(\.message))")
            try await guest.goesOn(from: covered)
            // The old primary's ftvmd goes on: there is nothing that it could do.
            try #require(Glibc.kill(hung.pid, SIGCONT) == 0)
            lab.leaveOut(before.primary, false)
            try await lab.allOnline()
            pair = try await lab.protected { $0.primary == secondary }
            #expect(pair.generation == promoted.generation)
            try await expectOneAtATime(watch, [before.primary, secondary])
            try await expectOneSender(capture, guest, [before.primary, secondary])
            try await lab.expectNoLeak(pair)
        }
    }

    // MARK: - Parts

    private func withSelfFence(_ lab: TestLab, _ body: () async throws -> Void) async throws {
        try await lab.removeDemo()
        try await lab.startEtcd()
        try await lab.withWatchdogs(seconds: Self.watchdogSeconds) {
            try await lab.configureSelfFence(watchdogSeconds: Self.watchdogSeconds)
            try await body()
        }
        for host in lab.hosts { try lab.setDaemonVariables([], of: host) }
        try await lab.configure { _ in "" }
        try await lab.killEtcd()
    }

    /// The guest sends all the time; the frames are captured on the switch.
    private func beacons(_ lab: TestLab, _ guest: Guest) async throws -> ClientProcess {
        let capture = try ClientProcess(
            lab, ["capture", "--mac", guest.domain.macAddress], seconds: 300)
        let client = try await guest.connect()
        try #require(try client.ask("beacon 0 10.77.0.1 9 5000") == "ok")
        try await capture.goesOn(by: 20)
        return capture
    }

    @discardableResult
    private func expectOneAtATime(
        _ watch: PrimaryWatch, _ hosts: [HostName]
    ) async throws -> [PrimaryWatch.Writer] {
        let report = try await watch.finish()
        #expect(report.violations == [])
        #expect(report.looks > 50)
        #expect(report.writers.map(\.host) == hosts, "\(report.writers)")
        for (old, new) in zip(report.writers, report.writers.dropFirst()) {
            #expect(old.to < new.from)
            print(
                "\(old.host) may write no more \((new.from - min(old.to, new.from)) / 1_000_000) ms "
                    + "before \(new.host) may")
        }
        return report.writers
    }

    /// In the order of the primaries, none of them twice.
    private func expectOneSender(
        _ capture: ClientProcess, _ guest: Guest, _ hosts: [HostName]
    ) async throws {
        let report = try await capture.finish(CaptureReport.self)
        #expect(report.dropped == 0)
        report.expectNoViolation("frames")
        let stretches = report.stretches[guest.domain.macAddress] ?? []
        #expect(stretches.map(\.port) == hosts.map(\.text), "\(stretches)")
    }
}
