import ArgumentParser
import ControlAPI
import Model

struct HostCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "host", abstract: "Take hosts out of service and put them back.",
        subcommands: [HostDrain.self, HostUndrain.self])
}

struct HostDrain: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "drain", abstract: "Move everything off a host, for maintenance.",
        discussion: """
            From now on the host is given no primary and no secondary, also after restarts, until \
            'ftvm host undrain'. Guests that run on it move to other hosts (ftvm switchover), a few at a \
            time; secondaries on it are made elsewhere. Waits until nothing of any pair is left there and \
            shows what is. Interrupting ftvm does not interrupt the drain.

            If something cannot move (no other host, a guest that is not protected), the rest moves, and \
            ftvm says what stays and why (exit code 6); the drain goes on as soon as it can. If nothing \
            at all can move, it is refused.

            Examples:
              ftvm host drain h1 --reason 'new kernel'
              ftvm host drain h1 --parallel 4 --no-wait
              ftvm hosts
            """)

    @Argument(help: "The host.", completion: Completions.hosts)
    var host: HostName

    @Option(help: ArgumentHelp("Why, for 'ftvm hosts' and 'ftvm events'.", valueName: "text"))
    var reason = ""

    @Option(
        help: ArgumentHelp(
            "Moves at a time, at most (default: \(HostMaintenance.parallelDefault)).",
            valueName: "count"))
    var parallel: Int?

    @OptionGroup var waiting: WaitOptions
    @OptionGroup var output: OutputOptions
    @OptionGroup var connection: ConnectionOptions

    func validate() throws {
        let range = HostMaintenance.parallelRange
        if let parallel, !range.contains(parallel) {
            throw ValidationError(
                "--parallel must be from \(range.lowerBound) to \(range.upperBound).")
        }
    }

    func run() async throws {
        let environment = CommandEnvironment.current
        try await connection.withService { service in
            let accepted = try await service.drain(
                host, DrainRequest(reason: reason, parallel: parallel))
            guard !waiting.noWait else {
                try output.print(accepted) { DrainText.summary(accepted) }
                return
            }
            let (view, elapsed) = try await DrainWaiter(service: service, environment: environment)
                .wait(for: host, limit: waiting.limit)
            try output.print(view) {
                "\(host) is drained: nothing of any pair is on it (\(HumanText.duration(elapsed)))"
            }
        }
    }
}

struct HostUndrain: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "undrain", abstract: "Put a host into service again.",
        discussion: """
            Ends a drain, also one that is under way. What has moved stays where it is; the host gets \
            secondaries and guests again as they are placed.

            Example:
              ftvm host undrain h1
            """)

    @Argument(help: "The host.", completion: Completions.hosts)
    var host: HostName

    @OptionGroup var output: OutputOptions
    @OptionGroup var connection: ConnectionOptions

    func run() async throws {
        try await connection.withService { service in
            let view = try await service.undrain(host)
            try output.print(view) { "\(host) is in service" }
        }
    }
}

/// Drains as people read them.
package enum DrainText {
    package static func summary(_ view: HostDrainView) -> String {
        guard !view.remaining.isEmpty else { return "\(view.host) is drained" }
        let items = view.remaining.map { "\($0.pair) (\($0.role.rawValue)): \($0.reason)" }
        return "\(HumanText.count(items.count, "pair")) left on \(view.host): "
            + items.joined(separator: "; ")
    }
}

/// Waits until a host is drained.
package struct DrainWaiter {
    package static let period = Duration.milliseconds(200)
    /// How long nothing may be able to move before that is the answer.
    package static let patience = Duration.seconds(15)

    private let service: any ControlService
    private let environment: CommandEnvironment

    package init(service: any ControlService, environment: CommandEnvironment) {
        self.service = service
        self.environment = environment
    }

    package func wait(
        for host: HostName, limit: Duration
    ) async throws -> (view: HostDrainView, elapsed: Duration) {
        let start = environment.time.now()
        var progress = ProgressDisplay(inPlace: environment.console.noteIsTerminal)
        defer { environment.console.note(progress.finish()) }
        var stuckSince: Duration?
        while true {
            let elapsed = environment.time.now() - start
            var text: String
            do {
                let view = try await service.drainState(host)
                guard view.maintenance != nil else {
                    throw FtvmError(
                        .conflict, "\(host) was put into service again while ftvm waited",
                        advice: "see 'ftvm events'")
                }
                if view.remaining.isEmpty { return (view, elapsed) }
                text = DrainText.summary(view)
                let isStuck = view.remaining.allSatisfy { $0.progress == .stuck }
                stuckSince = isStuck ? stuckSince ?? elapsed : nil
            } catch let error as FtvmError
                where error.code == .unavailable || error.code == .timedOut
            {
                text = "\(error.message), trying again"
            }
            if let since = stuckSince, elapsed - since >= Self.patience {
                throw FtvmError(
                    .failedPrecondition, "\(host) is not drained: the rest cannot move",
                    cause: text,
                    advice: "it stays out of service, and they move as soon as they can")
            }
            environment.console.note(progress.show(text, elapsed: elapsed))
            guard elapsed < limit else {
                throw FtvmError(
                    .timedOut, "\(host) is not drained after \(HumanText.duration(limit))",
                    cause: text, advice: "the drain goes on: see 'ftvm hosts'")
            }
            try await environment.time.sleep(Self.period)
        }
    }
}
