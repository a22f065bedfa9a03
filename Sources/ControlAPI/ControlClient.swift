import AsyncHTTPClient
import Model
import Synchronization

/// The control API over a Unix socket.
///
/// The socket is looked for at the first call and again after a call that got no answer, so that a
/// long wait survives the death of the very host whose daemon was asked. Call `shutdown` in the
/// end.
public final class ControlClient: ControlService {
    /// How long the client waits.
    public struct Timing: Sendable {
        /// For the answer to one request.
        public var request: Duration
        /// For the first sign of life when one of a lab's several daemons is to be chosen.
        public var probe: Duration
        /// How long a daemon that is slow to answer is alone in the race before the next one is
        /// asked.
        public var stagger: Duration
        public init(
            request: Duration = .seconds(30), probe: Duration = .seconds(5),
            stagger: Duration = .milliseconds(150)
        ) {
            self.request = request
            self.probe = probe
            self.stagger = stagger
        }
    }

    private let discovery: SocketDiscovery
    private let timing: Timing
    private let http: HTTPClient
    private let chosen = Mutex<String?>(nil)
    /// The one host that is asked, over the network; nil: a socket of this machine.
    private let remote: RemoteHost?

    /// Asks a host over the network, with mutual TLS.
    public convenience init(remote: RemoteHost, timing: Timing = Timing()) {
        self.init(discovery: SocketDiscovery(), timing: timing, remote: remote)
    }

    public convenience init(discovery: SocketDiscovery, timing: Timing = Timing()) {
        self.init(discovery: discovery, timing: timing, remote: nil)
    }

    private init(discovery: SocketDiscovery, timing: Timing, remote: RemoteHost?) {
        self.discovery = discovery
        self.timing = timing
        self.remote = remote
        var configuration = remote?.httpConfiguration ?? HTTPClient.Configuration()
        // A refused connection is an answer: the daemon is not there. Retrying is the caller's
        // business.
        configuration.connectionPool.retryConnectionEstablishment = false
        configuration.redirectConfiguration = .disallow
        self.http = HTTPClient(
            eventLoopGroupProvider: .singleton, configuration: configuration)
    }

    /// Closes the connections; no call may follow.
    public func shutdown() async {
        // Shutting down twice is the only failure there is, and harmless.
        try? await http.shutdown()
    }

    public func version() async throws(FtvmError) -> VersionView {
        try await call(.get, ControlRoute.version)
    }
    public func pairs() async throws(FtvmError) -> [PairView] {
        try await call(.get, ControlRoute.pairs)
    }
    public func pair(_ name: PairName) async throws(FtvmError) -> PairView {
        try await call(.get, ControlRoute.path(pair: name))
    }
    public func enable(_ request: EnableRequest) async throws(FtvmError) -> PairView {
        try await post(request, to: ControlRoute.pairs)
    }
    private func post<Value: Decodable>(
        _ request: some Encodable, to path: String
    ) async throws(FtvmError) -> Value {
        let body: [UInt8]
        do {
            body = try ControlJSON.encode(request)
        } catch {
            throw FtvmError(wrapping: error, "the request to \(path) cannot be written")
        }
        return try await call(.post, path, body: body)
    }
    public func disable(
        _ name: PairName, discardsState: Bool
    ) async throws(FtvmError) -> PairView {
        let query = discardsState ? "?\(ControlRoute.discardState)=true" : ""
        return try await call(.delete, ControlRoute.path(pair: name) + query)
    }
    public func promote(_ name: PairName) async throws(FtvmError) -> PairView {
        try await call(.post, ControlRoute.promotePath(pair: name))
    }
    public func switchover(
        _ name: PairName, _ request: SwitchoverRequest
    ) async throws(FtvmError) -> PairView {
        try await post(request, to: ControlRoute.switchoverPath(pair: name))
    }
    public func cancelSwitchover(_ name: PairName) async throws(FtvmError) -> PairView {
        try await call(.delete, ControlRoute.switchoverPath(pair: name))
    }
    public func drain(
        _ host: HostName, _ request: DrainRequest
    ) async throws(FtvmError) -> HostDrainView {
        try await post(request, to: ControlRoute.drainPath(host: host))
    }
    public func drainState(_ host: HostName) async throws(FtvmError) -> HostDrainView {
        try await call(.get, ControlRoute.drainPath(host: host))
    }
    public func undrain(_ host: HostName) async throws(FtvmError) -> HostDrainView {
        try await call(.delete, ControlRoute.drainPath(host: host))
    }
    public func fence(
        _ host: HostName, _ request: FenceHostRequest
    ) async throws(FtvmError) -> HostMembership {
        try await post(request, to: ControlRoute.fencePath(host: host))
    }
    public func startDrill(
        _ name: PairName, _ request: DrillRequest
    ) async throws(FtvmError) -> DrillStart {
        try await post(request, to: ControlRoute.drillPath(pair: name))
    }
    public func finishDrill(_ report: DrillReport) async throws(FtvmError) -> DrillReport {
        try await post(report, to: ControlRoute.drills)
    }
    public func drills() async throws(FtvmError) -> [DrillReport] {
        try await call(.get, ControlRoute.drills)
    }
    public func hosts() async throws(FtvmError) -> [HostView] {
        try await call(.get, ControlRoute.hosts)
    }
    public func doctor(domain: String?) async throws(FtvmError) -> DoctorReport {
        try await call(.get, ControlRoute.doctorPath(domain: domain))
    }
    public func events(_ query: EventQuery) async throws(FtvmError) -> [ClusterEvent] {
        try await call(.get, query.path)
    }
    public func pools() async throws(FtvmError) -> [PoolView] {
        try await call(.get, ControlRoute.pools)
    }
    public func pool(_ name: PoolName) async throws(FtvmError) -> PoolDetailView {
        try await call(.get, ControlRoute.path(pool: name))
    }

