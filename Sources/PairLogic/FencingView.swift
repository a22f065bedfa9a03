import Model

/// What the deciding host knows, beside the primary lock, of who is proven gone.
///
/// The primary lock is a proof between hosts that share a kernel and says nothing about any other
/// host. Those are fenced as a whole (`FenceRecord`), and a proof counts for one incarnation.
package struct FencingView: Sendable, Hashable {
    /// The hosts that share this host's kernel, as configured; nil: all of them (a lab).
    package var kernelPeers: Set<HostName>?
    /// Hosts whose *registered* incarnation is proven gone.
    package var proofs: [HostName: FenceMethod]
    /// Why others are not, for the pair's reason; the same on all hosts, since it is in the store.
    package var waiting: [HostName: String]

    package init(
        kernelPeers: Set<HostName>? = nil, proofs: [HostName: FenceMethod] = [:],
        waiting: [HostName: String] = [:]
    ) {
        self.kernelPeers = kernelPeers
        self.proofs = proofs
        self.waiting = waiting
    }

    /// From the fences in the store.
    /// - Parameter incarnations: of the hosts as they are registered in the store.
    package init(
        kernelPeers: Set<HostName>?, fences: some Sequence<FenceRecord>,
        incarnations: [HostName: UInt64]
    ) {
        self.init(kernelPeers: kernelPeers)
        for fence in fences where incarnations[fence.host] == fence.incarnation {
            if let method = fence.method {
                proofs[fence.host] = method
            } else {
                waiting[fence.host] = fence.status
            }
        }
    }

    /// Whether the primary lock tells of QEMUs on `host`.
    package func lockTells(of host: HostName) -> Bool { kernelPeers?.contains(host) ?? true }

    /// Whether `host` is proven to have no primary of the pair any more. libvirt's word is enough for
    /// a primary, but not for a host that is promoting: its ftvmd may be about to start what libvirt
    /// saw to be not there.
    func proves(_ host: HostName, _ record: PairRecord) -> Bool {
        guard let method = proofs[host] else { return false }
        return method != .libvirt || record.promoting != host
    }

    /// To be asked just before a claim is written, of fences that were read *after* `record` and
    /// together with the hosts' registered incarnations: the proof must hold for the record that the
    /// compare-and-swap compares with. Everything else is always allowed.
    package func allows(
        _ action: PairAction, on record: PairRecord, by me: HostName
    ) -> Bool {
        let elsewhere = record.possibleHolders(besides: me).filter { !lockTells(of: $0) }
        switch action {
        case .claimFenced, .giveUp: return elsewhere.allSatisfy { proves($0, record) }
        case .claimPromotion: return elsewhere.isEmpty
        default: return true
        }
    }
}

/// The primary lock and the proofs taken together.
struct PrimaryEvidence: Hashable {
    /// `free` only when it is certain that no earlier primary can write any more.
    var lock: PrimaryLockState
    /// What made it certain, if it was the fence of a host.
    var method: FenceMethod?
    /// Hosts of which that is not certain.
    var unproven: [HostName] = []
    /// Completes "waiting for a fence of h1 (...)".
    var reason = ""
    /// The reason is in the store, the same for everybody.
    var isShared = false
}

extension PairRecord {
    /// Hosts that may still have a QEMU with write access to the segment, besides `me`. Everybody
    /// before an ordinary claim was proven gone when it was made.
    func possibleHolders(besides me: HostName) -> [HostName] {
        var holders = primaryGone == nil ? [primary] : []
        // Also when it is the old primary's own host: what it promotes is another QEMU.
        if let promoting, !holders.contains(promoting) { holders.append(promoting) }
        return holders.filter { $0 != me }
    }
}

extension PairSituation {
    func evidence(_ record: PairRecord) -> PrimaryEvidence {
        switch primaryLock {
        case .heldHere: return PrimaryEvidence(lock: .heldHere)
        case .held:
            return PrimaryEvidence(lock: .held, reason: "its QEMU still holds the primary lock")
        case .unknown:
            return PrimaryEvidence(lock: .unknown, reason: "the primary lock cannot be asked for")
        case .free: break
        }
        let elsewhere = record.possibleHolders(besides: me).filter { !fencing.lockTells(of: $0) }
        guard let first = elsewhere.first else {
            return PrimaryEvidence(lock: .free)
        }
        let unproven = elsewhere.filter { !fencing.proves($0, record) }
        guard let host = unproven.first else {
            return PrimaryEvidence(lock: .free, method: fencing.proofs[first])
        }
        let status = fencing.waiting[host]
        return PrimaryEvidence(
            lock: .unknown, unproven: unproven, reason: status ?? "not begun yet",
            isShared: status != nil)
    }

    /// Hosts that have to be fenced before this pair can go on: a failover is due, and the lock
    /// tells nothing of them, or went with the segment. Never one that is only suspect.
    package func fencesNeeded() -> [HostName] {
        guard let record, PairDecision.failoverIsDue(self, record) else { return [] }
        return record.possibleHolders(besides: me).filter {
            ((segmentGone && record.isToBeGivenUp) || !fencing.lockTells(of: $0))
                && !fencing.proves($0, record)
                && hosts[$0]?.state == .dead
        }
    }
}
