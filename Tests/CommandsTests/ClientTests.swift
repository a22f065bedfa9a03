import Commands
import ControlAPI
import Glibc
import Model
import Testing

/// The client against a real Unix socket.
@Suite struct ClientTests {
    private let directory = TemporaryDirectory()
    private var socket: String { "\(directory.path)/s" }

    private func withClient<Value: Sendable>(
        _ discovery: SocketDiscovery, timing: ControlClient.Timing = .init(),
        _ body: (ControlClient) async throws -> Value
    ) async throws -> Value {
        let client = ControlClient(discovery: discovery, timing: timing)
        do {
            let value = try await body(client)
            await client.shutdown()
            return value
        } catch {
            await client.shutdown()
            throw error
        }
    }

    @Test func everyCallGoesToItsRoute() async throws {
        let server = TestServer(path: socket) { request in
            switch request.target {
            case "/v1/version":
                .init(200, VersionView(version: "1", host: HostName("h1")))
            case "/v1/pairs":
                request.method == "POST"
                    ? .init(202, Samples.pair(.starting)) : .init(200, [Samples.protectedPair()])
            case "/v1/pairs/my%20vm%2F%C3%BC": .init(200, Samples.protectedPair())
            case "/v1/pairs/demo", "/v1/pairs/demo?discard-state=true", "/v1/pairs/demo/promote":
                .init(202, Samples.protectedPair())
            case "/v1/hosts": .init(200, Samples.hosts)
            case "/v1/events?limit=2&after=6&pair=a%26b": .init(200, Samples.events)
            case "/v1/pools": .init(200, [Samples.pool])
            case "/v1/pools/default": .init(200, Samples.poolDetail)
            default: .init(404, "nothing here")
            }
        }
        try await withClient(SocketDiscovery(option: socket)) { client in
            #expect(try await client.version() == VersionView(version: "1", host: HostName("h1")))
            #expect(try await client.pairs() == [Samples.protectedPair()])
            #expect(try await client.pair(PairName("my vm/ü")) == Samples.protectedPair())
            let request = EnableRequest(
                domain: "demo", options: PairOptionsRequest(epochMaximumMilliseconds: 20))
            #expect(try await client.enable(request) == Samples.pair(.starting))
            #expect(try await client.promote(PairName("demo")) == Samples.protectedPair())
            for discards in [false, true] {
                let pair = try await client.disable(PairName("demo"), discardsState: discards)
                #expect(pair == Samples.protectedPair())
            }
            #expect(try await client.hosts() == Samples.hosts)
            let query = EventQuery(after: 6, limit: 2, pair: PairName("a&b"))
            #expect(try await client.events(query) == Samples.events)
            #expect(try await client.pools() == [Samples.pool])
            #expect(try await client.pool(PoolName("default")) == Samples.poolDetail)
            let posted = try #require(server.requests.first { $0.body.contains("domain") })
            #expect(try ControlJSON.decode(EnableRequest.self, from: posted.body.utf8) == request)
        }
        #expect(
            server.requests.map(\.method) == [
                "GET", "GET", "GET", "POST", "POST", "DELETE", "DELETE", "GET", "GET", "GET", "GET",
            ])
        #expect(
            server.requests.filter { $0.method == "DELETE" }.map(\.target) == [
                "/v1/pairs/demo", "/v1/pairs/demo?discard-state=true",
            ])
    }

    @Test(arguments: FtvmError.Code.allCases)
    func anErrorComesBackWhole(code: FtvmError.Code) async throws {
        let sent = FtvmError(code, "what", cause: "why", advice: "next")
        let server = TestServer(path: socket) { _ in .init(code.httpStatus, sent) }
        let received = await #expect(throws: FtvmError.self) {
            try await withClient(SocketDiscovery(option: socket)) { try await $0.pairs() }
        }
        #expect(received == sent)
        #expect(server.requests.count == 1)
    }

    @Test func anAnswerThatIsNotOursIsReported() async throws {
        let server = TestServer(path: socket) { request in
            request.target == "/v1/hosts" ? .init(404, "no route") : .init(200, "[{}]")
        }
        try await withClient(SocketDiscovery(option: socket)) { client in
            let missing = await #expect(throws: FtvmError.self) { try await client.hosts() }
            #expect(missing?.code == .notFound)
            #expect(missing?.cause == "no route")
            let garbled = await #expect(throws: FtvmError.self) { try await client.pairs() }
            #expect(garbled?.code == .internalError)
            #expect(garbled?.advice?.contains("ftvm version") == true)
        }
        #expect(server.requests.count == 2)
    }

    @Test func aDaemonThatHangsTimesOut() async throws {
        let server = TestServer(path: socket, serving: false)
        let timing = ControlClient.Timing(request: .milliseconds(200))
        let error = await #expect(throws: FtvmError.self) {
            try await withClient(SocketDiscovery(option: server.path), timing: timing) {
                try await $0.version()
            }
        }
        #expect(error?.code == .timedOut)
        #expect(error?.message.contains(socket) == true)
    }

    @Test func aConnectionThatBreaksIsUnavailable() async throws {
        let server = TestServer(path: socket) { _ in nil }
        let error = await #expect(throws: FtvmError.self) {
            try await withClient(SocketDiscovery(option: socket)) {
                try await $0.promote(PairName("demo"))
            }
        }
        #expect(error?.code == .unavailable)
        // A request that may have been carried out is not sent twice.
        #expect(server.requests.count == 1)
    }

    @Test func theCommandLineUsesIt() async throws {
        let server = TestServer(path: socket) { _ in .init(200, [Samples.protectedPair()]) }
        var environment = CommandEnvironment.process
        let (path, output) = (socket, Recorder())
        environment.console.output = { output.append($0) }
        let status = await CommandEnvironment.$current.withValue(environment) {
            await FtvmMain.run(["list", "--names", "--socket", path])
        }
        #expect(status == 0)
        #expect(output.text == "demo\n")
        #expect(server.requests.count == 1)
    }
}
