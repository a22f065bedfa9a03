import Model

/// What a host looks like to the one that decides.
package struct HostView: Sendable, Hashable {
    package var state: HostState
    /// The pools that the host can map.
    package var pools: [PoolName]
    /// Memory that its kernel calls available, in bytes.
    package var memoryAvailableBytes: UInt64
    /// Taken out of service by a user: gets nothing new.
    package var maintenance: Bool
    /// Pairs that have their primary or secondary there.
    package var pairs: Int
    /// Why a promotion or a secondary of *this* pair failed there lately; nil: nothing known. Such
    /// a host is taken last. How long "lately" is, the agent knows.
    package var recentFailure: String?

    package init(
        state: HostState, pools: [PoolName], memoryAvailableBytes: UInt64,
        maintenance: Bool = false, pairs: Int = 0, recentFailure: String? = nil
    ) {
        self.state = state
        self.pools = pools
        self.memoryAvailableBytes = memoryAvailableBytes
        self.maintenance = maintenance
        self.pairs = pairs
        self.recentFailure = recentFailure
    }
}

/// What a QEMU on a segment needs of its host.
package struct PlacementNeed: Sendable, Hashable {
    /// The segment's pool; nil: any.
    package var pool: PoolName?
    /// Memory beside the guest's RAM, which is in the pool, in bytes.
    package var memoryBytes: UInt64
    /// The host that the user wished for: taken first if it will do.
    package var wish: HostName?
    /// Hosts that must not be taken, and why.
    package var excluded: [HostName: String]

    /// QEMU's own memory for a small guest was measured at 51 MB; 64 MiB with some air.
    package static let qemuMemoryBytes: UInt64 = 64 << 20

    package init(
        pool: PoolName?, memoryBytes: UInt64 = PlacementNeed.qemuMemoryBytes,
        wish: HostName? = nil, excluded: [HostName: String] = [:]
    ) {
        self.pool = pool
        self.memoryBytes = memoryBytes
        self.wish = wish
        self.excluded = excluded
    }
}

/// Where a QEMU could go: a pure function of what is known of the hosts.
package struct Placement: Sendable, Hashable {
    package struct Rejection: Sendable, Hashable {
        package let host: HostName
        package let reason: String
        package init(host: HostName, reason: String) {
            self.host = host
            self.reason = reason
        }
    }

    /// Best first.
    package let candidates: [HostName]
    /// Every other host with its reason, by name.
    package let rejected: [Rejection]

    /// Looks at every host. The order: the wished-for host, hosts on which nothing failed lately,
    /// hosts with fewer pairs, then by name. Free memory only has to suffice and does not decide
    /// the order, since it differs from look to look and all hosts are to come to the same order.
    package init(_ need: PlacementNeed, hosts: [HostName: HostView]) {
        var fitting: [(host: HostName, view: HostView)] = []
        var rejected: [Rejection] = []
        for (host, view) in hosts {
            if let reason = Placement.rejection(of: host, view, need) {
                rejected.append(Rejection(host: host, reason: reason))
            } else {
                fitting.append((host, view))
            }
        }
        func rank(_ host: HostName, _ view: HostView) -> (Int, Int, Int, String) {
            (
                view.recentFailure == nil ? 0 : 1, host == need.wish ? 0 : 1, view.pairs,
                host.text
            )
        }
        fitting.sort { rank($0.host, $0.view) < rank($1.host, $1.view) }
        self.candidates = fitting.map(\.host)
        self.rejected = rejected.sorted { $0.host < $1.host }
    }

    private static func rejection(
        of host: HostName, _ view: HostView, _ need: PlacementNeed
    ) -> String? {
        if let reason = need.excluded[host] { return reason }
        if view.state != .online { return view.state.rawValue }
        if view.maintenance { return "in maintenance" }
        if let pool = need.pool, !view.pools.contains(pool) {
            return "pool \(pool) not visible"
        }
        if view.memoryAvailableBytes < need.memoryBytes {
            return "\(view.memoryAvailableBytes >> 20) MiB of memory free, "
                + "\(need.memoryBytes >> 20) MiB needed"
        }
        return nil
    }

    /// `h2: dead; h3: pool ram0 not visible`, or that there is no other host at all.
    package var rejections: String {
        if rejected.isEmpty { return "there is no other host" }
        return rejected.map { "\($0.host): \($0.reason)" }.joined(separator: "; ")
    }
}
