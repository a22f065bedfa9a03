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
    func disable(_ name: PairName) async throws(FtvmError) -> PairView
    /// Asks for the secondary to become the primary and returns the pair as it was then.
    func promote(_ name: PairName) async throws(FtvmError) -> PairView
    /// All hosts, by name.
    func hosts() async throws(FtvmError) -> [HostView]
    func events(_ query: EventQuery) async throws(FtvmError) -> [ClusterEvent]
    func pools() async throws(FtvmError) -> [PoolView]
    /// - Throws: `notFound` if there is no such pool.
    func pool(_ name: PoolName) async throws(FtvmError) -> PoolDetailView
}
