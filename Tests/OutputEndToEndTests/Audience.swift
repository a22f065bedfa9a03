import ControlAPI
import EndToEndSupport
import Foundation
import GuestClients
import Lab
import Model
import Testing

/// Everybody who watches a guest during a test: connections that ask for numbers, datagrams, and a capture of all frames
/// that the guest sends, among them beacons.
final class Audience {
    struct Verdict {
        let numbers: CounterReport
        let datagrams: DatagramReport
        let capture: CaptureReport
    }

    private let lab: TestLab
    private let guest: Guest
    private let numbers: ClientProcess
    private let datagrams: ClientProcess
    private let capture: ClientProcess
    private let macs: [String]
    /// From which host the guest must have been heard, in order.
    private var homes: [HostName]

    /// More than any of these tests takes, in seconds.
    private static let limit = 3_600
    private static let beaconMicroseconds = 2_000

    private init(
        _ lab: TestLab, _ guest: Guest, at home: HostName, connections: Int = 4
    ) async throws {
        self.lab = lab
        self.guest = guest
        homes = [home]
        let domain = guest.domain
        macs = [domain.macAddress] + (domain.hasSecondCard ? [domain.secondMACAddress] : [])
        capture = try ClientProcess(
            lab, ["capture"] + macs.flatMap { ["--mac", $0] }, seconds: Self.limit)
        var addresses = ["--address", domain.address]
        if domain.hasSecondCard { addresses += ["--second-address", domain.secondAddress] }
        numbers = try ClientProcess(
            lab, ["counter", "--connections", "\(connections)"] + addresses, seconds: Self.limit)
        datagrams = try ClientProcess(
            lab, ["datagrams", "--address", domain.address], seconds: Self.limit)
        try await numbers.goesOn()
        try await datagrams.goesOn()
        try await beacons(everyMicroseconds: Self.beaconMicroseconds)
        try await capture.goesOn(by: 100)
    }

    private func beacons(everyMicroseconds period: Int) async throws {
        let client = try await guest.connect()
        let targets = ["10.77.0.1"] + (guest.domain.hasSecondCard ? ["10.78.0.1"] : [])
        for (sender, target) in targets.enumerated() {
            // The port of "discard".
            try #require(try client.ask("beacon \(sender) \(target) 9 \(period)") == "ok")
        }
    }

    /// Does something to a guest while all of them watch. Their verdict is also heard when it fails: it tells more.
    @discardableResult
    static func watching(
        _ lab: TestLab, _ guest: Guest, at home: HostName,
        _ body: (Audience) async throws -> Void
    ) async throws -> Verdict {
        let audience = try await Audience(lab, guest, at: home)
        do {
            try await body(audience)
        } catch {
            Issue.record(error)
            _ = try? await audience.verdict()
            throw error
        }
        return try await audience.verdict()
    }

    /// After something was done to the guest: all of them hear it again.
    func goesOn(at home: HostName) async throws {
        if home != homes.last { homes.append(home) }
        try await numbers.goesOn()
        try await datagrams.goesOn()
        try await capture.goesOn(by: 20)
    }

    /// Ends them all and demands that nobody was told anything that was taken back.
    private func verdict() async throws -> Verdict {
        try await beacons(everyMicroseconds: 0)
        let verdict = Verdict(
            numbers: try await numbers.finish(), datagrams: try await datagrams.finish(),
            capture: try await capture.finish())
        let (heard, asked, seen) = (verdict.numbers, verdict.datagrams, verdict.capture)
        print(
            "numbers: \(heard.replies) over \(heard.connections) connections, latency \(heard.latency); "
                + "datagrams: \(asked.answered) of \(asked.sent), \(asked.repeated) repeated, "
                + "\(asked.doubled) doubled; frames: \(seen.frames), \(seen.beacons) beacons, "
                + "\(seen.repeatedBeacons) repeated, \(seen.missingBeacons) missing, "
                + "\(seen.repeatedBytes) bytes of TCP repeated")
        heard.expectNoViolation("numbers over TCP")
        #expect(heard.lostConnections == 0)
        asked.expectNoViolation("numbers by datagrams")
        #expect(seen.dropped == 0, "the capture is not whole: nothing is proved by it")
        seen.expectNoViolation("frames on the switch")
        for mac in macs {
            #expect(
                (seen.stretches[mac] ?? []).map(\.port) == homes.map(\.text),
                "the guest was heard from each of its hosts in turn, and from no host again: \(mac)"
            )
        }
        let status = try await guest.status()
        #expect(status.checker.bad == 0)
        #expect(heard.bootID == status.bootID)
        return verdict
    }
}
