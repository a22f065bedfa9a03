import BenchmarkSupport
import ControlAPI
import EndToEndSupport
import Foundation
import Lab
import Model
import Protection

/// What protection costs a guest that writes to a disk, and one that starts processes, with its gate and its disk log: in
/// the lab, with and without it in turn. The image is on the machine's own storage.
struct StoragePart {
    static let part = "storage"
    private static let mebibytes = 128
    let options: Options

    func run(_ results: inout BenchmarkResults) async throws {
        var found = results
        try await BenchLab.with(LabShape(hosts: 2, logLevel: "info"), part: Self.part) { lab in
            let directory = "/var/tmp/ftvm-bench-\(lab.layout.name)"
            try FileManager.default.createDirectory(
                atPath: directory, withIntermediateDirectories: true)
            defer { try? FileManager.default.removeItem(atPath: directory) }
            let image = "\(directory)/vda.raw"
            _ = try await Command.succeed(["truncate", "-s", "\(Self.mebibytes)M", image])
            _ = try await Command.succeed(["mkfs.ext4", "-q", "-F", image])
            chmod(directory, 0o755)
            let domain = try await start(lab, image)
            let client = try await connect(lab, domain)
            _ = try client.ask("mount /dev/vda")
            for round in 1...options.rounds {
                for peer in [Unprotected.name, Ftvm.name] where options.wants(peer: peer) {
                    say("storage, round \(round): \(peer)")
                    if peer == Ftvm.name { try await BenchLab.protect(lab, domain.name) }
                    try measure(client, peer, &found)
                    if peer == Ftvm.name { try await lab.disable(domain.name) }
                }
            }
            try await lab.removeDemo(domain.name)
        }
        results = found
    }

    private func start(_ lab: TestLab, _ image: String) async throws -> GuestDomain {
        var domain = GuestDomain()
        domain.checkMiB = 4
        domain.dirtyPagesPerSecond = 0
        domain.imageDirectory = BenchQEMU.imageDirectory
        let template = try String(
            contentsOfFile: Settings.repository("Examples/demo.xml"), encoding: .utf8)
        let xml = try domain.xml(template: template)
            .replacingOccurrences(of: "console=ttyS0", with: "console=ttyS0 rdinit=/bench-init")
            .replacingOccurrences(
                of: "<devices>",
                with: "<devices><disk type='file' device='disk'><driver name='qemu' type='raw'/>"
                    + "<source file='\(image)'/><target dev='vda' bus='virtio'/></disk>")
        _ = try await lab.define(xml: xml, on: lab.hosts[0], name: domain.name)
        _ = try await lab.virsh(lab.hosts[0], "start", domain.name)
        return domain
    }

    private func connect(_ lab: TestLab, _ domain: GuestDomain) async throws -> GuestClient {
        try await eventually("the guest answers", seconds: 90) {
            do {
                _ = try GuestClient(
                    lab.layout, address: domain.address, port: 7790, timeout: .seconds(1)
                ).ask("status")
                return try GuestClient(
                    lab.layout, address: domain.address, port: 7790, timeout: .seconds(120))
            } catch let error as FtvmError where error.code == .unavailable {
                return nil
            }
        }
    }

    private func measure(
        _ client: GuestClient, _ peer: String, _ results: inout BenchmarkResults
    ) throws {
        let seconds = Int((options.seconds * 2).rounded(.up))
        for (workload, command) in [
            ("4-KiB writes, each synced", "fsync /disk/file 4096 \(seconds)"),
            ("SQLite transactions", "sqlite /disk/database \(seconds)"),
            ("process churn", "churn \(seconds)"),
        ] {
            let began = MonotonicClock.nowNanoseconds()
            guard let count = Double(try client.ask(command)) else {
                throw Failure("'\(command)' was not answered with a number")
            }
            let rate = count / (Machine.milliseconds(since: began) / 1_000)
            results.add(Self.part, workload, peer, "throughput", rate, unit: "/s")
            say("  \(workload): \(Format.number(rate, decimals: 0)) /s")
        }
    }
}
