import ClusterStore
import ControlAPI
import Foundation
import Glibc
import Hypervisor
import Model
import PairLogic
import Protection

/// A fault for a drill, to be made by the host that can.
struct DrillFault: Codable, Sendable {
    var pair: PairName
    var kind: DrillKind
    /// The host to be killed, with `killHost`.
    var victim: HostName
}

/// Failures on purpose: the daemon refuses what cannot end well, makes the fault and keeps the report; the client
/// measures from outside.
extension Agent {
    /// Reports kept in the store, for all hosts to show; each host keeps its own ones as files as well.
    private static let reportsKept = 50

    func startDrill(_ name: PairName, _ request: DrillRequest) async throws -> DrillStart {
        guard let record = try await environment.pairs.read(name)?.record else {
            throw unknownPair(name)
        }
        try requireDrill(record, request)
        let segment = record.segment.flatMap { try? environment.openSegment($0, access: .read) }
        var report = DrillReport(
            id: drillID(), pair: name, kind: request.kind,
            startedAt: Date().timeIntervalSince1970, from: record.primary,
            secondary: record.secondary, generation: record.generation,
            epochBefore: segment?.position.epoch)
        // Before the fault: also one whose end nobody comes to tell is in the history.
        try await keep(report)
        emit(.drill, "drill \(request.kind.rawValue) of \(name) begins", pair: name)
        var command: [String]?
        do {
            command = try await makeFault(record, request, &report)
        } catch {
            report.verdict = .failed
            report.problems = ["the fault could not be made: \(error)"]
            try? await keep(report)
            throw error
        }
        return DrillStart(report: report, command: command)
    }

    /// Sorts by time.
    private func drillID() -> String {
        let milliseconds = UInt64(Date().timeIntervalSince1970 * 1_000)
        return "\(milliseconds)-\(UUID().uuidString.prefix(8).lowercased())"
    }

    private func requireDrill(_ record: PairRecord, _ request: DrillRequest) throws {
        func refused(_ cause: String, _ advice: String) -> FtvmError {
            FtvmError(
                .failedPrecondition,
                "drill \(request.kind.rawValue) of \(record.name) is refused: it could not succeed",
                cause: cause, advice: advice)
        }
        guard record.state == .protected, record.secondaryReady, let secondary = record.secondary,
            record.switchover == nil, record.desired == .protected
        else {
            let why = record.reason.isEmpty ? "" : ": \(record.reason)"
            throw refused(
                "it is \(record.state.rawValue)\(why)",
                "wait until 'ftvm status \(record.name)' says protected")
        }
        let views = hostViews(for: record.name)
        guard views[secondary]?.state == .online else {
            throw refused(
                "the secondary's host \(secondary) is not online", "see 'ftvm hosts'")
        }
        if request.kind == .killHost, environment.configuration.drillKillHostCommand.isEmpty {
            throw FtvmError(
                .failedPrecondition, "drill kill-host is refused: how is a host killed?",
                cause: "the configuration of \(host) has no 'kill_host_command' in [drill]",
                advice: "set it, for example to an IPMI command with {host} in it")
        }
        guard !request.force else { return }
        // Where the next secondary can be.
        let next = request.kind == .killSecondary ? record.primary : secondary
        var excluded: [HostName: String] = [next: "it will have the primary"]
        if request.kind == .killHost { excluded[record.primary] = "it is to be killed" }
        let placement = Placement(
            PlacementNeed(pool: record.segment?.pool, excluded: excluded), hosts: views)
        guard placement.candidates.isEmpty else { return }
        throw refused(
            "no host for a secondary afterwards: \(placement.rejections)",
            "start another host, or add --force: then it does not end protected")
    }

    /// - Returns: a command for the client.
    private func makeFault(
        _ record: PairRecord, _ request: DrillRequest, _ report: inout DrillReport
    ) async throws -> [String]? {
        let fault = DrillFault(pair: record.name, kind: request.kind, victim: record.primary)
        switch request.kind {
        case .switchover:
            report.startedAt = Date().timeIntervalSince1970
            _ = try await requestSwitchover(
                record.name, SwitchoverRequest(requestedBy: "drill", reason: "drill \(report.id)"))
        case .killQEMU, .freezeQEMU:
            report.startedAt = try await make(fault, on: record.primary)
        case .killSecondary:
            report.startedAt = try await make(fault, on: record.secondary ?? record.primary)
        case .killHost:
            if environment.configuration.drillKillHostFromClient {
                return environment.configuration.drillKillHostCommand.map {
                    $0.replacing("{host}", with: record.primary.text)
                }
            }
            // Not the victim itself: it could not tell.
            let agent = record.primary == host ? record.secondary ?? host : host
            report.startedAt = try await make(fault, on: agent)
        }
        return nil
    }

