import ControlAPI
import EndToEndSupport
import Foundation
import Glibc
import Lab
import Model
import Testing

extension Disks {
    /// The guest's block checker on real hosts: random writes, zeroes, trims, flushes and reads against a model in the
    /// guest's memory, which a failover takes back together with the disk.
    @Suite(.lab(LabShape()), .keepingLogs)
    struct Blocks {
        /// What a round does: kills something, or has ftvmd die at a fault point.
        enum Blow: CaseIterable {
            case server, qemu, host, daemon, published, sealed, recovered, promoted, pluginLost
        }

        /// 50 rounds, and the same again whenever somebody wants to: every round kills something else.
        @Test(.enabled(if: Disks.isFull, "FTVM_DISKS_FULL is not set"))
        func memoryAndDiskAreOfOneCommit() async throws {
            let lab = try TestLab.here()
            var random = Settings.random("blocks")
            let guest = try await DiskGuest.make(lab, more: [("vdb", "virtio", "raw", 16)])
            try await guest.start(on: lab.hosts[0])
            var pair = try await guest.enable("--disk-log", "8M")
            let checking = Checking(
                try await guest.connect(), disk: "vdb",
                seed: UInt64.random(in: 1...UInt64.max, using: &random))
            let client = try await guest.connect()
            for round in 1...Disks.blockRounds {
                try await checking.goesOn()
                let blow = Blow.allCases[round % Blow.allCases.count]
                pair = try await strike(blow, guest, pair, "round \(round), \(blow)")
                #expect(try client.ask("verify vdb") == "ok 4096", "round \(round), \(blow)")
            }
            try await checking.goesOn()
            try await checking.stop()
            #expect(try client.ask("verify vdb") == "ok 4096")
            try await guest.disable()
            #expect(try client.ask("verify vdb") == "ok 4096", "on the image itself")
            try await guest.remove()
        }

        private func strike(
            _ blow: Blow, _ guest: DiskGuest, _ before: PairView, _ what: String
        ) async throws -> PairView {
            let lab = guest.lab
            func again(_ isPromoted: Bool) async throws -> PairView {
                try await guest.protected("protected, \(what)") {
                    isPromoted
                        ? $0.generation > before.generation : $0.generation == before.generation
                }
            }
            func fault(_ point: String, on hosts: [HostName], _ body: () async throws -> Void)
                async throws
            {
                let fault = Fault(lab, point, pass: 1)
                try await fault.arm(hosts)
                try await body()
                try await fault.strikes()
                try await fault.disarm()
            }
            let others = lab.hosts.filter { $0 != before.primary }
            switch blow {
            case .server:
                for pid in try guest.nbdkits() { kill(pid, SIGKILL) }
                return try await again(false)
            case .qemu:
                let strike = try await Strike(.qemu, lab, before)
                try await strike.repair(lab)
                return try await again(true)
            case .host:
                let strike = try await Strike(.host, lab, before)
                let pair = try await again(true)
                try await strike.repair(lab)
                return pair
            case .daemon:
                try await lab.killDaemon(before.primary)
                return try await again(false)
            case .published:
                try await fault("disks.published", on: [before.primary]) {}
                return try await again(false)
            case .sealed:
                try await fault("disks.sealed", on: [before.primary]) {}
                return try await again(false)
            case .recovered, .promoted:
                let point = blow == .recovered ? "disks.recovered" : "disks.promoted"
                try await fault(point, on: others) {
                    _ = try await guest.protected("protected with \(point) ahead")
                    try await lab.presentQEMU(before.primary).kill()
                }
                return try await again(true)
            case .pluginLost:
                try await fault("disks.plugin-lost", on: [before.primary]) {
                    _ = try await guest.protected("protected with a lost server ahead")
                    for pid in try guest.nbdkits() { kill(pid, SIGKILL) }
                }
                return try await again(false)
            }
        }
    }

    /// FTVM_DISKS_ROUNDS: rounds of the block checker.
    static let blockRounds = Settings.number("FTVM_DISKS_ROUNDS", default: 50)
}
