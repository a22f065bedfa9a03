import Model

/// What `ftvmd` offers to the CLI. Each call may throw any `FtvmError`; `unavailable` and `timedOut`
/// say that the daemon did not answer and may answer later.
public protocol ControlService: Sendable {
    func version() async throws(FtvmError) -> VersionView
    /// All pairs, by name.
    func pairs() async throws(FtvmError) -> [PairView]
    /// - Throws: `notFound` if there is no such pair.
    func pair(_ name: PairName) async throws(FtvmError) -> PairView
    /// Starts to protect a domain and returns at once: the pair's state then tells how it goes.
    func enable(_ request: EnableRequest) async throws(FtvmError) -> PairView
    /// Starts to give the domain back to libvirt and returns at once; the pair is gone in the end.
    /// - Parameter discardsState: the guest cannot go on, and what it had in memory is given up.
    func disable(_ name: PairName, discardsState: Bool) async throws(FtvmError) -> PairView
    /// Asks for the secondary to become the primary and returns the pair as it was then.
    func promote(_ name: PairName) async throws(FtvmError) -> PairView
    /// Asks for a planned move and returns at once: `switchover`, later `lastSwitchover`, tell how it goes.
    func switchover(
        _ name: PairName, _ request: SwitchoverRequest
    ) async throws(FtvmError) -> PairView
    /// Takes the wish for a planned move back.
    func cancelSwitchover(_ name: PairName) async throws(FtvmError) -> PairView
    /// Begins to empty a host; asked again it changes nothing but reason and number.
    func drain(_ host: HostName, _ request: DrainRequest) async throws(FtvmError) -> HostDrainView
    func drainState(_ host: HostName) async throws(FtvmError) -> HostDrainView
    /// Puts a host into service again.
    func undrain(_ host: HostName) async throws(FtvmError) -> HostDrainView
    /// Begins the fence of a host, or takes a person's word for its proof.
    func fence(
        _ host: HostName, _ request: FenceHostRequest
    ) async throws(FtvmError) -> HostMembership
    /// Begins a drill: what is refused is refused here.
    func startDrill(_ name: PairName, _ request: DrillRequest) async throws(FtvmError) -> DrillStart
    /// Keeps the report of a drill that has ended.
    func finishDrill(_ report: DrillReport) async throws(FtvmError) -> DrillReport
    /// Reports kept, oldest first.
    func drills() async throws(FtvmError) -> [DrillReport]
    /// All hosts, by name.
    func hosts() async throws(FtvmError) -> [HostView]
    /// Has every host look at itself, and judges that, and a domain.
    func doctor(domain: String?) async throws(FtvmError) -> DoctorReport
    func events(_ query: EventQuery) async throws(FtvmError) -> [ClusterEvent]
    func pools() async throws(FtvmError) -> [PoolView]
    /// - Throws: `notFound` if there is no such pool.
    func pool(_ name: PoolName) async throws(FtvmError) -> PoolDetailView
}
