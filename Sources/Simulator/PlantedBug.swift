/// Defects of an agent, or of what it stands on, planted on purpose by tests: the rules must notice
/// each of them.
package enum PlantedBug: String, Sendable, CaseIterable {
    /// A host that is dead to the detector counts as proven gone.
    case deathIsProof
    /// A proof of an earlier incarnation counts for the present one.
    case proofOutlivesIncarnation
    /// A fence device that did not answer in time counts as done.
    case timeOutIsProof
    /// Packets leave before the epoch's record is published.
    case releaseBeforeCommit
    /// A commit does not compare the generation.
    case commitWithoutCompare
    /// A promoted primary does not write its generation into the segment.
    case segmentNotRaised
    /// A host goes on acknowledging heartbeats of a host whose fence it has noted.
    case acknowledgesFenced
    /// A host's own deadline is later than the others' wait.
    case selfFenceLate
    /// Our own delay is held against the others.
    case ownDelayAccuses
    /// Who is silent on one way is dead.
    case oneWayIsDeath
    /// Records are written without compare-and-swap.
    case noCompareAndSwap
    /// A claim does not raise the generation.
    case claimKeepsGeneration
    /// A promotion goes on without rolling back.
    case noRollBack
    /// A QEMU that should be ended is not.
    case staleIsLeft
    /// A waiting QEMU counts as ready that was made before the guest was enabled anew.
    case anyWaitingIsReady
}
