import ControlAPI
import Foundation
import Lab
import Model
import Testing

/// The pair `demo` as any host shows it, and waiting for it.
extension TestLab {
    package static let demo = "demo"

    /// The pair; nil when there is none, or when no host can tell just now.
    package func pair(_ name: String = TestLab.demo) async throws -> PairView? {
        for host in livingHosts {
            let outcome = try await attempt(["status", name], on: host, seconds: 20)
            if outcome.status == 0 {
                return try ControlJSON.decode(from: Array(outcome.output.utf8))
            }
            let error = try Command.error(outcome, ["status", name])
            if error.code == .notFound { return nil }
            // An ftvmd that was just killed: the next host knows as well.
            guard error.code == .unavailable else { throw error }
        }
        return nil
    }

    /// The pair, which must be there.
    package func present(_ name: String = TestLab.demo) async throws -> PairView {
        try await eventually("a host shows pair \(name)", seconds: 20) {
            try await self.pair(name)
        }
    }

    /// Polls until the pair is as wanted.
    package func pair(
        _ what: String, of name: String = TestLab.demo, seconds: Int = 60,
        where isWanted: (PairView) throws -> Bool
    ) async throws -> PairView {
        var last: PairView?
        return try await eventually(
            "pair \(name) is \(what)", seconds: seconds, found: "It is \(Self.text(last))"
        ) {
            last = try await pair(name)
            guard let last, try isWanted(last) else { return nil }
            return last
        }
    }

    private static func text(_ pair: PairView?) -> String {
        guard let pair else { return "not there" }
        var text = "\(pair.state.rawValue), generation \(pair.generation), primary \(pair.primary)"
        text += ", secondary \(pair.secondary?.text ?? "none") ready \(pair.secondaryReady)"
        if let promoting = pair.promoting { text += ", promoting \(promoting)" }
        if !pair.reason.isEmpty { text += ", reason: \(pair.reason)" }
        if let error = pair.lastError { text += ", last error: \(error)" }
        return text
    }

    /// Polls until the pair is protected and its epochs go on from there.
    package func protected(
        _ what: String = "protected", of name: String = TestLab.demo, seconds: Int = 60,
        where isWanted: (PairView) -> Bool = { _ in true }
    ) async throws -> PairView {
        let first = try await pair(what, of: name, seconds: seconds) {
            $0.state == .protected && $0.secondaryReady && isWanted($0)
        }
        return try await pair("\(what), and commits", of: name, seconds: 20) {
            $0.state == .protected && isWanted($0)
                && ($0.epoch?.number ?? 0) > (first.epoch?.number ?? 0)
        }
    }

    /// The pair's events after a number, oldest first.
    package func events(
        after number: UInt64, on host: HostName? = nil
    ) async throws -> [ClusterEvent] {
        let host = try host ?? #require(livingHosts.last)
        return try await ftvm(
            [ClusterEvent].self, "events", "--after", "\(number)", "--limit", "1000", on: host)
    }

    package func lastEvent(on host: HostName? = nil) async throws -> UInt64 {
        let host = try host ?? #require(livingHosts.last)
        return try await ftvm([ClusterEvent].self, "events", "--limit", "1", on: host).last?.number
            ?? 0
    }

    /// Gives the pair back, which must work.
    package func disable(_ name: String = TestLab.demo, on host: HostName? = nil) async throws {
        let answer = try await attempt(["disable", name], on: host)
        try #require(answer.status == 0, "\(answer.errorOutput)")
        try await eventually("pair \(name) is gone") { try await pair(name) == nil ? () : nil }
    }

    // MARK: - Domain

    /// As users do (Documentation/Domains.md): libvirt takes a guest that stands still for a commit for one that does not run,
    /// and refuses then.
    package func shutDown(_ name: String = TestLab.demo, on host: HostName) async throws {
        try await eventually("libvirt shuts \(name) down") { () async throws -> Void? in
            let outcome = try await Command.attempt([
                "virsh", "-q", "-c", layout.libvirtURI(of: host), "shutdown", name,
            ])
            if outcome.status == 0 { return () }
            guard outcome.errorOutput.contains("not running") else {
                throw Failure(outcome.errorOutput)
            }
            return nil
        }
    }

    /// Defines the demo guest on a host.
    @discardableResult
    package func define(_ guest: GuestDomain = GuestDomain(), on host: HostName) async throws
        -> String
    {
        var guest = guest
        guest.imageDirectory = Settings.imageDirectory
        let template = try String(
            contentsOfFile: Settings.repository("Examples/demo.xml"), encoding: .utf8)
        return try await define(xml: try guest.xml(template: template), on: host, name: guest.name)
    }

    /// Defines a domain; gives what libvirt made of its XML.
    package func define(xml: String, on host: HostName, name: String = TestLab.demo) async throws
        -> String
    {
        let path = NSTemporaryDirectory() + "ftvm-e2e-\(UUID().uuidString).xml"
        try xml.write(toFile: path, atomically: true, encoding: .utf8)
        defer { try? FileManager.default.removeItem(atPath: path) }
        _ = try await virsh(host, "define", path)
        return try await virsh(host, "dumpxml", "--inactive", name)
    }

    /// The demo guest runs on a host and answers; it is not protected.
    package func runDemo(_ guest: GuestDomain = GuestDomain(), on host: HostName) async throws
        -> Guest
    {
        try await define(guest, on: host)
        _ = try await virsh(host, "start", guest.name)
        let running = Guest(lab: self, domain: guest)
        _ = try await running.connect(seconds: 90)
        return running
    }

    /// The demo guest runs and is protected, whatever was before.
    package func protectedDemo(_ guest: GuestDomain = GuestDomain()) async throws -> (
        Guest, PairView
    ) {
        if let pair = try await pair(), pair.state == .protected {
            return (Guest(lab: self, domain: guest), try await protected())
        }
        let host = try #require(hosts.first)
        let running = try await runDemo(guest, on: host)
        _ = try await ftvm(PairView.self, "enable", Self.demo)
        return (running, try await protected())
    }

    /// No pair and no domain is left.
    package func removeDemo(_ name: String = TestLab.demo) async throws {
        if try await pair(name) != nil { try await disable(name) }
        for host in hosts {
            if try await domains(host, onlyActive: true).contains(name) {
                _ = try await virsh(host, "destroy", name)
            }
            if try await domains(host).contains(name) {
                _ = try await virsh(host, "undefine", "--nvram", name)
            }
        }
    }
}
