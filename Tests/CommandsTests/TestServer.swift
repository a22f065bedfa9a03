import ControlAPI
import Glibc
import Model
import Synchronization

/// A directory of its own for one test's sockets and files; gone with the value.
final class TemporaryDirectory: Sendable {
    let path: String

    init() {
        var template = Array("/tmp/ftvm-test-XXXXXX".utf8CString)
        let made = template.withUnsafeMutableBufferPointer { mkdtemp($0.baseAddress!) }
        precondition(made != nil, "a temporary directory can be made")
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    func makeDirectory(_ name: String) {
        var path = path
        for part in name.split(separator: "/") {
            path += "/\(part)"
            let result = mkdir(path, 0o700)
            precondition(result == 0 || errno == EEXIST, "a directory can be made")
        }
    }

    deinit { TemporaryDirectory.remove(path) }

    private static func remove(_ path: String) {
        if let directory = opendir(path) {
            while let entry = readdir(directory) {
                let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
                    pointer.withMemoryRebound(to: CChar.self, capacity: 256) {
                        String(cString: $0)
                    }
                }
                if name != ".", name != ".." { remove("\(path)/\(name)") }
            }
            closedir(directory)
            rmdir(path)
        } else {
            unlink(path)
        }
    }
}

/// One request as it came over the socket.
struct ReceivedRequest: Hashable, Sendable {
    var method: String
    /// Path and query, still percent-encoded.
    var target: String
    var body: String
}

/// HTTP/1.1 over a Unix socket, one request a connection, on a thread of its own.
final class TestServer: Sendable {
    struct Answer: Sendable {
        var status: Int
        var body: String
        init(_ status: Int, _ body: String) {
            self.status = status
            self.body = body
        }
        init(_ status: Int = 200, _ value: some Encodable) {
            self.init(status, (try? ControlJSON.text(value)) ?? "unencodable")
        }
    }

    let path: String
    private let descriptor: Int32
    private let serving: Bool
    private let stopped = Mutex(false)
    private let received = Mutex<[ReceivedRequest]>([])
    private let answer: @Sendable (ReceivedRequest) -> Answer?

    /// - Parameters:
    ///   - serving: false: connections are accepted by the kernel and never answered, like those of a
    ///     frozen host.
    ///   - answer: nil closes the connection without an answer.
    init(
        path: String, serving: Bool = true,
        answer: @escaping @Sendable (ReceivedRequest) -> Answer? = { _ in nil }
    ) {
        self.path = path
        self.answer = answer
        descriptor = TestServer.listen(path)
        self.serving = serving
        guard serving else { return }
        let descriptor = descriptor
        startThread { [weak self] in
            while true {
                let connection = accept(descriptor, nil, nil)
                guard connection >= 0, let self else {
                    // Closed here and nowhere else, lest the number be another test's by now.
                    close(descriptor)
                    return
                }
                self.serve(connection)
                close(connection)
            }
        }
    }

    var requests: [ReceivedRequest] { received.withLock { $0 } }

    /// Closes the socket and leaves its file behind, as a killed daemon does.
    func stop() {
        stopped.withLock { stopped in
            if !stopped { shutdown(descriptor, Int32(SHUT_RDWR)) }
            stopped = true
        }
    }

    deinit {
        stop()
        if !serving { close(descriptor) }
    }

    /// A socket file on which nobody listens.
    static func makeStale(_ path: String) { close(listen(path)) }

    private static func listen(_ path: String) -> Int32 {
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
        let bound = withUnsafePointer(to: address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        precondition(bound == 0 && Glibc.listen(descriptor, 16) == 0, "\(path) can be listened on")
        return descriptor
    }

    private func serve(_ connection: Int32) {
        guard let request = TestServer.readRequest(connection) else { return }
        received.withLock { $0.append(request) }
        guard let answer = answer(request) else { return }
        let head = """
            HTTP/1.1 \(answer.status) Status\r
            Content-Type: application/json\r
            Content-Length: \(answer.body.utf8.count)\r
            Connection: close\r
            \r

            """
        let bytes = Array((head + answer.body).utf8)
        _ = bytes.withUnsafeBytes {
            send(connection, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
        }
    }

    private static func readRequest(_ connection: Int32) -> ReceivedRequest? {
        var bytes: [UInt8] = []
        while true {
            let text = String(decoding: bytes, as: UTF8.self)
            if let end = text.range(of: "\r\n\r\n") {
                let lines = text[..<end.lowerBound].split(separator: "\r\n")
                let words = lines[0].split(separator: " ")
                let length =
                    lines.lazy.map { $0.lowercased() }
                    .first { $0.hasPrefix("content-length:") }
                    .flatMap { Int($0.dropFirst(15).drop { $0 == " " }) } ?? 0
                let body = text[end.upperBound...]
                if body.utf8.count >= length {
                    return ReceivedRequest(
                        method: String(words[0]), target: String(words[1]), body: String(body))
                }
            }
            var buffer = [UInt8](repeating: 0, count: 4096)
            let count = read(connection, &buffer, buffer.count)
            guard count > 0 else { return nil }
            bytes += buffer[..<count]
        }
    }
}

extension String {
    fileprivate func range(of mark: String) -> Range<String.Index>? {
        // Compared as scalars: "\r\n" is one character, which a cut could otherwise split.
        let scalars = unicodeScalars
        let wanted = Array(mark.unicodeScalars)
        var start = scalars.startIndex
        while start < scalars.endIndex {
            if scalars[start...].prefix(wanted.count).elementsEqual(wanted) {
                return start..<scalars.index(start, offsetBy: wanted.count)
            }
            start = scalars.index(after: start)
        }
        return nil
    }
}

/// Runs `body` on a detached thread.
private func startThread(_ body: @escaping @Sendable () -> Void) {
    final class Box: Sendable {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }
    var thread = pthread_t()
    let pointer = Unmanaged.passRetained(Box(body)).toOpaque()
    let result = pthread_create(
        &thread, nil,
        { argument in
            Unmanaged<Box>.fromOpaque(argument!).takeRetainedValue().body()
            return nil
        }, pointer)
    precondition(result == 0, "a thread can be started")
    pthread_detach(thread)
}
