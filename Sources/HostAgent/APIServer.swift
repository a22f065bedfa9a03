import ConfigurationFiles
import ControlAPI
import Foundation
import Glibc
import Hummingbird
import HummingbirdCore
import Logging
import Model

/// The control API on the host's Unix socket. It decides nothing: each route is one call of the agent.
struct APIServer {
    let agent: Agent
    let logger: Logger
    private let socketPath: String
    private let api: APIConfiguration
    private let connections: Int
    /// Who may use the socket besides root.
    private let group: gid_t?

    /// - Throws: `notFound` for a group that this host does not have.
    init(agent: Agent, cluster: ClusterConfiguration, logger: Logger) throws {
        self.agent = agent
        self.logger = logger
        socketPath = cluster.daemon.socketPath
        api = cluster.api
        connections = cluster.limits.connections
        group = try cluster.api.socketGroup.map { name in
            guard let found = getgrnam(name) else {
                throw FtvmError(
                    .notFound, "this host has no group \(name)", cause: "`socket_group` in [api]",
                    advice: "make it (groupadd --system \(name)), or leave the key out")
            }
            return found.pointee.gr_gid
        }
    }

    /// The same on the network, behind mutual TLS.
    func application(on network: APIConfiguration.Network) throws -> some ApplicationProtocol {
        var served = NetworkAPI(
            address: network.address, port: Int(network.port), tls: network.tls.files)
        served.connections = connections
        return try served.application(responder: router().buildResponder(), logger: logger)
    }

    /// An HTTP service to be run in a service group.
    func application() -> some ApplicationProtocol {
        // A stale socket of a former ftvmd; a living one holds this host's heartbeat slot, and we are not here.
        unlink(socketPath)
        return Application(
            router: router(),
            configuration: ApplicationConfiguration(
                address: .unixDomainSocket(path: socketPath), serverName: "ftvmd",
                availableConnectionsDelegate: MaximumAvailableConnections(connections)),
            onServerRunning: { [socketPath, api, group] _ in
                // Whoever may use it may end VMs. It was made for root only (umask), and is opened last.
                if let group { chown(socketPath, 0, group) }
                chmod(socketPath, api.socketMode)
            },
            logger: logger)
    }

    private func router() -> Router<BasicRequestContext> {
        let router = Router()
        let agent = agent
        router.get(RouterPath(ControlRoute.version)) { _, _ in
            try await answer { await agent.versionView() }
        }
        router.get(RouterPath(ControlRoute.pairs)) { _, _ in
            try await answer { try await agent.pairViews() }
        }
        router.get(RouterPath(ControlRoute.pair)) { _, context in
            try await answer { try await agent.pairView(PairName(try name(context))) }
        }
        router.post(RouterPath(ControlRoute.pairs)) { request, _ in
            try await answer(.accepted) {
                let wish = try await body(EnableRequest.self, of: request)
                return await agent.view(of: try await agent.enable(wish))
            }
        }
        router.delete(RouterPath(ControlRoute.pair)) { request, context in
            try await answer(.accepted) {
                let discards = request.uri.queryParameters[ControlRoute.discardState[...]] == "true"
                let name = PairName(try name(context))
                return await agent.view(of: try await agent.disable(name, discardsState: discards))
            }
        }
        router.post(RouterPath(ControlRoute.promotePair)) { _, context in
            try await answer(.accepted) {
                await agent.view(of: try await agent.requestPromotion(PairName(try name(context))))
            }
        }
        addMoves(to: router)
        addFences(to: router)
        addDrills(to: router)
        addListings(to: router)
        return router
    }

