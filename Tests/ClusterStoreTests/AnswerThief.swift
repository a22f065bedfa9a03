import Foundation
import Glibc
import Synchronization

/// Stands between a client and a server on loopback, passes on what both say, and closes the
/// client's connection instead of passing on the next answers when told to.
final class AnswerThief: Sendable {
    private struct State {
        var toSteal = 0
        var stolen = 0
        var closed = false
    }

    let port: UInt16
    private let server: UInt16
    private let listening: CInt
    private final class Shared: Sendable {
        let state = Mutex(State())
    }
    private let shared = Shared()
    var stolen: Int { shared.state.withLock { $0.stolen } }

    init(port server: UInt16) throws {
        self.server = server
        listening = socket(AF_INET, CInt(SOCK_STREAM.rawValue), 0)
        var address = Self.address(0)
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let socket = listening
        withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                precondition(bind(socket, $0, length) == 0 && listen(socket, 16) == 0)
                precondition(getsockname(socket, $0, &length) == 0)
            }
        }
        port = UInt16(bigEndian: address.sin_port)
        Thread { [shared, server] in
            while true {
                let client = accept(socket, nil, nil)
                guard client >= 0, !shared.state.withLock({ $0.closed }) else { return }
                Thread { Self.serve(client, server, shared) }.start()
            }
        }.start()
    }

    deinit {
        shared.state.withLock { $0.closed = true }
        shutdown(listening, CInt(SHUT_RDWR))
        close(listening)
    }

    /// The next so many answers do not arrive.
    func steal(_ count: Int) { shared.state.withLock { $0.toSteal += count } }

    private static func address(_ port: UInt16) -> sockaddr_in {
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = inet_addr("127.0.0.1")
        address.sin_port = port.bigEndian
        return address
    }

    /// One request after the other: the answer is stolen whole with its connection.
    private static func serve(_ client: CInt, _ port: UInt16, _ shared: Shared) {
        let server = socket(AF_INET, CInt(SOCK_STREAM.rawValue), 0)
        defer {
            close(client)
            close(server)
        }
        var address = address(port)
        let connected = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(server, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard connected == 0 else { return }
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        var descriptors = [
            pollfd(fd: client, events: Int16(POLLIN), revents: 0),
            pollfd(fd: server, events: Int16(POLLIN), revents: 0),
        ]
        while poll(&descriptors, 2, 30_000) > 0 {
            if descriptors[0].revents != 0 {
                let count = read(client, &buffer, buffer.count)
                guard count > 0, write(server, buffer, count) == count else { return }
            }
            if descriptors[1].revents != 0 {
                let count = read(server, &buffer, buffer.count)
                guard count > 0 else { return }
                let steal = shared.state.withLock { state -> Bool in
                    guard state.toSteal > 0 else { return false }
                    state.toSteal -= 1
                    state.stolen += 1
                    return true
                }
                if steal { return }
                guard write(client, buffer, count) == count else { return }
            }
        }
    }
}
