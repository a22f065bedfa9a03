import Foundation
import Glibc
import Lab
import Model
import Testing

extension TestLab {
    /// Where a host of the lab finds its watchdog.
    package func watchdog(of host: HostName) -> String {
        layout.directory(of: host) + "/watchdog"
    }

    /// Plays every host's watchdog while `body` runs: a host that has opened it and then does not set it back in time
    /// is reset, which is to say dead.
    package func withWatchdogs<Value: Sendable>(
        seconds: Int, _ body: () async throws -> Value
    ) async throws -> Value {
        var pipes: [HostName: Int32] = [:]
        defer { for pipe in pipes.values { close(pipe) } }
        for host in hosts {
            let path = watchdog(of: host)
            unlink(path)
            try #require(mkfifo(path, 0o600) == 0)
            // With an end of our own for writing: otherwise it would end with each ftvmd.
            let pipe = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC)
            try #require(pipe >= 0)
            pipes[host] = pipe
        }
        let work = Task { [pipes] in try await self.playWatchdogs(pipes, seconds: seconds) }
        let outcome: Result<Value, any Error>
        do {
            outcome = .success(try await body())
        } catch {
            outcome = .failure(error)
        }
        work.cancel()
        do {
            try await work.value
        } catch is CancellationError {
        } catch {
            Issue.record(error)
        }
        return try outcome.get()
    }

    private func playWatchdogs(_ pipes: [HostName: Int32], seconds: Int) async throws {
        var deadlines: [HostName: UInt64] = [:]
        var last = monotonicNanoseconds()
        var buffer = [UInt8](repeating: 0, count: 4_096)
        while !Task.isCancelled {
            let now = monotonicNanoseconds()
            let gap = now - last
            last = now
            // A real watchdog would not have stood still with its host; this one did.
            if gap > 200_000_000 { deadlines = deadlines.mapValues { $0 + gap } }
            for (host, pipe) in pipes {
                let count = read(pipe, &buffer, buffer.count)
                if count > 0 {
                    let isDisarmed = buffer[count - 1] == UInt8(ascii: "V")
                    deadlines[host] = isDisarmed ? nil : now + UInt64(seconds) * 1_000_000_000
                }
                guard let deadline = deadlines[host], now > deadline else { continue }
                deadlines[host] = nil
                // It may be dead for another reason.
                if try await status().hosts.first(where: { $0.name == host })?.pid != nil {
                    print("the watchdog of \(host) resets it")
                    try await kill(host)
                }
            }
            try await Task.sleep(for: .milliseconds(10))
        }
    }
}
