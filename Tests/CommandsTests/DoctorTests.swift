import Commands
import ControlAPI
import Foundation
import Model
import Testing

@Suite struct DoctorTests {
    private static let report = DoctorReport(checks: [
        DoctorCheck("kernel", "h1", .pass, "fine"),
        DoctorCheck("clock", "h1", .warn, "hpet", fix: "look in dmesg"),
        DoctorCheck("network", "demo", .fail, "no br0", fix: "ip link add br0 type bridge"),
    ])

    @Test func aFailedCheckIsAnExitCode() async throws {
        let harness = Harness()
        harness.service.state.withLock { $0.doctorReport = Self.report }
        let outcome = await harness.run("doctor", "demo")
        #expect(outcome.status == 21)
        #expect(outcome.output.contains("FAIL  demo  network: no br0\n      next: ip link add br0"))
        #expect(outcome.output.contains("3 checks: 1 failed, 1 warnings"))
        #expect(harness.service.calls == ["doctor demo"])
    }

    @Test func warningsAreNone() async throws {
        let harness = Harness()
        harness.service.state.withLock {
            $0.doctorReport = DoctorReport(checks: Array(Self.report.checks.prefix(2)))
        }
        let outcome = await harness.run("doctor", "--problems", "-o", "json")
        #expect(outcome.status == 0)
        let report = try ControlJSON.decode(DoctorReport.self, from: outcome.output.utf8)
        #expect(report.checks.map(\.name) == ["clock"])
    }
}
