import Glibc
import Model

/// An agent of the fence-agents project (Debian's `fence-agents`), or one that keeps to its
/// protocol (github.com/ClusterLabs/fence-agents, doc/FenceAgentAPI.md): parameters are
/// `name=value` lines on standard input, the action among them; the exit status tells how it went.
package struct FenceAgentSettings: Sendable, Hashable {
    /// A name that is looked up in `FenceAgentSettings.directory`, or an absolute path.
    package var agent: String
    /// Given to the agent on its standard input only: passwords are among them.
    package var parameters: [String: String]
    /// How long `off` may take, in milliseconds.
    package var offMilliseconds: Int
    /// How long `status`, `monitor` and `metadata` may take, in milliseconds.
    package var statusMilliseconds: Int

    package static let directory = "/usr/sbin"
    package static let offMillisecondsDefault = 60_000
    package static let statusMillisecondsDefault = 20_000

    package init(
        agent: String, parameters: [String: String] = [:],
        offMilliseconds: Int = offMillisecondsDefault,
        statusMilliseconds: Int = statusMillisecondsDefault
    ) {
        self.agent = agent
        self.parameters = parameters
        self.offMilliseconds = offMilliseconds
        self.statusMilliseconds = statusMilliseconds
    }
}

extension FenceAgentSettings: CustomStringConvertible, CustomDebugStringConvertible,
    CustomReflectable
{
    /// Without the parameters' values, however it is printed.
    package var description: String {
        "\(agent)(\(parameters.keys.sorted().joined(separator: ", ")))"
    }
    package var debugDescription: String { description }
    package var customMirror: Mirror { Mirror(self, children: [:]) }
}