    private func addMoves(to router: Router<BasicRequestContext>) {
        let agent = agent
        router.post(RouterPath(ControlRoute.switchover)) { request, context in
            try await answer(.accepted) {
                let wish = try await body(SwitchoverRequest.self, of: request)
                let pair = PairName(try name(context))
                return await agent.view(of: try await agent.requestSwitchover(pair, wish))
            }
        }
        router.delete(RouterPath(ControlRoute.switchover)) { _, context in
            try await answer(.accepted) {
                let pair = PairName(try name(context))
                return await agent.view(of: try await agent.cancelSwitchover(pair))
            }
        }
        router.get(RouterPath(ControlRoute.drain)) { _, context in
            try await answer { try await agent.drainView(HostName(try name(context))) }
        }
        router.post(RouterPath(ControlRoute.drain)) { request, context in
            try await answer(.accepted) {
                let wish = try await body(DrainRequest.self, of: request)
                return try await agent.drain(HostName(try name(context)), wish)
            }
        }
        router.delete(RouterPath(ControlRoute.drain)) { _, context in
            try await answer(.accepted) { try await agent.undrain(HostName(try name(context))) }
        }
    }

    private func addFences(to router: Router<BasicRequestContext>) {
        let agent = agent
        router.post(RouterPath(ControlRoute.fence)) { request, context in
            try await answer(.accepted) {
                let wish = try await body(FenceHostRequest.self, of: request)
                return try await agent.fence(HostName(try name(context)), wish)
            }
        }
    }

    private func addDrills(to router: Router<BasicRequestContext>) {
        let agent = agent
        router.post(RouterPath(ControlRoute.drill)) { request, context in
            try await answer(.accepted) {
                let wish = try await body(DrillRequest.self, of: request)
                return try await agent.startDrill(PairName(try name(context)), wish)
            }
        }
        router.get(RouterPath(ControlRoute.drills)) { _, _ in
            try await answer { try await agent.drillReports() }
        }
        router.post(RouterPath(ControlRoute.drills)) { request, _ in
            try await answer(.accepted) {
                try await agent.finishDrill(try await body(DrillReport.self, of: request))
            }
        }
    }

    private func addListings(to router: Router<BasicRequestContext>) {
        let agent = agent
        router.get(RouterPath(ControlRoute.hosts)) { _, _ in
            try await answer { try await agent.hostList() }
        }
        router.get(RouterPath(ControlRoute.events)) { request, _ in
            try await answer {
                let parameters = request.uri.queryParameters
                return try await agent.events(
                    EventQuery(
                        after: parameters["after"].map(String.init),
                        limit: parameters["limit"].map(String.init),
                        pair: parameters["pair"].map(String.init)))
            }
        }
        router.get(RouterPath(ControlRoute.doctor)) { request, _ in
            try await answer {
                try await agent.doctor(request.uri.queryParameters["domain"].map(String.init))
            }
        }
        router.get(RouterPath(ControlRoute.pools)) { _, _ in
            try await answer { await agent.poolViews() }
        }
        router.get(RouterPath(ControlRoute.pool)) { _, context in
            try await answer { try await agent.poolView(PoolName(try name(context))) }
        }
    }
}

/// The request's body.
private func body<Value: Decodable>(_ type: Value.Type, of request: Request) async throws -> Value {
    let bytes = try await request.body.collect(upTo: ControlRoute.requestBodyLimit)
    do {
        return try ControlJSON.decode(from: Array(buffer: bytes))
    } catch {
        throw FtvmError(.invalidArgument, "the request's body makes no sense", cause: "\(error)")
    }
}

/// The `:name` of the path.
private func name(_ context: BasicRequestContext) throws -> String {
    let parameter = try context.parameters.require(ControlRoute.nameParameter)
    guard let name = ControlRoute.decode(parameter: parameter) else {
        throw FtvmError(.invalidArgument, "the path is not percent-encoded UTF-8")
    }
    return name
}

/// The value as JSON, or the error as JSON with its status.
private func answer<Value: Encodable>(
    _ status: HTTPResponse.Status = .ok, _ body: () async throws -> Value
) async throws -> Response {
    do {
        return try response(status, try await body())
    } catch {
        let known = FtvmError(ours: error)
        return try response(.init(code: known.code.httpStatus), known)
    }
}

private func response(_ status: HTTPResponse.Status, _ value: some Encodable) throws -> Response {
    Response(
        status: status, headers: [.contentType: ControlJSON.contentType],
        body: ResponseBody(byteBuffer: ByteBuffer(bytes: try ControlJSON.encode(value))))
}
