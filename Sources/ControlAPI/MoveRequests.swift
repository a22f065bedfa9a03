import Model

/// Body of `POST /v1/pairs/NAME/switchover`.
public struct SwitchoverRequest: Hashable, Sendable, Codable {
    /// nil: the present secondary's host.
    public var target: HostName?
    /// Who asks, for people: "ftvm switchover".
    public var requestedBy: String
    public var reason: String

    public init(target: HostName? = nil, requestedBy: String, reason: String = "") {
        self.target = target
        self.requestedBy = requestedBy
        self.reason = reason
    }
}

/// Body of `POST /v1/hosts/NAME/drain`.
public struct DrainRequest: Hashable, Sendable, Codable {
    public var reason: String
    /// Pairs moved at a time; nil: the default.
    public var parallel: Int?

    public init(reason: String = "", parallel: Int? = nil) {
        self.reason = reason
        self.parallel = parallel
    }
}

/// How far a host is with being emptied.
public struct HostDrainView: Hashable, Sendable, Codable {
    public var host: HostName
    public var state: HostState
    /// nil: the host is in service.
    public var maintenance: HostMaintenance?
    /// What is on it; empty and in maintenance: drained.
    public var remaining: [DrainRemainder]

    public init(
        host: HostName, state: HostState, maintenance: HostMaintenance?,
        remaining: [DrainRemainder]
    ) {
        self.host = host
        self.state = state
        self.maintenance = maintenance
        self.remaining = remaining
    }
}

/// Body of `POST /v1/pairs/NAME/drill`.
public struct DrillRequest: Hashable, Sendable, Codable {
    public var kind: DrillKind
    /// Also where it cannot be protected again afterwards.
    public var force: Bool

    public init(kind: DrillKind, force: Bool = false) {
        self.kind = kind
        self.force = force
    }
}

/// A drill that has begun.
public struct DrillStart: Hashable, Sendable, Codable {
    public var report: DrillReport
    /// To be run by the client: it makes the fault.
    public var command: [String]?

    public init(report: DrillReport, command: [String]? = nil) {
        self.report = report
        self.command = command
    }
}

/// Body of `POST /v1/hosts/NAME/fence`.
public struct FenceHostRequest: Hashable, Sendable, Codable {
    /// The user has seen to it that the host is off: this is the proof.
    public var confirmDead: Bool
    /// Who says so, for people: "root on h2".
    public var requestedBy: String

    public init(confirmDead: Bool = false, requestedBy: String = "") {
        self.confirmDead = confirmDead
        self.requestedBy = requestedBy
    }
}
