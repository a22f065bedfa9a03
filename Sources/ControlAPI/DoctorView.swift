import Model

/// One thing that `ftvm doctor` has looked at.
public struct DoctorCheck: Hashable, Sendable, Codable {
    public enum Verdict: String, Sendable, Codable, CaseIterable {
        case pass, warn, fail
    }

    /// What was looked at, one word: `kvm`, `pool`, `network`.
    public var name: String
    /// The host, or the domain, that it is about.
    public var subject: String
    public var verdict: Verdict
    /// What was found, for people.
    public var why: String
    /// The command, or the piece of XML, that mends it; nil where there is nothing to mend.
    public var fix: String?

    public init(
        _ name: String, _ subject: String, _ verdict: Verdict, _ why: String, fix: String? = nil
    ) {
        self.name = name
        self.subject = subject
        self.verdict = verdict
        self.why = why
        self.fix = fix
    }
}

/// Answer of `GET /v1/doctor`: all checks of all hosts, in a fixed order.
public struct DoctorReport: Hashable, Sendable, Codable {
    public var checks: [DoctorCheck]

    public init(checks: [DoctorCheck]) { self.checks = checks }

    /// The worst verdict of all.
    public var verdict: DoctorCheck.Verdict {
        if checks.contains(where: { $0.verdict == .fail }) { return .fail }
        return checks.contains { $0.verdict == .warn } ? .warn : .pass
    }
}
