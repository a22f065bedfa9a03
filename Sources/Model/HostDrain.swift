/// A pair that is still on a host that is being emptied.
public struct DrainRemainder: Hashable, Sendable, Codable {
    public enum Progress: String, Sendable, Codable, CaseIterable {
        /// It is being moved.
        case moving
        /// Its turn comes, or something under way has to end first.
        case waiting
        /// It cannot move as things are: see the reason.
        case stuck
    }
    public var pair: PairName
    /// What it has there.
    public var role: Role
    public var progress: Progress
    /// What is going on, or why it cannot move.
    public var reason: String

    public init(pair: PairName, role: Role, progress: Progress, reason: String) {
        self.pair = pair
        self.role = role
        self.progress = progress
        self.reason = reason
    }
}
