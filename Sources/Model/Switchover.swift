/// A planned move of a pair's primary to another host. It stands in the pair's record from the
/// request until it is done, refused or given up.
public struct Switchover: Hashable, Sendable, Codable {
    /// Tells this request from every other, for whoever waits for it.
    public var id: String
    /// The host that is to have the primary. Its secondary is made first if it is elsewhere.
    public var target: HostName
    /// Who asked, for a user to read: "ftvm switchover", "drain of h1", "drill".
    public var requestedBy: String
    /// Why, in the words of whoever asked; empty when none were given.
    public var reason: String
    /// The target has everything ready and waits for the primary lock. The primary's host stops the
    /// guest only then. Not a claim: nothing is promised by it, and it may be taken back.
    public var armed: Bool

    public init(id: String, target: HostName, requestedBy: String, reason: String = "") {
        self.id = id
        self.target = target
        self.requestedBy = requestedBy
        self.reason = reason
        self.armed = false
    }
}

/// What became of a planned move.
public struct SwitchoverOutcome: Hashable, Sendable, Codable {
    public enum Result: String, Sendable, Codable, CaseIterable {
        /// The guest runs on the target.
        case done
        /// It could not begin; the guest was not touched.
        case refused
        /// The target could not go on; another host did, or the primary never stopped.
        case failed
        case cancelled
    }
    /// The request's.
    public var id: String
    public var target: HostName
    public var result: Result
    /// Why; empty for `done`.
    public var reason: String

    public init(id: String, target: HostName, result: Result, reason: String = "") {
        self.id = id
        self.target = target
        self.result = result
        self.reason = reason
    }
}
