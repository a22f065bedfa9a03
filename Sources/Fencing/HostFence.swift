import Model

/// Certainty that a whole host can change nothing any more: it is switched off. Only this part can
/// make one, so that code which asks for a proof cannot be given a guess.
package struct HostFenceProof: Sendable, Hashable {
    package let host: HostName
    /// What was asked, for events: `fence_ipmilan`.
    package let device: String

    init(host: HostName, device: String) {
        self.host = host
        self.device = device
    }
}

/// What one attempt to switch a host off came to.
package enum HostFenceOutcome: Sendable, Hashable {
    case proven(HostFenceProof)
    /// No proof; `reason` completes "waiting for a fence of h1 (...)".
    case unproven(reason: String)
}

/// A way of switching hosts off. Never throws: whatever goes wrong is "unproven", with the reason.
/// Always returns within its own time limits.
package protocol HostFencer: Sendable {
    func fence(_ host: HostName) async -> HostFenceOutcome
}
