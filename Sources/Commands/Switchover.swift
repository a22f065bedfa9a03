import ArgumentParser
import ControlAPI
import Model

struct SwitchoverVerb: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "switchover",
        abstract: "Move a running guest to another host, on purpose.",
        discussion: """
            The guest stops for the last commit on one host and goes on on the other, however large its \
            memory: none of it is copied. Nothing is lost. With --to another host than the secondary's, \
            a secondary is made there first, in the place of the present one. Afterwards a new \
            secondary is made, on the old host if no other is better.

            If the target fails before the old QEMU has ended, the guest goes on where it is; after \
            that, another host goes on from the last commit. QEMU's versions on the two hosts may differ, as \
            long as both know the machine type: so this is the way to another QEMU under a running guest.

            Waits and shows progress on standard error. Ending ftvm does not end the move; --cancel takes \
            it back as long as the target has not begun.

            Examples:
              ftvm switchover demo
              ftvm switchover demo --to h3
              ftvm switchover demo --cancel
            """)

    @Argument(help: "The pair: the domain's name.", completion: Completions.pairs)
    var domain: PairName

    @Option(
        name: .customLong("to"), help: "The host to move to. Default: the secondary's.",
        completion: Completions.hosts)
    var target: HostName?

    @Option(help: ArgumentHelp("Why, for 'ftvm events'.", valueName: "text"))
    var reason = ""

    @Flag(help: "Take back a move that was asked for.")
    var cancel = false

    @OptionGroup var waiting: WaitOptions
    @OptionGroup var output: OutputOptions
    @OptionGroup var connection: ConnectionOptions

    func validate() throws {
        if cancel, target != nil { throw ValidationError("--cancel goes without --to.") }
    }

    func run() async throws {
        let environment = CommandEnvironment.current
        try await connection.withService { service in
            if cancel {
                let pair = try await service.cancelSwitchover(domain)
                try output.print(pair) { "\(domain) stays on \(pair.primary)" }
                return
            }
            let last = try await service.events(EventQuery(limit: 1)).last?.number ?? 0
            let accepted = try await service.switchover(
                domain,
                SwitchoverRequest(
                    target: target, requestedBy: "ftvm switchover", reason: reason))
            guard let switchover = accepted.switchover, !waiting.noWait else {
                try output.print(accepted) {
                    "\(domain): switchover asked for; follow it with 'ftvm status \(domain)'"
                }
                return
            }
            let wait = PairWait(name: domain, goal: .switchedOver(id: switchover.id))
            let (pair, elapsed) = try await PairWaiter(service: service, environment: environment)
                .wait(for: domain, wait, limit: waiting.limit)
            let events = await Self.events(service, domain, after: last, environment.time)
            let done = MoveResult(
                pair: pair ?? accepted, from: accepted.primary, to: switchover.target,
                steps: MoveSteps(events: events))
            try output.print(done) { done.text(elapsed: elapsed) }
        }
    }

    /// The move's events are written a moment after the record.
    private static func events(
        _ service: any ControlService, _ pair: PairName, after number: UInt64, _ time: TimeSource
    ) async -> [ClusterEvent] {
        var events: [ClusterEvent] = []
        for _ in 0..<10 {
            events = (try? await service.events(EventQuery(after: number, pair: pair))) ?? []
            if events.contains(where: { $0.kind == .guestRunning }) { break }
            try? await time.sleep(.milliseconds(50))
        }
        return events
    }
}

/// How long the steps of a planned move took, in milliseconds, from the events of both hosts.
package struct MoveSteps: Hashable, Sendable, Encodable {
    package var lastCommitMilliseconds: Double?
    package var endMilliseconds: Double?
    package var releaseMilliseconds: Double?
    package var claimMilliseconds: Double?
    package var promotionMilliseconds: Double?

    package init(events: [ClusterEvent]) {
        let source = events.last { $0.kind == .handedOver }?.figures ?? [:]
        let target = events.last { $0.kind == .guestRunning }?.figures ?? [:]
        lastCommitMilliseconds = source["lastCommitMilliseconds"]
        endMilliseconds = source["endMilliseconds"]
        releaseMilliseconds = source["releaseMilliseconds"]
        claimMilliseconds = target["claimMilliseconds"]
        promotionMilliseconds = target["promotionMilliseconds"]
    }

    /// From the guest's stop on one host to its going on on the other; nil if a part is not known.
    package var stoodStillMilliseconds: Double? {
        let parts = [
            lastCommitMilliseconds, endMilliseconds, releaseMilliseconds, claimMilliseconds,
            promotionMilliseconds,
        ].compactMap { $0 }
        return parts.count == 5 ? parts.reduce(0, +) : nil
    }
}

/// What `ftvm switchover` prints.
private struct MoveResult: Encodable {
    var pair: PairView
    var from: HostName
    var to: HostName
    var steps: MoveSteps
    var stoodStillMilliseconds: Double?

    init(pair: PairView, from: HostName, to: HostName, steps: MoveSteps) {
        self.pair = pair
        self.from = from
        self.to = to
        self.steps = steps
        stoodStillMilliseconds = steps.stoodStillMilliseconds
    }

    func text(elapsed: Duration) -> String {
        var text = "\(pair.name) has moved from \(from) to \(pair.primary), generation "
        text += "\(pair.generation), state \(pair.state.rawValue) (\(HumanText.duration(elapsed)))"
        guard let still = stoodStillMilliseconds else { return text }
        let parts: [(String, Double?)] = [
            ("last commit", steps.lastCommitMilliseconds), ("end of QEMU", steps.endMilliseconds),
            ("release", steps.releaseMilliseconds), ("claim", steps.claimMilliseconds),
            ("promotion", steps.promotionMilliseconds),
        ]
        let list = parts.compactMap { name, value in
            value.map { "\(name) \(HumanText.duration(milliseconds: $0))" }
        }
        text += "\nthe guest stood still for \(HumanText.duration(milliseconds: still)): "
        return text + list.joined(separator: ", ")
    }
}