    private func call<Value: Decodable>(
        _ method: Method, _ path: String, body: [UInt8]? = nil
    ) async throws(FtvmError) -> Value {
        let socket = try await socketPath()
        let answer: Answer
        do {
            answer = try await send(method, path, body: body, to: socket, within: timing.request)
        } catch {
            chosen.withLock { $0 = nil }
            throw error
        }
        guard (200..<300).contains(answer.status) else {
            throw FtvmError(httpStatus: answer.status, body: answer.body)
        }
        do {
            return try ControlJSON.decode(from: answer.body)
        } catch {
            throw FtvmError(
                .internalError, "the answer of ftvmd at \(socket) makes no sense",
                cause: "\(error)",
                advice: "ftvm and ftvmd may differ in version: compare them with 'ftvm version'")
        }
    }

    private enum Method {
        case get, post, delete
    }

    private struct Answer: Sendable {
        var status: Int
        var body: [UInt8]
    }

    private func send(
        _ method: Method, _ path: String, body: [UInt8]?, to socket: String,
        within timeout: Duration
    ) async throws(FtvmError) -> Answer {
        var request = HTTPClientRequest(
            url: (remote?.url ?? "http+unix://" + ControlRoute.encode(socket)) + path)
        switch method {
        case .get: request.method = .GET
        case .post: request.method = .POST
        case .delete: request.method = .DELETE
        }
        request.headers.add(name: "Accept", value: "application/json")
        if let body {
            request.headers.add(name: "Content-Type", value: ControlJSON.contentType)
            request.body = .bytes(body)
        }
        do {
            let response = try await http.execute(request, timeout: .init(timeout))
            let buffer = try await response.body.collect(upTo: ControlRoute.responseBodyLimit)
            return Answer(
                status: Int(response.status.code), body: Array(buffer.readableBytesView))
        } catch let error as HTTPClientError
            where error == .deadlineExceeded || error == .connectTimeout || error == .readTimeout
        {
            throw FtvmError(
                .timedOut, "ftvmd at \(socket) did not answer within \(timeout)",
                advice: "its host may be frozen or overloaded: see 'ftvm hosts' from another host")
        } catch {
            if let remote { throw remote.failure(error) }
            throw FtvmError(
                .unavailable, "the connection to ftvmd at \(socket) failed", cause: "\(error)",
                advice: "see whether it runs: 'systemctl status ftvmd', or 'ftvm lab status'")
        }
    }
}

extension ControlClient {
    /// The socket to use, looked for if none is known to answer.
    private func socketPath() async throws(FtvmError) -> String {
        if let remote { return remote.url }
        if let known = chosen.withLock({ $0 }) { return known }
        let tried = discovery.candidates().map { ($0, SocketProbe(path: $0.path)) }
        let open = tried.filter { $0.1 == .accepts }.map(\.0)
        guard let first = open.first else { throw SocketDiscovery.error(tried) }
        let found: String
        if first.origin != .lab || open.count == 1 {
            // The user's choice, this host's own daemon, or no choice: the request itself will
            // tell.
            found = first.path
        } else if let alive = await firstAlive(of: open.map(\.path)) {
            found = alive
        } else {
            throw SocketDiscovery.error(tried)
        }
        chosen.withLock { $0 = found }
        return found
    }

    /// The first daemon to answer. A frozen one accepts connections and never answers, so the next
    /// one is asked while the first may still think.
    private func firstAlive(of paths: [String]) async -> String? {
        await withTaskGroup(of: String?.self) { group in
            for (index, path) in paths.enumerated() {
                group.addTask {
                    try? await Task.sleep(for: self.timing.stagger * index)
                    let answer = try? await self.send(
                        .get, ControlRoute.version, body: nil, to: path, within: self.timing.probe)
                    return answer?.status == 200 ? path : nil
                }
            }
            for await path in group {
                if let path {
                    group.cancelAll()
                    return path
                }
            }
            return nil
        }
    }
}
