import FoundationEssentials
import Glibc
import Model

/// Where `ftvm` looks for an `ftvmd`.
///
/// A socket that the user names is the only one tried: whoever says which daemon wants that one.
/// Otherwise this host's own daemon comes first, then the hosts of a lab that runs here, since any
/// host gives the same answer.
public struct SocketDiscovery: Sendable {
    public static let defaultPath = "/run/ftvm/ftvmd.sock"
    public static let labDirectory = "/run/ftvm-lab/hosts"
    public static let environmentVariable = "FTVM_SOCKET"

    /// Who named a socket.
    public enum Origin: Hashable, Sendable {
        case option, environment, standard, lab
    }

    public struct Candidate: Hashable, Sendable {
        public var path: String
        public var origin: Origin
        public init(path: String, origin: Origin) {
            self.path = path
            self.origin = origin
        }
    }

    /// The value of `--socket`.
    public var option: String?
    /// The value of `FTVM_SOCKET`.
    public var environment: String?
    public var defaultPath: String
    public var labDirectory: String

    public init(
        option: String? = nil, environment: String? = nil,
        defaultPath: String = SocketDiscovery.defaultPath,
        labDirectory: String = SocketDiscovery.labDirectory
    ) {
        self.option = option
        self.environment = environment
        self.defaultPath = defaultPath
        self.labDirectory = labDirectory
    }

    /// The sockets to try, in order. An empty `FTVM_SOCKET` counts as unset.
    public func candidates() -> [Candidate] {
        if let option { return [Candidate(path: option, origin: .option)] }
        if let environment, !environment.isEmpty {
            return [Candidate(path: environment, origin: .environment)]
        }
        let hosts = (try? FileManager.default.contentsOfDirectory(atPath: labDirectory)) ?? []
        return [Candidate(path: defaultPath, origin: .standard)]
            + hosts.sorted().map {
                Candidate(path: "\(labDirectory)/\($0)/ftvmd.sock", origin: .lab)
            }
    }

    /// The error for sockets none of which took a connection.
    package static func error(_ tried: [(Candidate, SocketProbe)]) -> FtvmError {
        let list = tried.map { "\($0.path): \($1.explanation)" }.joined(separator: "; ")
        if tried.contains(where: { $0.1 == .denied }) {
            return FtvmError(
                .permissionDenied, "not allowed to talk to ftvmd", cause: list,
                advice: "run ftvm as root")
        }
        let advice =
            switch tried.first?.0.origin {
            case .option: "check the path given with --socket"
            case .environment: "check the path in $\(environmentVariable), or unset it"
            default:
                "see whether it runs: 'systemctl status ftvmd' on a host, 'ftvm lab status' for a lab"
            }
        return FtvmError(
            .unavailable, "no ftvmd answers on this machine", cause: list, advice: advice)
    }
}

/// What came of an attempt to connect to a Unix socket.
///
/// A socket file outlives its daemon, so the file's being there says nothing; a connection does, and
/// the kernel refuses a stale one at once.
public enum SocketProbe: Hashable, Sendable {
    case accepts
    case absent
    /// The file is there, but nobody listens.
    case stale
    case denied
    /// Longer than a socket address can hold.
    case pathTooLong
    case failed(errno: Int32)

    public init(path: String) {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        let room = MemoryLayout.size(ofValue: address.sun_path) - 1
        guard bytes.count <= room else {
            self = .pathTooLong
            return
        }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        let kind = Int32(SOCK_STREAM.rawValue | SOCK_NONBLOCK.rawValue | SOCK_CLOEXEC.rawValue)
        let descriptor = socket(AF_UNIX, kind, 0)
        guard descriptor >= 0 else {
            self = .failed(errno: errno)
            return
        }
        defer { close(descriptor) }
        let length = socklen_t(MemoryLayout<sockaddr_un>.size)
        let answer = withUnsafePointer(to: address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, length)
            }
        }
        self = answer == 0 ? .accepts : SocketProbe(errno: errno)
    }

    private init(errno: Int32) {
        self =
            switch errno {
            // EAGAIN: the queue of connections is full. Somebody listens, and is busy.
            case EAGAIN: .accepts
            case ENOENT, ENOTDIR: .absent
            case ECONNREFUSED: .stale
            case EACCES, EPERM: .denied
            default: .failed(errno: errno)
            }
    }

    var explanation: String {
        switch self {
        case .accepts: "accepts connections but does not answer"
        case .absent: "no such socket"
        case .stale: "nobody listens (the socket of an ftvmd that is gone)"
        case .denied: "permission denied"
        case .pathTooLong: "too long for the path of a socket (107 bytes)"
        case .failed(let errno): String(cString: strerror(errno))
        }
    }
}