    private func make(_ fault: DrillFault, on owner: HostName) async throws -> Double {
        if owner == host { return try await doFault(fault) }
        let what = "make the fault \(fault.kind.rawValue) for \(fault.pair)"
        let answer = try await ask(owner, HostRequest(fault: fault), what) { nil }
        return answer.doneAt ?? Date().timeIntervalSince1970
    }

    /// Makes a fault on this host, or from it.
    /// - Returns: when, in seconds since 1970.
    func doFault(_ fault: DrillFault) async throws -> Double {
        let runtime = runtimes[fault.pair]
        let process: QEMUProcess?
        let number: Int32
        switch fault.kind {
        case .killQEMU: (process, number) = (runtime?.driver?.process, SIGKILL)
        case .freezeQEMU: (process, number) = (runtime?.driver?.process, SIGSTOP)
        case .killSecondary: (process, number) = (runtime?.secondary?.process, SIGKILL)
        case .killHost: return try await killHost(fault.victim)
        case .switchover:
            throw FtvmError(.internalError, "a switchover is no fault")
        }
        guard let process, process.isRunning else {
            throw FtvmError(
                .failedPrecondition, "the QEMU of \(fault.pair) is not on \(host) any more",
                advice: "see 'ftvm status \(fault.pair)', then try again")
        }
        let now = Date().timeIntervalSince1970
        logger.notice(
            "drill", metadata: ["pair": "\(fault.pair)", "fault": "\(fault.kind.rawValue)"])
        guard kill(process.processID, number) == 0 else {
            throw FtvmError(
                .unavailable, "cannot signal the QEMU of \(fault.pair)",
                cause: String(cString: strerror(errno)))
        }
        return now
    }

    private func killHost(_ victim: HostName) async throws -> Double {
        guard victim != host else {
            throw FtvmError(.internalError, "a host does not kill itself in a drill")
        }
        let command = environment.configuration.drillKillHostCommand.map {
            $0.replacing("{host}", with: victim.text)
        }
        let now = Date().timeIntervalSince1970
        let outcome = try await blocking {
            let process = Process()
            process.executableURL = URL(fileURLWithPath: command[0])
            process.arguments = Array(command.dropFirst())
            process.standardInput = FileHandle.nullDevice
            process.standardOutput = FileHandle.nullDevice
            process.standardError = FileHandle.nullDevice
            try process.run()
            let deadline = Date().addingTimeInterval(30)
            while process.isRunning, Date() < deadline { usleep(20_000) }
            if process.isRunning {
                process.terminate()
                return Int32(-1)
            }
            return process.terminationStatus
        }
        guard outcome == 0 else {
            throw FtvmError(
                .unavailable, "the command that kills host \(victim) failed",
                cause: outcome < 0
                    ? "it did not end within 30 s" : "it ended with status \(outcome)",
                advice: "try it by hand: \(command.joined(separator: " "))")
        }
        return now
    }

    // MARK: - Reports

    func finishDrill(_ report: DrillReport) async throws -> DrillReport {
        guard let begun = try await drillRecords.read(report.id)?.record, begun.pair == report.pair
        else {
            throw FtvmError(.notFound, "there is no drill \(report.id)")
        }
        guard report.verdict != .unfinished else {
            throw FtvmError(.invalidArgument, "a drill that has ended has passed or failed")
        }
        try await keep(report)
        emit(
            .drill,
            "drill \(report.kind.rawValue) of \(report.pair) has \(report.verdict.rawValue)"
                + (report.problems.isEmpty ? "" : ": " + report.problems.joined(separator: "; ")),
            pair: report.pair,
            figures: report.blackoutMilliseconds.map { ["blackoutMilliseconds": $0] } ?? [:])
        return report
    }

    /// Oldest first.
    func drillReports() async throws -> [DrillReport] {
        try await drillRecords.list().records.map(\.record).sorted { $0.id < $1.id }
    }

    private var drillRecords: DrillRecords { DrillRecords(store: environment.store) }

    private func keep(_ report: DrillReport) async throws {
        try await drillRecords.put(report)
        let all = try await drillRecords.list().records.map(\.record.id).sorted()
        for old in all.dropLast(Self.reportsKept) { try await drillRecords.delete(old) }
        do {
            try keepFile(report)
        } catch {
            logger.warning("a drill's report is in the store only", metadata: ["error": "\(error)"])
        }
    }

    private func keepFile(_ report: DrillReport) throws {
        let manager = FileManager.default
        let directory = environment.configuration.stateDirectory + "/drills"
        try manager.createDirectory(atPath: directory, withIntermediateDirectories: true)
        let data = Data(try ControlJSON.encode(report))
        try data.write(to: URL(fileURLWithPath: "\(directory)/\(report.id).json"), options: .atomic)
        let files = try manager.contentsOfDirectory(atPath: directory).sorted()
        for old in files.dropLast(Self.reportsKept) {
            try manager.removeItem(atPath: "\(directory)/\(old)")
        }
    }
}
