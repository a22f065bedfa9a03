import Foundation
import Model
import Testing

extension TestLab {
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
