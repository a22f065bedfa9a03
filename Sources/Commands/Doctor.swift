import ArgumentParser
import ControlAPI
import Model

struct Doctor: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Check all hosts, and a domain: what would keep it from being protected.",
        discussion: """
            Every host looks at itself, which takes some seconds: kernel, KVM (a firmware is booted), QEMU, \
            pools, clock, limits. Together: processors, versions, fencing. With a domain: its devices, memory, \
            machine type, bridges and files on every host.

            Each check passes, warns or fails, and says what to do. Exit code 0 unless one fails (21).

            Examples:
              ftvm doctor
              ftvm doctor demo
              ftvm doctor demo -o json | jq -r '.checks[] | select(.verdict != "pass") | .fix'
            """)

    @Argument(help: "A domain, protected or not.", completion: Completions.domains)
    var domain: String?

    @Flag(help: "Show only what does not pass.")
    var problems = false

    @OptionGroup var output: OutputOptions
    @OptionGroup var connection: ConnectionOptions

    /// See Documentation/ExitCodes.md.
    static let failedStatus: Int32 = 21

    func run() async throws {
        try await connection.withService { service in
            var report = try await service.doctor(domain: domain)
            let verdict = report.verdict
            if problems { report.checks.removeAll { $0.verdict == .pass } }
            try output.print(report) { DoctorText.text(report) }
            if verdict == .fail { throw ExitCode(Self.failedStatus) }
        }
    }
}

/// A report as people read it.
enum DoctorText {
    static func text(_ report: DoctorReport) -> String {
        var lines: [String] = []
        for check in report.checks {
            let mark = check.verdict.rawValue.uppercased()
            lines.append(
                TextTable.printable("\(mark)  \(check.subject)  \(check.name): \(check.why)"))
            if let fix = check.fix { lines.append(TextTable.printable("      next: \(fix)")) }
        }
        let failed = report.checks.count { $0.verdict == .fail }
        let warned = report.checks.count { $0.verdict == .warn }
        lines.append("\(report.checks.count) checks: \(failed) failed, \(warned) warnings")
        return lines.joined(separator: "\n")
    }
}
