import BenchmarkSupport
import ControlAPI
import EndToEndSupport
import Foundation
import GuestClients
import Lab
import Model

/// A lab for one part of the benchmark, taken down whatever happens.
enum BenchLab {
    static func with(
        _ shape: LabShape, part: String, _ body: (TestLab) async throws -> Void
    ) async throws {
        let lab = try TestLab(shape)
        try await lab.up()
        do {
            try await useChosenQEMU(lab)
            try await body(lab)
        } catch {
            await Artifacts.keep(
                lab, in: Artifacts.directory(test: "peer-benchmark-\(part)"), since: Date())
            try? await lab.down()
            throw error
        }
        try await lab.down()
    }

    /// The hosts get the QEMU that everything else is measured with.
    private static func useChosenQEMU(_ lab: TestLab) async throws {
        guard let root = Settings.variable("FTVM_BENCH_QEMU") else { return }
        for host in lab.hosts {
            try await lab.kill(host)
            try await lab.start(host, qemuRoot: root)
        }
    }

    /// Enables the running guest, and moves it there and back: from then on its QEMU has a monitor
    /// of ours.
    static func protect(_ lab: TestLab, _ name: String = TestLab.demo) async throws {
        _ = try await lab.ftvm(PairView.self, "enable", name)
        _ = try await lab.protected(of: name)
        for target in [lab.hosts[1], lab.hosts[0]] {
            let answer = try await lab.attempt(["switchover", name, "--to", target.text])
            guard answer.status == 0 else { throw Failure("switchover: \(answer.errorOutput)") }
            _ = try await lab.protected(of: name) { $0.primary == target }
        }
    }
}
