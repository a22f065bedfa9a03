import ArgumentParser
import ControlAPI
import Model

struct Events: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show what happened in the cluster.",
        discussion: """
            The newest events, oldest first. The times are for people; order is by number. The log is \
            bounded: old events go. With --follow new events are shown as they come, until interrupted; \
            with -o json then one JSON object a line.

            Examples:
              ftvm events
              ftvm events --pair demo --limit 20
              ftvm events --follow
              ftvm events --after 4711 -o json | jq -r '.[].kind'
            """)

    @Option(
        help: ArgumentHelp(
            "Only events after this number: then the oldest of them.", valueName: "number"))
    var after: UInt64?

    @Option(help: ArgumentHelp("How many, at most 1000.", valueName: "count"))
    var limit = EventQuery.limitDefault

    @Option(help: "Only events of this pair.", completion: Completions.pairs)
    var pair: PairName?

    @Flag(name: [.customShort("f"), .long], help: "Go on showing new events.")
    var follow = false

    @OptionGroup var output: OutputOptions
    @OptionGroup var connection: ConnectionOptions

    /// Between two questions to the daemon.
    static let followPeriod = Duration.milliseconds(500)

    func validate() throws {
        guard (1...EventQuery.limitMaximum).contains(limit) else {
            throw ValidationError("--limit must be from 1 to \(EventQuery.limitMaximum).")
        }
    }

    func run() async throws {
        let environment = CommandEnvironment.current
        let console = environment.console
        try await connection.withService { service in
            let events = try await service.events(
                EventQuery(after: after, limit: limit, pair: pair))
            guard follow else {
                try output.print(events) {
                    ClusterText.table(events, header: true, dateText: environment.dateText)
                }
                if events.isEmpty { console.remark("no events") }
                return
            }
            try show(events, header: true, environment: environment)
            try await followOn(
                service, from: events.last?.number ?? after ?? 0, headerShown: !events.isEmpty,
                environment: environment)
        }
    }

    /// Shows new events until the program is interrupted or its output is closed.
    private func followOn(
        _ service: any ControlService, from: UInt64, headerShown: Bool,
        environment: CommandEnvironment
    ) async throws {
        var position = from
        var headerShown = headerShown
        var answering = true
        while true {
            do {
                let query = EventQuery(after: position, limit: EventQuery.limitMaximum, pair: pair)
                let events = try await service.events(query)
                if !answering { environment.console.remark("ftvm: ftvmd answers again") }
                answering = true
                try show(events, header: !headerShown, environment: environment)
                headerShown = headerShown || !events.isEmpty
                position = events.last?.number ?? position
                if events.count == EventQuery.limitMaximum { continue }
            } catch let error as FtvmError
                where error.code == .unavailable || error.code == .timedOut
            {
                if answering {
                    environment.console.remark("ftvm: \(error.message), trying again")
                }
                answering = false
            }
            try await environment.time.sleep(Events.followPeriod)
        }
    }

    private func show(
        _ events: [ClusterEvent], header: Bool, environment: CommandEnvironment
    ) throws {
        guard !events.isEmpty else { return }
        switch output.format {
        case .table:
            try environment.console.print(
                ClusterText.table(events, header: header, dateText: environment.dateText))
        case .json:
            for event in events {
                try environment.console.print(try ControlJSON.text(event, pretty: false))
            }
        }
    }
}
