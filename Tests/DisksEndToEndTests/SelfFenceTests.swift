import ControlAPI
import EndToEndSupport
import Foundation
import Glibc
import Lab
import Model
import Testing

extension Disks {
    /// Hosts that share no kernel, and end by themselves what others go on with.
    @Suite(
        .lab(LabShape(separateMachines: true)), .keepingLogs,
        .enabled(if: Disks.isFull, "FTVM_DISKS_FULL is not set"))
    struct SelfFence {
        /// A host that is cut off ends its guest and its disk server. While that one still hangs in its storage, with a write that
        /// may yet reach an image, the host's watchdog is not set back: what counts as the end of a host's writers is
        /// the end of the last disk server.
        @Test func aHostIsNoProofWhileADiskServerHangs() async throws {
            let lab = try TestLab.here()
            try await lab.startEtcd()
            let watchdogs = try Watchdogs(lab)
            try await lab.configureSelfFence(watchdogSeconds: 8)
            var guest = try await DiskGuest.make(lab)
            let small = try await SmallStorage.make(
                lab, at: guest.directory + "/small", file: guest.directory + "/small.ext4",
                mebibytes: 64)
            let image = small.directory + "/vdb.raw"
            _ = try await Command.succeed(["truncate", "-s", "32M", image])
            guest.disks.append(.init(target: "vdb", path: image))
            try await guest.start(on: lab.hosts[0])
            let before = try await guest.enable()
            let server = try #require(try await servers(of: before.primary, lab).first)
            _ = try await Command.succeed(["fsfreeze", "--freeze", small.directory])
            var isFrozen = true
            func thaw() async throws {
                guard isFrozen else { return }
                _ = try await Command.succeed(["fsfreeze", "--unfreeze", small.directory])
                isFrozen = false
            }
            do {
                // The answer waits for the storage.
                let scattering = Asking(try await guest.connect(), "scatter vdb 64")
                defer { withExtendedLifetime(scattering) {} }
                try await eventually("the disk server hangs") { () async throws -> Void? in
                    Self.hangs(server) ? () : nil
                }
                let qemu = try await lab.presentQEMU(before.primary)
                lab.leaveOut(before.primary)
                try await lab.cutOff(before.primary)
                try await eventually("its guest is ended") { () async throws -> Void? in
                    ProcessView(pid: qemu.pid).isEnding ? () : nil
                }
                // What was permitted before that may be on its way.
                try await Task.sleep(for: .milliseconds(500))
                watchdogs.forget(before.primary)
                for _ in 0..<20 {
                    try await Task.sleep(for: .milliseconds(100))
                    #expect(Self.hangs(server))
                    #expect(watchdogs.pets(before.primary) == 0, "a disk server hangs still")
                }
                try await thaw()
                try await eventually("nothing of it is left") { () async throws -> Void? in
                    watchdogs.pets(before.primary) > 0 ? () : nil
                }
                #expect(!FileManager.default.fileExists(atPath: "/proc/\(server)/task"))
            } catch {
                try await thaw()
                throw error
            }
            _ = try await guest.protected("protected elsewhere") {
                $0.generation > before.generation
            }
            try await lab.reconnect(before.primary)
            lab.leaveOut(before.primary, false)
            try await lab.allOnline()
            try await guest.disable()
            try await lab.removeDemo(DiskGuest.name)
            try await small.remove()
            try await guest.remove()
            for host in lab.hosts { try lab.setDaemonVariables([], of: host) }
            try await lab.configure { _ in "" }
            try await lab.killEtcd()
        }

        private func servers(of host: HostName, _ lab: TestLab) async throws -> [Int32] {
            let first = try await lab.status().hosts.first { $0.name == host }
            let root = try #require(first?.pid)
            let space = try FileManager.default.destinationOfSymbolicLink(
                atPath: "/proc/\(root)/ns/pid")
            return try FileManager.default.contentsOfDirectory(atPath: "/proc").compactMap {
                Int32($0)
            }
            .filter { pid in
                guard ProcessView(pid: pid).arguments.first?.hasSuffix("/nbdkit") == true else {
                    return false
                }
                return
                    (try? FileManager.default.destinationOfSymbolicLink(
                        atPath: "/proc/\(pid)/ns/pid")) == space
            }
        }

        /// A thread of it waits for its storage, and cannot be interrupted.
        private static func hangs(_ pid: Int32) -> Bool {
            let threads =
                (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/task")) ?? []
            return threads.contains { thread in
                let stat =
                    (try? String(
                        contentsOfFile: "/proc/\(pid)/task/\(thread)/stat", encoding: .utf8))
                    ?? ""
                guard let end = stat.lastIndex(of: ")") else { return false }
                return stat[stat.index(after: end)...].hasPrefix(" D")
            }
        }
    }

    /// The hosts' watchdogs, which reset nobody and count how often they are set back.
    private final class Watchdogs {
        private var pipes: [HostName: Int32] = [:]

        init(_ lab: TestLab) throws {
            for host in lab.hosts {
                let path = lab.watchdog(of: host)
                unlink(path)
                try #require(mkfifo(path, 0o600) == 0)
                pipes[host] = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC)
            }
        }

        deinit { for pipe in pipes.values { close(pipe) } }

        /// Since it was asked last.
        func pets(_ host: HostName) -> Int {
            var buffer = [UInt8](repeating: 0, count: 65_536)
            return max(0, read(pipes[host] ?? -1, &buffer, buffer.count))
        }

        func forget(_ host: HostName) { while pets(host) > 0 {} }
    }
}
