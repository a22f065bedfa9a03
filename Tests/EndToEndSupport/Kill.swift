import ControlAPI
import Foundation
import Glibc
import GuestClients
import Lab
import Model
import Testing

/// Ways in which a primary is lost.
package enum Kill: String, CaseIterable {
    case qemu = "QEMU"
    case host = "host"
    case daemonAndQEMU = "ftvmd and QEMU"
    case frozenQEMU = "frozen QEMU"
}

/// A primary that was just lost.
package struct Strike {
    package let kill: Kill
    package let host: HostName
    /// On the monotonic clock, in nanoseconds.
    package let time: UInt64
    private let qemu: ProcessView?

    /// Does it to the pair's primary.
    package init(_ kill: Kill, _ lab: TestLab, _ pair: PairView) async throws {
        self.kill = kill
        host = pair.primary
        switch kill {
        case .qemu:
            let qemu = try await lab.presentQEMU(host)
            time = monotonicNanoseconds()
            try qemu.kill()
            self.qemu = nil
        case .host:
            // The command takes its time before the host dies; what counts is the death.
            let host = pair.primary
            let first = try await lab.status().hosts.first { $0.name == host }
            let pid = try #require(first?.pid)
            let watching = Task { try await Self.end(of: pid) }
            try await lab.kill(host)
            time = try await watching.value
            qemu = nil
        case .daemonAndQEMU:
            let qemu = try await lab.presentQEMU(host)
            let daemon = try #require(try await lab.daemon(host))
            time = monotonicNanoseconds()
            try daemon.kill()
            try qemu.kill()
            self.qemu = nil
        case .frozenQEMU:
            let qemu = try await lab.presentQEMU(host)
            time = monotonicNanoseconds()
            try #require(Glibc.kill(qemu.pid, SIGSTOP) == 0)
            self.qemu = qemu
        }
    }

    private static func end(of pid: Int32) async throws -> UInt64 {
        try await eventually("the host's first process begins to end", period: .milliseconds(1)) {
            // From here on the kernel ends all the others; it is a zombie only when they are gone.
            ProcessView(pid: pid).isEnding ? monotonicNanoseconds() : nil
        }
    }

    /// Once the guest runs elsewhere: what was frozen goes on, if it is still there, and a dead host boots.
    package func repair(_ lab: TestLab) async throws {
        if let qemu, ProcessView(pid: qemu.pid).status("State").first == "T" {
            _ = Glibc.kill(qemu.pid, SIGCONT)
        }
        if kill == .host { try await lab.start(host) }
    }
}

package func monotonicNanoseconds() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}

/// How long clients heard nothing, by what was done.
package struct Blackouts {
    private var strikes: [(what: String, time: UInt64)] = []

    package init() {}

    package mutating func add(_ what: String, at time: UInt64) { strikes.append((what, time)) }

    /// The longest silence of any connection that each strike has brought, in milliseconds, by kind.
    package func milliseconds(_ gaps: [Gap]) -> [String: [Double]] {
        var result: [String: [Double]] = [:]
        for (index, strike) in strikes.enumerated() {
            let next = index + 1 < strikes.count ? strikes[index + 1].time : UInt64.max
            let mine = gaps.filter { $0.to > strike.time && $0.from < next && $0.to < next }
            result[strike.what, default: []].append(mine.map(\.milliseconds).max() ?? 0)
        }
        return result
    }

    package func report(_ gaps: [Gap]) {
        for (what, times) in milliseconds(gaps).sorted(by: { $0.key < $1.key }) {
            let sorted = times.sorted()
            let words = sorted.map { String(Int($0.rounded())) }.joined(separator: " ")
            print(
                "silence after \(what), ms: median \(Int(sorted[sorted.count / 2].rounded())), all: \(words)"
            )
        }
    }
}
