import Model

/// What is to be proven gone: the primary of one pair on one host.
package struct FenceRequest: Sendable, Hashable {
    package let pair: PairName
    /// The host whose QEMU was the primary.
    package let host: HostName
    /// The generation of that primary.
    package let generation: Generation

    package init(pair: PairName, host: HostName, generation: Generation) {
        self.pair = pair
        self.host = host
        self.generation = generation
    }
}

/// Certainty that the old primary can change nothing any more. Only a `Fencer` of this part can
/// make one, so that code which asks for a proof cannot be given a guess.
package struct FenceProof: Sendable, Hashable {
    /// The ways of being certain.
    package enum Method: String, Sendable, Hashable {
        /// The kernel that both hosts share says that nobody holds the primary lock.
        case primaryLock = "primary-lock"
        /// The host's libvirt destroyed the primary's QEMU and says that it is gone.
        case libvirt
        /// A fence agent switched the whole host off (`HostFenceProof`).
        case agent
    }
    package let request: FenceRequest
    package let method: Method

    init(_ request: FenceRequest, method: Method) {
        self.request = request
        self.method = method
    }
}

extension FenceProof {
    /// A host that is switched off has no primary either.
    /// - Parameter proof: must be of the request's host.
    package init(_ request: FenceRequest, because proof: HostFenceProof) {
        precondition(proof.host == request.host, "the proof is of another host")
        self.init(request, method: .agent)
    }
}

/// What one attempt at a fence came to.
package enum FenceOutcome: Sendable, Hashable {
    case proven(FenceProof)
    /// No proof; `reason` completes "waiting for a fence of h1 (...)".
    case unproven(reason: String)
}

/// One level of fencing. Never throws: whatever goes wrong is "unproven", with the reason.
package protocol Fencer: Sendable {
    /// Makes certain, or finds out, that the primary of `request` is gone.
    func fence(_ request: FenceRequest) async -> FenceOutcome
}

/// The local proof: asks the kernel whether anybody holds the primary lock. It looks, it does not
/// act.
package struct LockFencer: Fencer {
    /// Path of the segment's `lock` file on this host.
    package let lockPath: String

    package init(lockPath: String) {
        self.lockPath = lockPath
    }

    package func fence(_ request: FenceRequest) async -> FenceOutcome {
        do throws(FtvmError) {
            switch try PrimaryLock.holderState(path: lockPath) {
            case .free: return .proven(FenceProof(request, method: .primaryLock))
            case .held: return .unproven(reason: "its QEMU still holds the primary lock")
            }
        } catch {
            return .unproven(reason: "\(error)")
        }
    }
}
