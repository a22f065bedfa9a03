/// Why something happened in the cluster, as a value: what `ClusterEvent.message` says in words.
public enum EventReason: Hashable, Sendable, Codable {
    /// Suspicion: silent on these ways, heard on the others.
    case silent(ways: [HeartbeatWay], missed: UInt64)
    /// Death: silent on every way that can be looked at.
    case allSilent(missed: UInt64)
    /// The process of its ftvmd is gone.
    case processGone
    case heardAgain
    case fenceTried(HostName, level: String, result: String)
    case fenceProven(HostName, FenceMethod)
    /// It stops its guests itself.
    case selfFenced(String)
    case promotion(Generation, FenceMethod)
    case reprotection(on: HostName)
    case refused(String)

    /// The kind under which it is recorded.
    public var kind: ClusterEvent.Kind {
        switch self {
        case .silent, .processGone: .hostSuspected
        case .allSilent: .hostDead
        case .heardAgain: .hostOnline
        case .fenceTried: .waitingForFence
        case .fenceProven, .selfFenced: .fenced
        case .promotion: .promotionStarted
        case .reprotection: .secondaryStarted
        case .refused: .refused
        }
    }
}