/// One agent with its parameters: one device, one host.
package struct FenceAgent: HostFencer {
    /// What a device says of the power of a host.
    package enum Power: String, Sendable, Hashable {
        case on, off
    }

    package let settings: FenceAgentSettings
    /// The agent's executable.
    package let path: String

    /// What is said of an agent in events: the last part of its path.
    package var name: String { path.split(separator: "/").last.map(String.init) ?? path }

    /// - Throws: `notFound` when there is no such agent; `invalidArgument` for parameters that its
    ///   protocol cannot carry.
    package init(_ settings: FenceAgentSettings) throws(FtvmError) {
        precondition(settings.offMilliseconds > 0 && settings.statusMilliseconds > 0)
        let agent = settings.agent
        guard agent.hasPrefix("/") || (!agent.isEmpty && !agent.contains("/")) else {
            throw FtvmError(
                .invalidArgument, "\(agent) is neither the name nor the path of a fence agent",
                advice: "write fence_ipmilan, or /usr/local/sbin/my_agent")
        }
        path = agent.hasPrefix("/") ? agent : FenceAgentSettings.directory + "/" + agent
        guard access(path, X_OK) == 0 else {
            throw FtvmError(
                .notFound, "the fence agent \(path) cannot be run",
                cause: String(cString: strerror(errno)),
                advice: "install the Debian package fence-agents on every host, or correct the name"
            )
        }
        for (key, value) in settings.parameters {
            let isName =
                !key.isEmpty && key.utf8.allSatisfy { $0 > 0x20 && $0 != UInt8(ascii: "=") }
            guard isName, !value.utf8.contains(where: { $0 == 0x0A || $0 == 0 }) else {
                throw FtvmError(
                    .invalidArgument, "the parameter \(key) of \(agent) cannot be given to it",
                    cause: "names have no blanks, values no line ends")
            }
            guard key != "action", key != "option" else {
                throw FtvmError(
                    .invalidArgument, "the parameter \(key) of \(agent) is not to be configured",
                    advice: "ftvm itself says what is to be done")
            }
        }
        self.settings = settings
    }

    // MARK: Actions

    /// `off`, which must succeed, and then `status`, which must say off. Anything else is no proof.
    package func fence(_ host: HostName) async -> HostFenceOutcome {
        if let reason = failure(await run("off", settings.offMilliseconds)) {
            return .unproven(reason: "agent \(name): \(reason)")
        }
        switch await power() {
        case .success(.off): return .proven(HostFenceProof(host: host, device: name))
        case .success(.on):
            return .unproven(reason: "agent \(name): said that it switched off, but status says on")
        case .failure(let error):
            return .unproven(reason: "agent \(name): status after off: \(error.reason)")
        }
    }

    /// Why an action failed, in a few words for a person.
    package struct Failure: Error, Hashable {
        package let reason: String
    }

    /// What the device says of the host's power.
    ///
    /// The exit status of `status` is 0 for on and 2 for off. The latter is what several agents
    /// give for bad arguments as well (`EC_BAD_ARGS` in fencing.py), so "off" must also be written.
    package func power() async -> Result<Power, Failure> {
        let run = await run("status", settings.statusMilliseconds)
        guard case .exited(let code) = run.end else {
            return .failure(Failure(reason: failure(run) ?? "ended without a status"))
        }
        let words = Set(
            run.output.uppercased().split(whereSeparator: { !$0.isLetter }).map(String.init))
        switch (code, words.contains("ON"), words.contains("OFF")) {
        case (0, _, false): return .success(.on)
        case (2, false, true): return .success(.off)
        case (0, _, true), (2, true, _), (2, _, false):
            return .failure(
                Failure(reason: "exit status \(code) and the words \"\(tail(run))\" do not agree"))
        default:
            return .failure(Failure(reason: failure(run) ?? "exit status \(code)"))
        }
    }

    /// Whether the device can be reached with these parameters; nil: yes.
    package func monitor() async -> Failure? {
        failure(await run("monitor", settings.statusMilliseconds)).map(Failure.init)
    }

    /// Switches the host on; nil: done.
    package func switchOn() async -> Failure? {
        failure(await run("on", settings.offMilliseconds)).map(Failure.init)
    }

    /// The agent's own description (XML), with its parameters.
    package func metadata() async -> Result<String, Failure> {
        let run = await run("metadata", settings.statusMilliseconds)
        if let reason = failure(run) { return .failure(Failure(reason: reason)) }
        return .success(run.output)
    }

    private func run(_ action: String, _ milliseconds: Int) async -> AgentRun {
        var input = "action=\(action)\n"
        for (key, value) in settings.parameters.sorted(by: { $0.key < $1.key }) {
            input += "\(key)=\(value)\n"
        }
        return await AgentRun.run(path, input: input, milliseconds: milliseconds)
    }

    // MARK: Words

    /// Why a run is no success; nil when it is one.
    private func failure(_ run: AgentRun) -> String? {
        let said = tail(run)
        let words = said.isEmpty ? "" : " (\(said))"
        return switch run.end {
        case .exited(0): nil
        case .exited(let code): "failed with exit status \(code)\(words)"
        case .signalled(let signal): "ended by signal \(signal)\(words)"
        case .timedOut(let milliseconds): "timed out after \(milliseconds) ms"
        case .notStarted(let error): "cannot be started: \(error)"
        }
    }

    /// The last line that the agent wrote, errors first, without what is secret.
    private func tail(_ run: AgentRun) -> String {
        let lines = [run.errors, run.output].lazy.compactMap { text in
            text.split(whereSeparator: \.isNewline).last { line in
                line.contains { !$0.isWhitespace } && !line.contains("Please use '-h' for usage")
            }
        }
        var text = lines.first.map(String.init) ?? ""
        // Before it is cut: a secret that is cut in two would not be found.
        for secret in secrets { text = text.replacing(secret, with: "***") }
        let printable = text.unicodeScalars.map { (" "..."~").contains($0) ? Character($0) : "?" }
        return String(printable.prefix(200))
    }

    /// The values that must not be shown: everything that is called a password or the like. Long
    /// ones first, as one may contain the other.
    private var secrets: [String] {
        let marks = ["pass", "secret", "token", "key", "community", "cred"]
        return settings.parameters.filter { key, value in
            value.count >= 2 && marks.contains { key.lowercased().contains($0) }
        }.map(\.value).sorted { $0.count > $1.count }
    }
}
