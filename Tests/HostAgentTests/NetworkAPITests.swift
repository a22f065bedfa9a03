import CertificateSupport
import ControlAPI
import Foundation
import Glibc
import HostAgent
import Hummingbird
import Logging
import Model
import ServiceLifecycle
import Synchronization
import Testing
import TransportSecurity

/// Runs what blocks on a thread of its own: the server's tasks need those of the pool.
private func blocking<Value: Sendable>(
    _ body: @escaping @Sendable () throws -> Value
) async throws -> Value {
    try await withCheckedThrowingContinuation { continuation in
        Thread { continuation.resume(with: Result { try body() }) }.start()
    }
}

/// What the server answers to these very bytes, until one of both closes the connection: as openssl
/// sees it.
private func exchange(_ port: Int, _ words: [String], _ request: String) async throws -> String {
    try await blocking {
        let process = Process()
        let output = Pipe()
        let input = Pipe()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/timeout")
        process.arguments =
            ["20", "/usr/bin/openssl", "s_client", "-quiet", "-connect", "127.0.0.1:\(port)"]
            + words
        process.standardInput = input
        process.standardOutput = output
        process.standardError = FileHandle.nullDevice
        // The other end may close before it has read all: no signal for that.
        signal(SIGPIPE, SIG_IGN)
        try process.run()
        try? input.fileHandleForWriting.write(contentsOf: Data(request.utf8))
        let text = String(
            decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        return text
    }
}

/// A server with one route, on loopback, until the test lets go of it.
private final class Server: Sendable {
    private let task: Task<Void, any Error>
    let port: Int
    var url: String { "https://127.0.0.1:\(port)" }

    init(_ tls: TLSFiles, change: (inout NetworkAPI) -> Void = { _ in }) async throws {
        var api = NetworkAPI(address: "127.0.0.1", port: 0, tls: tls)
        change(&api)
        let router = Router()
        router.get(RouterPath(ControlRoute.version)) { _, _ in
            Response(
                status: .ok, headers: [.contentType: ControlJSON.contentType],
                body: ResponseBody(
                    byteBuffer: ByteBuffer(
                        bytes: try ControlJSON.encode(
                            VersionView(version: "9.9", host: HostName("h1"))))))
        }
        router.get("slow") { _, _ in
            try await Task.sleep(for: .seconds(30))
            return Response(status: .ok)
        }
        router.post("echo") { request, _ in
            let body = try await request.body.collect(upTo: 100_000)
            return Response(status: .ok, body: ResponseBody(byteBuffer: body))
        }
        var logger = Logger(label: "test")
        logger.logLevel = .critical
        let (ports, continuation) = AsyncStream.makeStream(of: Int.self)
        let application = try api.application(
            responder: router.buildResponder(), logger: logger
        ) { continuation.yield($0) }
        task = Task { try await application.run() }
        var found = 0
        for await port in ports {
            found = port
            break
        }
        port = found
    }

    deinit { task.cancel() }

    /// What openssl is answered when it asks for the version.
    func peer(_ words: String...) async throws -> String {
        try await exchange(
            port, words, "GET /v1/version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    }
}

@Suite struct NetworkAPITests {
    private func version(_ server: Server, _ files: TLSFiles) async -> Result<String, FtvmError> {
        do throws(FtvmError) {
            let client = ControlClient(
                remote: try RemoteHost(
                    url: server.url, certificatePath: files.certificatePath,
                    keyPath: files.keyPath, authorityPath: files.authorityPath))
            let answer: Result<String, FtvmError>
            do throws(FtvmError) {
                answer = .success(try await client.version().version)
            } catch {
                answer = .failure(error)
            }
            await client.shutdown()
            return answer
        } catch {
            return .failure(error)
        }
    }

    private func failure(_ result: Result<String, FtvmError>) -> FtvmError? {
        guard case .failure(let error) = result else { return nil }
        return error
    }

    @Test func whoHasACertificateOfTheAuthorityIsServed() async throws {
        let authority = try TestAuthority()
        let server = try await Server(authority.issue("h1"))
        #expect(await version(server, try authority.issue("alice")) == .success("9.9"))
    }

    /// Server and clients may have different authorities.
    @Test func theAuthorityOfClientsIsItsOwn() async throws {
        let hosts = try TestAuthority()
        let users = try TestAuthority()
        let server = try await Server(hosts.issue("h1", trusts: users))
        #expect(await version(server, try users.issue("alice", trusts: hosts)) == .success("9.9"))
        let host = failure(await version(server, try hosts.issue("mallory")))
        #expect(host?.code == .permissionDenied, "\(host as Any)")
    }

    @Test func everybodyElseIsRefused() async throws {
        let authority = try TestAuthority()
        let stranger = try TestAuthority()
        let server = try await Server(authority.issue("h1"))
        let unknown = failure(
            await version(server, try stranger.issue("mallory", trusts: authority)))
        #expect(unknown?.code == .permissionDenied, "\(unknown as Any)")
        #expect(unknown?.message.contains("does not accept your certificate") == true)
        let distrust = failure(await version(server, try authority.issue("bob", trusts: stranger)))
        #expect(distrust?.code == .permissionDenied)
        #expect(distrust?.message.contains("is not known to be") == true, "\(distrust as Any)")
        let expired = failure(await version(server, try authority.issue("carol", days: -1)))
        #expect(expired?.code == .invalidArgument && expired?.message.contains("expired") == true)
        // Those who do not check their own certificates.
        #expect(try await !server.peer().contains("9.9"))
        let old = try authority.issue("dave", days: -1)
        #expect(
            try await !server.peer("-cert", old.certificatePath, "-key", old.keyPath).contains(
                "9.9")
        )
        let wrong = try stranger.issue("eve")
        #expect(
            try await !server.peer("-cert", wrong.certificatePath, "-key", wrong.keyPath)
                .contains("9.9"))
        let good = try authority.issue("frank")
        #expect(
            try await server.peer("-cert", good.certificatePath, "-key", good.keyPath)
                .contains("9.9"))
        #expect(
            try await !server.peer("-cert", good.certificatePath, "-key", good.keyPath, "-tls1_1")
                .contains("9.9"))
    }

    @Test func aServerForAnotherHostIsNotBelieved() async throws {
        let authority = try TestAuthority()
        let server = try await Server(authority.issue("h1", addresses: "DNS:h9,IP:10.9.9.9"))
        let error = failure(await version(server, try authority.issue("alice")))
        #expect(error?.code == .permissionDenied, "\(error as Any)")
        #expect(error?.advice?.contains("name the host") == true)
    }

    @Test func whatIsWrongWithFilesIsSaidAtTheStart() async throws {
        let authority = try TestAuthority()
        func code(_ files: TLSFiles) -> FtvmError.Code? {
            do {
                _ = try NetworkAPI(address: "127.0.0.1", port: 0, tls: files).application(
                    responder: Router().buildResponder(), logger: Logger(label: "test"))
                return nil
            } catch {
                return (error as? FtvmError)?.code
            }
        }
        let good = try authority.issue("h1")
        #expect(code(good) == nil)
        #expect(code(try authority.issue("h2", days: -1)) == .invalidArgument)
        var files = good
        files.authorityPath = "/nonexistent"
        #expect(code(files) == .notFound)
        files = good
        files.certificatePath = good.keyPath
        #expect(code(files) == .invalidArgument)
        files = good
        files.keyPath = try authority.issue("h3").keyPath
        #expect(code(files) == .invalidArgument)
        chmod(good.keyPath, 0o644)
        #expect(code(good) == .permissionDenied)
        do throws(FtvmError) {
            _ = try RemoteHost(
                url: "http://h1:7751", certificatePath: "/a", keyPath: "/b", authorityPath: "/c")
            Issue.record("without TLS")
        } catch {
            #expect(error.code == .invalidArgument)
        }
    }

    /// Who says nothing, and who takes or wants too much.
    @Test func limitsAreKept() async throws {
        let authority = try TestAuthority()
        let server = try await Server(authority.issue("h1")) {
            $0.idleSeconds = 1
            $0.requestSeconds = 1
        }
        let silent = connectTo(server.port)
        defer { close(silent) }
        let start = ContinuousClock.now
        let received = try await blocking {
            var bytes = [UInt8](repeating: 0, count: 100)
            return recv(silent, &bytes, bytes.count, 0)
        }
        #expect(received == 0)
        #expect(start.duration(to: .now) < .seconds(10))
        let user = try authority.issue("alice")
        func answer(_ request: String) async throws -> String {
            try await exchange(
                server.port, ["-cert", user.certificatePath, "-key", user.keyPath], request)
        }
        let large = try await answer(
            "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n"
                + String(repeating: "x", count: 70_000))
        #expect(large.hasPrefix("HTTP/1.1 413"), "\(large)")
        #expect(
            try await answer("GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                .hasPrefix("HTTP/1.1 504"))
        let field = String(repeating: "x", count: 100_000)
        #expect(
            try await !answer("GET /v1/version HTTP/1.1\r\nHost: x\r\nX-Large: \(field)\r\n\r\n")
                .contains("9.9"))
    }

    private func connectTo(_ port: Int) -> CInt {
        let descriptor = socket(AF_INET, CInt(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = inet_addr("127.0.0.1")
        address.sin_port = UInt16(port).bigEndian
        let result = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        #expect(result == 0)
        var limit = timeval(tv_sec: 20, tv_usec: 0)
        setsockopt(
            descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        return descriptor
    }
}
