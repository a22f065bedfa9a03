import ControlAPI
import Glibc
import Model
import Synchronization
import Testing

/// Text put together from several threads.
final class Recorder: Sendable {
    private let contents = Mutex("")
    var text: String { contents.withLock { $0 } }
    func append(_ text: String) { contents.withLock { $0 += text } }
}

/// Which daemon is asked.
@Suite struct DiscoveryTests {
    private let directory = TemporaryDirectory()
    private var lab: String { "\(directory.path)/hosts" }
    private var own: String { "\(directory.path)/ftvmd.sock" }

    private var discovery: SocketDiscovery {
        SocketDiscovery(defaultPath: own, labDirectory: lab)
    }

    private func labSocket(_ host: String) -> String {
        directory.makeDirectory("hosts/\(host)")
        return "\(lab)/\(host)/ftvmd.sock"
    }

    private func server(_ host: String, path: String) -> TestServer {
        TestServer(path: path) { _ in .init(200, VersionView(version: "1", host: HostName(host))) }
    }

    /// The host that answers, and the error if none does.
    private func ask(
        _ discovery: SocketDiscovery, timing: ControlClient.Timing = .init(stagger: .zero)
    ) async -> Result<HostName, FtvmError> {
        let client = ControlClient(discovery: discovery, timing: timing)
        let result: Result<HostName, FtvmError>
        do {
            result = .success(try await client.version().host)
        } catch {
            result = .failure(error)
        }
        await client.shutdown()
        return result
    }

    @Test func aNamedSocketIsTheOnlyOneTried() {
        _ = labSocket("h1")
        var discovery = discovery
        discovery.environment = "/env"
        #expect(discovery.candidates() == [.init(path: "/env", origin: .environment)])
        discovery.option = "/option"
        #expect(discovery.candidates() == [.init(path: "/option", origin: .option)])
    }

    @Test func otherwiseThisHostsDaemonComesBeforeALabs() {
        let paths = ["h2", "h1", "h10"].map { labSocket($0) }
        var discovery = discovery
        discovery.environment = ""
        #expect(discovery.candidates().map(\.path) == [own, paths[1], paths[2], paths[0]])
        #expect(discovery.candidates().map(\.origin) == [.standard, .lab, .lab, .lab])
    }

    @Test func thisHostsDaemonIsPreferred() async {
        let servers = [server("lab", path: labSocket("h1")), server("own", path: own)]
        #expect(await ask(discovery) == .success(HostName("own")))
        #expect(servers[0].requests == [])
    }

    @Test func staleSocketsOfDeadHostsAreSkipped() async {
        TestServer.makeStale(own)
        TestServer.makeStale(labSocket("h1"))
        _ = labSocket("h2")
        let server = server("h3", path: labSocket("h3"))
        #expect(await ask(discovery) == .success(HostName("h3")))
        #expect(server.requests.count == 1)
    }

    @Test func aFrozenHostIsPassedBy() async {
        let frozen = TestServer(path: labSocket("h1"), serving: false)
        let alive = server("h2", path: labSocket("h2"))
        #expect(await ask(discovery) == .success(HostName("h2")))
        #expect(alive.requests.count == 2, "asked whether it lives, then for the answer")
        #expect(frozen.requests == [])
    }

    @Test func aDaemonThatDiesIsReplacedByAnother() async throws {
        let paths = ["h1", "h2"].map { labSocket($0) }
        let first = server("h1", path: paths[0])
        TestServer.makeStale(paths[1])
        let client = ControlClient(discovery: discovery, timing: .init(stagger: .zero))
        #expect(try await client.version().host == HostName("h1"))
        first.stop()
        let error = await #expect(throws: FtvmError.self) { try await client.version() }
        #expect(error?.code == .unavailable)
        unlink(paths[1])
        let second = server("h2", path: paths[1])
        #expect(try await client.version().host == HostName("h2"))
        #expect(second.requests.count == 1)
        await client.shutdown()
    }

    @Test func nobodyAnswers() async {
        TestServer.makeStale(labSocket("h1"))
        guard case .failure(let error) = await ask(discovery) else {
            Issue.record("nobody can have answered")
            return
        }
        #expect(error.code == .unavailable)
        #expect(
            error.cause == "\(own): no such socket; \(lab)/h1/ftvmd.sock: "
                + "nobody listens (the socket of an ftvmd that is gone)")
        #expect(error.advice?.contains("systemctl status ftvmd") == true)
        #expect(error.advice?.contains("ftvm lab status") == true)
    }

    @Test func allHostsAreFrozen() async {
        let frozen = ["h1", "h2"].map { TestServer(path: labSocket($0), serving: false) }
        let timing = ControlClient.Timing(probe: .milliseconds(100), stagger: .zero)
        guard case .failure(let error) = await ask(discovery, timing: timing) else {
            Issue.record("nobody can have answered")
            return
        }
        #expect(error.code == .unavailable)
        #expect(
            error.cause?.contains("\(frozen[1].path): accepts connections but does not answer")
                == true)
    }

    @Test func aWrongPathNamesItsOrigin() async {
        for (discovery, words) in [
            (SocketDiscovery(option: "\(directory.path)/none"), "--socket"),
            (SocketDiscovery(environment: "\(directory.path)/none"), "$FTVM_SOCKET"),
        ] {
            guard case .failure(let error) = await ask(discovery) else {
                Issue.record("nobody can have answered")
                return
            }
            #expect(error.code == .unavailable)
            #expect(error.advice?.contains(words) == true)
        }
    }

    @Test func probes() {
        #expect(SocketProbe(path: "\(directory.path)/none") == .absent)
        #expect(SocketProbe(path: "/dev/null/x") == .absent)
        #expect(SocketProbe(path: String(repeating: "x", count: 108)) == .pathTooLong)
        TestServer.makeStale(own)
        #expect(SocketProbe(path: own) == .stale)
        let frozen = TestServer(path: "\(directory.path)/f", serving: false)
        #expect(SocketProbe(path: frozen.path) == .accepts)
    }
}
