import ArgumentParser
import ControlAPI
import Model

struct Check: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Say in one line whether all is well, for monitoring.",
        discussion: """
            In the form of a monitoring plugin (Nagios, Icinga): one line, figures after a bar, and the exit \
            code 0 (OK), 1 (WARNING), 2 (CRITICAL) or 3 (UNKNOWN), which here does not mean what it means \
            elsewhere in ftvm.

            CRITICAL: a pair fails over or is not protected although it should be; a host is dead. \
            WARNING: a pair needs a secondary, or is just being enabled or disabled; a host is suspect. \
            UNKNOWN: ftvmd does not answer. Hosts in maintenance are left out.

            Examples:
              ftvm check
              ftvm check --pair demo
            """)

    @Option(help: "Only this pair, and no hosts.", completion: Completions.pairs)
    var pair: PairName?

    @OptionGroup var connection: ConnectionOptions

    func run() async throws {
        let console = CommandEnvironment.current.console
        let result: CheckResult
        do {
            result = try await connection.withService { service in
                if let pair { return CheckResult(pairs: [try await service.pair(pair)], hosts: []) }
                return CheckResult(
                    pairs: try await service.pairs(), hosts: try await service.hosts())
            }
        } catch let error as FtvmError {
            result = CheckResult(unknown: error)
        }
        try console.print(result.line)
        if result.level != .ok { throw ExitCode(result.level.rawValue) }
    }
}

/// What monitoring is told.
package struct CheckResult: Sendable, Hashable {
    package enum Level: Int32, Sendable, Comparable {
        case ok, warning, critical, unknown
        package static func < (left: Level, right: Level) -> Bool {
            left.rawValue < right.rawValue
        }
        var word: String {
            switch self {
            case .ok: "OK"
            case .warning: "WARNING"
            case .critical: "CRITICAL"
            case .unknown: "UNKNOWN"
            }
        }
    }

    package private(set) var level = Level.ok
    /// Without its end of line.
    package private(set) var line = ""

    package init(unknown error: FtvmError) {
        level = .unknown
        line = "FTVM UNKNOWN - \(Self.plain(error.message))"
    }

    package init(pairs: [PairView], hosts: [HostView]) {
        var problems: [(level: Level, text: String)] = []
        for pair in pairs {
            guard let level = Self.level(pair) else { continue }
            let why = pair.reason.isEmpty ? "" : " (\(pair.reason))"
            problems.append((level, "\(pair.name) is \(pair.state.rawValue)\(why)"))
        }
        for host in hosts where host.maintenance == nil {
            switch host.state {
            case .online: break
            case .suspect: problems.append((.warning, "host \(host.name) is suspect"))
            case .dead: problems.append((.critical, "host \(host.name) is dead"))
            }
        }
        level = problems.map(\.level).max() ?? .ok
        let online = hosts.count { $0.state == .online }
        let isProtected = pairs.count { $0.state == .protected }
        var text = problems.sorted { $0.level > $1.level }.map(\.text).joined(separator: "; ")
        if text.isEmpty {
            text = "\(HumanText.count(pairs.count, "pair")) protected"
            if !hosts.isEmpty { text += ", \(HumanText.count(hosts.count, "host")) online" }
        }
        var figures = ["pairs=\(pairs.count);;;0", "protected=\(isProtected);;;0;\(pairs.count)"]
        if !hosts.isEmpty { figures.append("hosts_online=\(online);;;0;\(hosts.count)") }
        let lag = pairs.compactMap { $0.statistics?.lastCommitAgeMilliseconds }.max()
        if let lag { figures.append("lag=\(HumanText.decimal(lag))ms;;;0") }
        let pause = pairs.compactMap { $0.statistics?.pauseP99Microseconds }.max()
        if let pause { figures.append("pause_p99=\(HumanText.decimal(pause, places: 0))us;;;0") }
        line = "FTVM \(level.word) - \(Self.plain(text)) | \(figures.joined(separator: " "))"
    }

    private static func level(_ pair: PairView) -> Level? {
        switch pair.state {
        case .protected: nil
        case .failingOver: .critical
        case .unprotected: pair.desired == .protected ? .critical : .warning
        case .starting, .needSecondary, .disabled: .warning
        }
    }

    /// A bar would begin the figures.
    private static func plain(_ text: String) -> String {
        text.replacing("|", with: "/").replacing("\n", with: " ")
    }
}
