import Foundation
import Model
import Testing

extension TestLab {
    /// What a host's ftvmd has in its environment from its next start on, besides what the lab itself gives it.
    package func setDaemonVariables(_ lines: [String], of host: HostName) throws {
        var lines = lines
        if shape.separateMachines, let index = hosts.firstIndex(of: host) {
            lines.append("FTVM_TEST_KERNEL=\(index + 1)")
        }
        let path = layout.daemonEnvironment(of: host)
        if lines.isEmpty {
            guard FileManager.default.fileExists(atPath: path) else { return }
            try FileManager.default.removeItem(atPath: path)
        } else {
            try (lines.joined(separator: "\n") + "\n").write(
                toFile: path, atomically: true, encoding: .utf8)
        }
    }

    /// Kills a host's ftvmd and waits until the host has started another one, which answers.
    package func killDaemon(_ host: HostName) async throws {
        let daemon = try #require(try await daemon(host), "ftvmd runs on \(host)")
        try daemon.kill()
        try await newDaemon(host, not: daemon)
    }

    package func newDaemon(_ host: HostName, not old: ProcessView) async throws {
        try await eventually("a new ftvmd on \(host) answers", seconds: 30) {
            () async throws -> Void? in
            guard let new = try await daemon(host), new != old else { return nil }
            return try await attempt(["version"], on: host).status == 0 ? () : nil
        }
    }
}
