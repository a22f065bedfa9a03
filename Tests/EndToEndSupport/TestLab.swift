import ControlAPI
import Foundation
import Lab
import Model
import Synchronization
import Testing

/// What a suite's lab is to be.
package struct LabShape: Sendable {
    package var hosts: Int
    /// As `ftvm lab up --pool-size` takes it; nil: its default.
    package var poolSize: String?
    package var hugePages: Int
    /// ftvmd's; nil: as set for all tests.
    package var logLevel: String?

    /// Hosts tell nothing of each other's locks.
    package var separateMachines: Bool

    package init(
        hosts: Int = 3, poolSize: String? = nil, hugePages: Int = 0, logLevel: String? = nil,
        separateMachines: Bool = false
    ) {
        self.separateMachines = separateMachines
        self.logLevel = logLevel
        self.hosts = hosts
        self.poolSize = poolSize
        self.hugePages = hugePages
    }
}

/// A check outside of Swift Testing's own that did not hold.
package struct Failure: Error, CustomStringConvertible {
    package let description: String
    package init(_ description: String) { self.description = description }
}

/// The lab of a suite, driven with `ftvm` and `virsh` as a user would.
package final class TestLab: Sendable {
    @TaskLocal package static var current: TestLab?

    /// The lab of the suite that runs.
    package static func here() throws -> TestLab { try #require(current, "the suite has a lab") }

    package let layout: LabLayout
    package let shape: LabShape
    /// The hosts' names.
    package let hosts: [HostName]

    private struct State {
        /// Hosts that are dead or frozen because we wanted it so.
        var away: Set<HostName> = []
        var needsRenewal = false
        /// What `configure` has given each host last.
        var configured: [String]?
    }
    private let state = Mutex(State())

    /// After a failed test: the next one begins with a new lab.
    package var needsRenewal: Bool {
        get { state.withLock { $0.needsRenewal } }
        set { state.withLock { $0.needsRenewal = newValue } }
    }

    /// Hosts that are expected to live, by name.
    package var livingHosts: [HostName] {
        let away = state.withLock { $0.away }
        return hosts.filter { !away.contains($0) }
    }

    /// A host that is not asked anything for the time being, although it may live.
    package func leaveOut(_ host: HostName, _ isOut: Bool = true) {
        state.withLock { state in
            if isOut {
                state.away.insert(host)
            } else {
                state.away.remove(host)
            }
        }
    }

    /// What each host was configured with in addition, in their order; empty texts for a new lab.
    package internal(set) var configured: [String] {
        get { state.withLock { $0.configured } ?? hosts.map { _ in "" } }
        set { state.withLock { $0.configured = newValue } }
    }

    package init(_ shape: LabShape) throws {
        self.shape = shape
        layout = try LabLayout(name: Settings.labName)
        hosts = (1...shape.hosts).map { HostName("h\($0)") }
    }

    // MARK: - Life

    package func up() async throws {
        // What a run left that was itself ended must not be taken for ours.
        try await down()
        _ = try await Command.succeed([Settings.repository("Scripts/guest-image")], seconds: 120)
        var arguments = [
            "--hosts", "\(shape.hosts)", "--log-level", shape.logLevel ?? Settings.logLevel,
        ]
        if let poolSize = shape.poolSize { arguments += ["--pool-size", poolSize] }
        if shape.separateMachines { arguments.append("--separate-machines") }
        if shape.hugePages > 0 { arguments += ["--huge-pages", "\(shape.hugePages)"] }
        _ = try await labCommand("up", arguments, seconds: 120)
        state.withLock { $0 = State() }
    }

    package func down() async throws {
        _ = try await labCommand("down", seconds: 60)
        for trace in ["/run/\(layout.name)", "/sys/fs/cgroup/\(layout.name)"]
        where FileManager.default.fileExists(atPath: trace) {
            throw Failure("'ftvm lab down' left \(trace)")
        }
    }

    /// Before each test: a new lab after a failure.
    package func makeReady() async throws {
        if needsRenewal { try await up() }
    }

    // MARK: - Hosts

    package func status() async throws -> LabStatus {
        let text = try await labCommand("status", ["-o", "json"])
        return try JSONDecoder().decode(LabStatus.self, from: Data(text.utf8))
    }

    package func kill(_ host: HostName) async throws {
        _ = state.withLock { $0.away.insert(host) }
        _ = try await labCommand("kill", [host.text])
    }

    /// The sudden death of several hosts in one moment, which no sequence of commands can make.
    package func killAtOnce(_ victims: [HostName]) async throws {
        let status = try await status()
        let pids = status.hosts.filter { victims.contains($0.name) }.compactMap(\.pid)
        try #require(pids.count == victims.count)
        state.withLock { $0.away.formUnion(victims) }
        for pid in pids { Foundation.kill(pid, SIGKILL) }
        try await eventually("\(victims.count) hosts are dead") { () async throws -> Void? in
            let left = try await self.status().hosts.filter { victims.contains($0.name) }
            // The first process may be gone while others still give their memory back.
            return left.allSatisfy { $0.pid == nil && $0.processes.isEmpty } ? () : nil
        }
    }

    /// - Parameter qemuRoot: from now on the host has the QEMU that is unpacked there.
    package func start(_ host: HostName, qemuRoot: String? = nil) async throws {
        let qemu = qemuRoot.map { ["--qemu", $0] } ?? []
        _ = try await labCommand("start", [host.text] + qemu, seconds: 60)
        _ = state.withLock { $0.away.remove(host) }
    }

    package func freeze(_ host: HostName) async throws {
        _ = state.withLock { $0.away.insert(host) }
        _ = try await labCommand("freeze", [host.text])
    }

    package func thaw(_ host: HostName) async throws {
        _ = try await labCommand("thaw", [host.text])
        _ = state.withLock { $0.away.remove(host) }
    }

    /// Off the switch.
    package func cut(_ host: HostName) async throws { _ = try await labCommand("cut", [host.text]) }

    package func heal(_ host: HostName) async throws {
        _ = try await labCommand("heal", [host.text])
    }

    private func labCommand(
        _ verb: String, _ arguments: [String] = [], seconds: Int = 30
    ) async throws -> String {
        try await Command.succeed(
            [Command.ftvm, "lab", verb, "--name", layout.name] + arguments, seconds: seconds)
    }

    /// Runs a command inside a host.
    package func exec(_ host: HostName, _ arguments: [String]) async throws -> String {
        try await Command.succeed(
            [Command.ftvm, "lab", "exec", host.text, "--name", layout.name, "--"] + arguments)
    }

    /// Runs a command on the switch, where clients are.
    package func attemptClient(
        _ arguments: [String], seconds: Int = 30
    ) async throws -> Tool.Outcome {
        try await Command.attempt(
            [Command.ftvm, "lab", "client", "--name", layout.name, "--"] + arguments,
            seconds: seconds)
    }

    /// The same, which must succeed; its output.
    @discardableResult
    package func client(_ arguments: [String]) async throws -> String {
        try await Command.succeed(
            [Command.ftvm, "lab", "client", "--name", layout.name, "--"] + arguments)
    }

    package func virsh(_ host: HostName, _ arguments: String...) async throws -> String {
        try await virsh(host, arguments)
    }

    package func virsh(_ host: HostName, _ arguments: [String]) async throws -> String {
        try await Command.succeed(["virsh", "-q", "-c", layout.libvirtURI(of: host)] + arguments)
    }

    /// The names of a host's domains, with `onlyActive` those that have a QEMU.
    package func domains(_ host: HostName, onlyActive: Bool = false) async throws -> [String] {
        let which = onlyActive ? [] : ["--all"]
        return try await virsh(host, ["list", "--name"] + which).split(separator: "\n").map(
            String.init
        )
        .filter { !$0.isEmpty }
    }

    // MARK: - ftvm

    /// Runs `ftvm` with the socket of a host that lives, or of the one given.
    package func attempt(
        _ arguments: [String], on host: HostName? = nil, seconds: Int = 120
    ) async throws -> Tool.Outcome {
        let host = try host ?? #require(livingHosts.first)
        return try await Command.attempt(
            [Command.ftvm] + arguments + ["-o", "json", "--socket", layout.daemonSocket(of: host)],
            seconds: seconds)
    }

    /// The same, which must succeed; its answer.
    package func ftvm<Value: Decodable>(
        _ type: Value.Type = Value.self, _ arguments: String..., on host: HostName? = nil
    ) async throws -> Value {
        let outcome = try await attempt(arguments, on: host)
        guard outcome.status == 0 else {
            throw Failure(
                "ftvm \(arguments.joined(separator: " ")) ended with status \(outcome.status): "
                    + outcome.errorOutput)
        }
        return try ControlJSON.decode(from: Array(outcome.output.utf8))
    }

    /// The same, which must be refused with an error.
    package func refusal(_ arguments: String..., on host: HostName? = nil) async throws -> FtvmError
    {
        try Command.error(try await attempt(arguments, on: host), arguments)
    }
}

/// Programs, none of which may run for ever.
package enum Command {
    package static var ftvm: String { Settings.products + "/ftvm" }
    package static var ftvmd: String { Settings.products + "/ftvmd" }

    package static func attempt(_ arguments: [String], seconds: Int = 30) async throws
        -> Tool.Outcome
    {
        let limit = seconds * Settings.patience
        let outcome = try await Tool.attempt(["timeout", "--kill-after=5", "\(limit)"] + arguments)
        if outcome.status == 124 || outcome.status == 137 {
            throw Failure(
                "'\(arguments.joined(separator: " "))' did not end within \(limit) s: "
                    + outcome.output + outcome.errorOutput)
        }
        return outcome
    }

    package static func succeed(_ arguments: [String], seconds: Int = 30) async throws -> String {
        let outcome = try await attempt(arguments, seconds: seconds)
        guard outcome.status == 0 else {
            throw Failure(
                "'\(arguments.joined(separator: " "))' ended with status \(outcome.status): "
                    + outcome.output + outcome.errorOutput)
        }
        return outcome.output
    }

    /// The error that a program with `-o json` ended with; its exit status must be the code's.
    package static func error(_ outcome: Tool.Outcome, _ arguments: [String]) throws -> FtvmError {
        let words = arguments.joined(separator: " ")
        guard outcome.status != 0 else { throw Failure("'\(words)' was not refused") }
        let lines = outcome.errorOutput.split(separator: "\n", omittingEmptySubsequences: false)
        let json = lines.drop { $0 != "{" }.joined(separator: "\n")
        let error: FtvmError
        do {
            error = try ControlJSON.decode(from: Array(json.utf8))
        } catch {
            throw Failure("'\(words)' gave no error that can be read: \(outcome.errorOutput)")
        }
        try #require(outcome.status == error.exitStatus, "\(words): \(error)")
        return error
    }
}

extension Settings {
    /// A file of the sources.
    package static func repository(_ relative: String) -> String {
        let root = URL(fileURLWithPath: #filePath).resolvingSymlinksInPath()
            .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        return root.appendingPathComponent(relative).path
    }
}

/// Polls until `condition` gives a value.
/// - Parameter found: what is there instead, for the failure's message.
package func eventually<Value>(
    _ what: String, seconds: Int = 60, period: Duration = .milliseconds(50),
    found: @autoclosure () -> String = "", _ condition: () async throws -> Value?
) async throws -> Value {
    let deadline = ContinuousClock.now + .seconds(seconds * Settings.patience)
    while true {
        if let value = try await condition() { return value }
        guard ContinuousClock.now < deadline else {
            throw Failure(
                "waited \(seconds * Settings.patience) s in vain: \(what). \(found())")
        }
        try await Task.sleep(for: period)
    }
}

/// Compares texts of many lines; a failure shows the lines that differ.
package func expectSame(
    _ text: String, _ original: String, sourceLocation: SourceLocation = #_sourceLocation
) {
    let new = text.split(separator: "\n")
    let old = original.split(separator: "\n")
    #expect(new.difference(from: old).isEmpty, sourceLocation: sourceLocation)
}
