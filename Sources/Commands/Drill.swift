import ArgumentParser
import ControlAPI
import Foundation
import Model

extension DrillKind: ExpressibleByArgument {}

struct Drill: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Let something fail on purpose, and measure.",
        discussion: """
            Makes a real fault (or a planned move), measures from outside what a client sees of it, waits \
            until the pair is protected again and tells whether all is well: nothing committed was \
            lost, one promotion, protected in the end. Exit code 0 only if it is, 20 if not. The report is \
            kept: 'ftvm drill --history' shows those of all hosts.

            Kinds: kill-qemu, freeze-qemu (it hangs), kill-host (by the command in the daemon's \
            configuration), switchover, kill-secondary.

            With --probe the blackout is the longest time for which the guest did not answer: echo \
            requests, or TCP connections with a port, every 5 ms from where ftvm runs. Without, it is what \
            the daemons saw, from the fault to the guest running.

            Refused where it could not succeed: no ready secondary, no host for the next one (--force). Asks \
            first when standard input is a terminal; otherwise --yes is needed.

            Examples:
              ftvm drill demo
              ftvm drill demo --kind kill-host --yes
              ftvm lab client -- ftvm drill demo --probe 10.77.0.10 --yes
              ftvm drill --history
            """)

    @Argument(help: "The pair: the domain's name.", completion: Completions.pairs)
    var domain: PairName?

    @Option(help: "What is to fail.")
    var kind = DrillKind.killQEMU

    @Option(help: ArgumentHelp("The guest's ADDRESS, or ADDRESS:PORT.", valueName: "address"))
    var probe: String?

    @Flag(help: "Also where it cannot end protected.")
    var force = false

    @Flag(name: [.customShort("y"), .customLong("yes")], help: "Do not ask.")
    var yes = false

    @Flag(help: "Show the reports of earlier drills, oldest first.")
    var history = false

    @Option(
        help: ArgumentHelp(
            "Wait at most so many seconds for protection; then the drill has failed.",
            valueName: "seconds"))
    var timeout = 300

    @OptionGroup var output: OutputOptions
    @OptionGroup var connection: ConnectionOptions

    /// The exit status of a drill that was done and failed.
    static let failedStatus: Int32 = 20
    static let period = Duration.milliseconds(100)

    func validate() throws {
        guard (5...3_600).contains(timeout) else {
            throw ValidationError("--timeout must be from 5 to 3600 seconds.")
        }
        if history != (domain == nil) {
            throw ValidationError("Give either a domain or --history.")
        }
    }

    func run() async throws {
        let environment = CommandEnvironment.current
        try await connection.withService { service in
            guard let domain else {
                let reports = try await service.drills()
                try output.print(reports) {
                    DrillText.table(reports, dateText: environment.dateText)
                }
                if reports.isEmpty { environment.console.remark("no drills yet") }
                return
            }
            let pair = try await service.pair(domain)
            if !yes { try confirm(pair, environment.console) }
            let report = try await drill(domain, service, environment)
            try output.print(report) { DrillText.page(report) }
            guard report.verdict == .passed else {
                environment.console.remark(
                    "ftvm: drill FAILED: \(report.problems.joined(separator: "; "))")
                throw ExitCode(Self.failedStatus)
            }
        }
    }

    private func confirm(_ pair: PairView, _ console: Console) throws {
        guard console.inputIsTerminal else {
            throw FtvmError(
                .invalidArgument, "no drill of \(pair.name): nobody can be asked",
                cause: "standard input is not a terminal", advice: "add --yes")
        }
        console.remark("\(pair.name) is \(pair.state.rawValue), its primary is on \(pair.primary).")
        console.note("\(kind.rawValue), for real? [y/N] ")
        let answer = console.readAnswer()?.lowercased() ?? ""
        guard answer == "y" || answer == "yes" else {
            throw FtvmError(
                .failedPrecondition, "no drill of \(pair.name): not confirmed",
                advice: "nothing was changed")
        }
    }

    // MARK: - Doing it

    private func drill(
        _ domain: PairName, _ service: any ControlService, _ environment: CommandEnvironment
    ) async throws -> DrillReport {
        let client = try await startedProbe(environment)
        defer { client?.stop() }
        let number = try await service.events(EventQuery(limit: 1)).last?.number ?? 0
        let start = try await service.startDrill(domain, DrillRequest(kind: kind, force: force))
        var measure = DrillMeasure(start.report)
        var faultAt = start.report.startedAt
        if let command = start.command {
            faultAt = Date().timeIntervalSince1970
            measure.faultMade(at: faultAt)
            try Self.run(command)
        }
        let (pair, commits) = await waitUntilProtected(
            domain, measure, after: number, service, environment)
        // What a client sees after the end counts as well.
        if client != nil { try await environment.time.sleep(.milliseconds(500)) }
        let events =
            (try? await service.events(
                EventQuery(after: number, limit: EventQuery.limitMaximum))) ?? []
        let report = measure.finished(
            events: events, pair: pair, commits: commits,
            probe: client.map { $0.result(faultAt: Self.monotonic(faultAt)) })
        do {
            return try await service.finishDrill(report)
        } catch {
            environment.console.remark("ftvm: the report is not kept: \(error)")
            return report
        }
    }

    /// A time since 1970 on the monotonic clock.
    private static func monotonic(_ seconds: Double) -> UInt64 {
        let ago = max(0, Date().timeIntervalSince1970 - seconds)
        let now = ProbeClient.now()
        let nanoseconds = UInt64(ago * 1e9)
        return now > nanoseconds ? now - nanoseconds : 0
    }

    /// Runs for a second before anything is done, so that its own gaps are known.
    private func startedProbe(_ environment: CommandEnvironment) async throws -> ProbeClient? {
        guard let probe else { return nil }
        let client = try ProbeClient(target: probe)
        try client.start()
        try await environment.time.sleep(.seconds(1))
        guard client.answered < 20 else { return client }
        client.stop()
        throw FtvmError(
            .failedPrecondition, "no drill: \(probe) does not answer the probe",
            cause: client.failure ?? "\(client.answered) answers within a second",
            advice:
                "run ftvm where clients of the guest are, such as 'ftvm lab client -- ftvm drill'")
    }

    private static func run(_ command: [String]) throws {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: command[0])
        process.arguments = Array(command.dropFirst())
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = FileHandle.nullDevice
        process.standardError = FileHandle.nullDevice
        do {
            try process.run()
        } catch {
            throw FtvmError(
                .unavailable, "the command that kills the host cannot be run", cause: "\(error)",
                advice: "'kill_host_command' in [drill] of ftvmd's configuration names it")
        }
        process.waitUntilExit()
        guard process.terminationStatus == 0 else {
            throw FtvmError(
                .unavailable, "the command that kills the host failed",
                cause: "it ended with status \(process.terminationStatus)",
                advice: "try it by hand: \(command.joined(separator: " "))")
        }
    }

    /// - Returns: the pair in the end, and whether it then commits.
    private func waitUntilProtected(
        _ domain: PairName, _ measure: DrillMeasure, after number: UInt64,
        _ service: any ControlService, _ environment: CommandEnvironment
    ) async -> (pair: PairView?, commits: Bool) {
        var progress = ProgressDisplay(inPlace: environment.console.noteIsTerminal)
        defer { environment.console.note(progress.finish()) }
        let start = environment.time.now()
        var last: PairView?
        var protectedAt: Epoch?
        while environment.time.now() - start < .seconds(timeout) {
            if let pair = try? await service.pair(domain) {
                last = pair
                let query = EventQuery(
                    after: number, limit: EventQuery.limitMaximum, pair: domain)
                let events = (try? await service.events(query)) ?? []
                if measure.isOver(pair, events), let epoch = pair.epoch {
                    if let before = protectedAt, epoch > before { return (pair, true) }
                    protectedAt = protectedAt ?? epoch
                }
                let text =
                    pair.switchover == nil
                    ? PairWait.progressText(pair) : PairWait.moveText(pair)
                environment.console.note(
                    progress.show(text, elapsed: environment.time.now() - start))
            }
            do { try await environment.time.sleep(Self.period) } catch { break }
        }
        return (last, false)
    }
}
