import Fencing
import Model
import Synchronization
import Testing

private let request = FenceRequest(
    pair: PairName("demo"), host: HostName("h1"), generation: Generation(3))

/// A daemon that does as it is told, and never answers some questions.
private final class FakeDaemon: LibvirtFenceConnection {
    struct Behaviour: Sendable {
        var hostUUID = "AA"
        var state = LibvirtDomainState.active
        var stateAfterDestroy = LibvirtDomainState.inactive
        var destroyFails = false
        var hangs = false
    }
    private let behaviour: Mutex<Behaviour>
    let destroyed = Mutex(0)
    init(_ behaviour: Behaviour) { self.behaviour = Mutex(behaviour) }

    func hostUUID() async throws(FtvmError) -> String { behaviour.withLock { $0.hostUUID } }

    func state(ofDomain uuid: String) async throws(FtvmError) -> LibvirtDomainState {
        behaviour.withLock { $0.state }
    }

    func destroy(domain uuid: String) async throws(FtvmError) {
        if behaviour.withLock({ $0.hangs }) {
            // As a call over a dead link: not even cancelling ends it. Not for ever, for the test's
            // own sake.
            for _ in 0..<300 {
                try? await Task.detached { try await Task.sleep(for: .milliseconds(100)) }.value
            }
        }
        guard !behaviour.withLock({ $0.destroyFails }) else {
            throw FtvmError(.unavailable, "QEMU does not end")
        }
        destroyed.withLock { $0 += 1 }
        behaviour.withLock { $0.state = $0.stateAfterDestroy }
    }
}

@Suite struct LibvirtFencerTests {
    private func outcome(
        _ change: (inout FakeDaemon.Behaviour) -> Void
    ) async -> (FenceOutcome, destroyed: Int) {
        var behaviour = FakeDaemon.Behaviour()
        change(&behaviour)
        let daemon = FakeDaemon(behaviour)
        let fencer = LibvirtFencer(domainUUID: "D1", hostUUID: "aa", milliseconds: 300) { daemon }
        let outcome = await fencer.fence(request)
        return (outcome, daemon.destroyed.withLock { $0 })
    }

    private func method(_ outcome: FenceOutcome) -> FenceProof.Method? {
        guard case .proven(let proof) = outcome, proof.request == request else { return nil }
        return proof.method
    }

    @Test func destroyedAndSeenToBeGoneIsAProof() async {
        for state in [LibvirtDomainState.inactive, .absent] {
            let (outcome, destroyed) = await outcome { $0.stateAfterDestroy = state }
            #expect(method(outcome) == .libvirt && destroyed == 1)
        }
        let (ended, destroyed) = await outcome { $0.state = .inactive }
        #expect(method(ended) == .libvirt && destroyed == 0)
    }

    @Test func everythingElseIsNone() async {
        let (absent, _) = await outcome { $0.state = .absent }
        #expect(absent == .unproven(reason: "libvirt: h1 knows no domain demo"))
        let (another, destroyed) = await outcome { $0.hostUUID = "bb" }
        #expect(method(another) == nil && destroyed == 0)
        let (failed, _) = await outcome { $0.destroyFails = true }
        #expect(failed == .unproven(reason: "libvirt: QEMU does not end"))
        let (still, _) = await outcome { $0.stateAfterDestroy = .active }
        #expect(method(still) == nil)
    }

    @Test func aCallThatHangsIsLeftBehind() async {
        let start = ContinuousClock.now
        let (outcome, _) = await outcome { $0.hangs = true }
        #expect(outcome == .unproven(reason: "libvirt: no answer within 300 ms"))
        #expect(start.duration(to: .now) < .seconds(15))
    }

    @Test func noConnectionIsNoProof() async {
        let fencer = LibvirtFencer(domainUUID: "D1", hostUUID: "aa") { () throws(FtvmError) in
            throw FtvmError(.unavailable, "no route to host")
        }
        #expect(
            await fencer.fence(request) == .unproven(reason: "libvirt: no route to host"))
    }
}
