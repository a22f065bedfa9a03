import Foundation
import Lab
import Model
import Testing

extension RealLabs {
    /// How a host looks after `ftvmd`: a small program takes its place, since only the lab is
    /// tested here.
    @Suite struct Daemon {
        let layout: LabLayout
        let directory: String

        init() throws {
            layout = try LabLayout(name: "ftvm-lab-test-daemon")
            directory = NSTemporaryDirectory() + "ftvm-lab-test-\(UUID().uuidString)"
            try FileManager.default.createDirectory(
                atPath: directory, withIntermediateDirectories: true)
        }

        private func specification(daemon text: String) throws -> LabSpecification {
            let path = "\(directory)/daemon"
            try ("#!/bin/bash\n" + text).write(toFile: path, atomically: true, encoding: .utf8)
            try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: path)
            var specification = LabSpecification()
            specification.hostCount = 1
            specification.daemonPath = path
            return specification
        }

        private func removeAll() async throws {
            try await Lab.down(layout, progress: { _ in })
            try FileManager.default.removeItem(atPath: directory)
        }

        @Test func theDaemonIsStartedAgainWhenItDies() async throws {
            let specification = try specification(
                daemon: """
                    [ "$1" = keep-pool ] && exec socat "UNIX-LISTEN:$3/keeper.sock,fork" EXEC:cat
                    [ "$1" = --config ] || exit 1
                    socket=$(sed -n 's/^socket_path = "\\(.*\\)"$/\\1/p' "$2")
                    echo "serving $socket"
                    exec socat "UNIX-LISTEN:$socket,fork,unlink-early" EXEC:cat
                    """)
            let lab = try await Lab.up(specification, layout: layout, progress: { _ in })
            let host = lab.hosts[0].name
            func daemon() throws -> LabProcess? {
                try lab.processes(of: host).first { $0.name == "socat" }
            }
            var last = try #require(try daemon())
            for _ in 1...3 {
                #expect(Foundation.kill(last.pid, SIGKILL) == 0)
                last = try await waitFor("a new daemon", limit: .seconds(10)) {
                    () throws -> LabProcess? in
                    guard let next = try daemon(), next.pid != last.pid else { return nil }
                    return next
                }
            }
            let log = try String(contentsOfFile: layout.daemonLog(of: host), encoding: .utf8)
            #expect(log.contains("ended with status 137"))
            try await lab.kill(host)
            #expect(try daemon() == nil)
            try await lab.start(host)
            #expect(try daemon() != nil)
            try await removeAll()
        }

        @Test func aDaemonThatDoesNotStartFailsTheLab() async throws {
            var specification = try specification(daemon: "echo 'no such pool'; exit 3\n")
            specification.startLimitSeconds = 2
            let error = await #expect(throws: FtvmError.self) {
                try await Lab.up(specification, layout: layout, progress: { _ in })
            }
            #expect(error?.cause?.contains("no such pool") == true)
            #expect(!FileManager.default.fileExists(atPath: layout.directory))
            try await removeAll()
        }

        @Test func theDaemonsConfigurationIsComplete() async throws {
            let specification = try specification(
                daemon: """
                    [ "$1" = keep-pool ] && exec socat "UNIX-LISTEN:$3/keeper.sock,fork" EXEC:cat
                    socket=$(sed -n 's/^socket_path = "\\(.*\\)"$/\\1/p' "$2")
                    exec socat "UNIX-LISTEN:$socket,fork,unlink-early" EXEC:cat
                    """)
            let lab = try await Lab.up(specification, layout: layout, progress: { _ in })
            let host = lab.hosts[0].name
            let text = try String(
                contentsOfFile: layout.daemonConfiguration(of: host), encoding: .utf8)
            for key in [
                "host = \"h1\"", "libvirt_uri = ", "socket_path = ", "runtime_directory = ",
                "store_path = ", "log_level = ", "heartbeat_period_milliseconds = 100",
                "heartbeat_misses_until_dead = 5", "[[pool]]", "kind = \"tmpfs\"",
            ] {
                #expect(text.contains(key), "\(key)")
            }
            try await removeAll()
        }
    }
}
