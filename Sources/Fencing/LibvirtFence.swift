import Model
import Synchronization

/// What libvirt says of one domain.
package enum LibvirtDomainState: Sendable, Hashable {
    /// It has a QEMU, whatever that does.
    case active
    /// Defined, without a QEMU.
    case inactive
    /// libvirt knows no such domain.
    case absent
}

/// A libvirt daemon of another host, as far as fencing needs it. Calls may hang: over a dead link
/// they do.
package protocol LibvirtFenceConnection: Sendable {
    /// What tells this daemon from every other: libvirt's host UUID.
    func hostUUID() async throws(FtvmError) -> String
    func state(ofDomain uuid: String) async throws(FtvmError) -> LibvirtDomainState
    /// Ends the domain's QEMU by force and returns when it is gone (virDomainDestroy).
    func destroy(domain uuid: String) async throws(FtvmError)
}

/// A fence of one pair's primary through its host's libvirt: its QEMU is destroyed and seen to be
/// gone. It proves nothing of the rest of the host.
///
/// That a domain is not running proves something on the right host only: so the daemon must be the
/// one that is expected, and a domain of which it knows nothing is no proof unless it was destroyed
/// just now.
package struct LibvirtFencer: Fencer {
    /// Opens a connection to the host; may hang as well.
    package typealias Connect =
        @Sendable () async throws(FtvmError) -> any LibvirtFenceConnection

    package let domainUUID: String
    /// The host's libvirt UUID, as the cluster knows it.
    package let hostUUID: String
    package let milliseconds: Int
    private let connect: Connect

    /// - Parameter milliseconds: for all of it.
    package init(
        domainUUID: String, hostUUID: String, milliseconds: Int = 10_000,
        connect: @escaping Connect
    ) {
        precondition(milliseconds > 0)
        self.domainUUID = domainUUID.lowercased()
        self.hostUUID = hostUUID.lowercased()
        self.milliseconds = milliseconds
        self.connect = connect
    }

    package func fence(_ request: FenceRequest) async -> FenceOutcome {
        let attempt = Attempt()
        // Not a child: a call that hangs must not keep us, and cannot be cancelled. It ends with
        // its connection; what it finds out too late counts for nothing.
        let work = Task { attempt.finish(await fenceNow(request)) }
        let limit = Task {
            try? await Task.sleep(for: .milliseconds(milliseconds))
            attempt.finish(
                .unproven(reason: "libvirt: no answer within \(milliseconds) ms"))
        }
        let outcome = await attempt.outcome()
        work.cancel()
        limit.cancel()
        return outcome
    }

    private func fenceNow(_ request: FenceRequest) async -> FenceOutcome {
        do throws(FtvmError) {
            let connection = try await connect()
            let found = try await connection.hostUUID().lowercased()
            guard found == hostUUID else {
                return .unproven(
                    reason:
                        "libvirt: the daemon that answers for \(request.host) is another host's "
                        + "(\(found), expected \(hostUUID))")
            }
            switch try await connection.state(ofDomain: domainUUID) {
            case .inactive: break
            case .absent:
                return .unproven(reason: "libvirt: \(request.host) knows no domain \(request.pair)")
            case .active:
                try await connection.destroy(domain: domainUUID)
                guard try await connection.state(ofDomain: domainUUID) != .active else {
                    return .unproven(
                        reason: "libvirt: \(request.pair) is still active after its destruction")
                }
            }
            return .proven(FenceProof(request, method: .libvirt))
        } catch {
            return .unproven(reason: "libvirt: \(error)")
        }
    }

    /// Takes the first of two outcomes.
    private final class Attempt: Sendable {
        private struct State {
            var outcome: FenceOutcome?
            var waiting: CheckedContinuation<FenceOutcome, Never>?
        }
        private let state = Mutex(State())

        func finish(_ outcome: FenceOutcome) {
            let waiting = state.withLock { state -> CheckedContinuation<FenceOutcome, Never>? in
                guard state.outcome == nil else { return nil }
                state.outcome = outcome
                return state.waiting
            }
            waiting?.resume(returning: outcome)
        }

        func outcome() async -> FenceOutcome {
            await withCheckedContinuation { continuation in
                let known = state.withLock { state -> FenceOutcome? in
                    if state.outcome == nil { state.waiting = continuation }
                    return state.outcome
                }
                if let known { continuation.resume(returning: known) }
            }
        }
    }
}
