import CLinux
import Dispatch
import Foundation
import Synchronization

/// A QEMU that says what a test tells it to: a thread that serves one client after the other with a
/// script. Lines are read and written as they are.
final class FakeQMPServer: Sendable {
    static let greeting =
        #"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}"#

    let path: String
    private let listener: Int32
    private let finished = DispatchSemaphore(value: 0)
    private let isStopped = Atomic<Bool>(false)

    /// One client's connection, used on the server's thread only.
    final class Client {
        let descriptor: Int32
        private var received: [UInt8] = []
        private(set) var passed: Int32 = -1

        init(descriptor: Int32) { self.descriptor = descriptor }

        func send(_ text: String) { sendRaw(text + "\r\n") }

        func sendRaw(_ text: String) {
            var bytes = Array(text.utf8)[...]
            while !bytes.isEmpty {
                let count = bytes.withUnsafeBytes { raw in
                    ftvm_socket_send(descriptor, raw.baseAddress, raw.count, -1)
                }
                if count > 0 {
                    bytes = bytes.dropFirst(count)
                } else if count == -Int(EAGAIN) {
                    guard ftvm_socket_wait(descriptor, true, 5_000_000) == 1 else { return }
                } else {
                    return
                }
            }
        }

        /// The next line, without its end; nil when the client has gone.
        func line() -> String? {
            while true {
                if let end = received.firstIndex(of: 0x0A) {
                    let text = String(decoding: received[..<end], as: UTF8.self)
                    received.removeFirst(end + 1)
                    return text
                }
                var chunk = [UInt8](repeating: 0, count: 4096)
                var descriptorHere: Int32 = -1
                let count = ftvm_socket_receive_descriptor(
                    descriptor, &chunk, chunk.count, &descriptorHere)
                if descriptorHere >= 0 { passed = descriptorHere }
                if count > 0 {
                    received += chunk[..<count]
                } else if count == -Int(EAGAIN) {
                    guard ftvm_socket_wait(descriptor, false, 20_000_000) == 1 else { return nil }
                } else {
                    return nil
                }
            }
        }

        /// Greets, and answers the negotiation.
        func negotiate() {
            send(FakeQMPServer.greeting)
            answerNegotiation()
        }

        /// QEMU repeats the id of a command in its answer.
        func answerNegotiation() {
            var id = "0}"
            if let text = line(), let mark = text.firstRange(of: #""id":"#) {
                id = String(text[mark.upperBound...])
            }
            send(#"{"return": {}, "id": "# + id)
        }
    }

    /// - Parameter script: serves one client; the connection is closed when it returns.
    init(clients: Int = 1, script: @escaping @Sendable (Client) -> Void) throws {
        path = NSTemporaryDirectory() + "ftvm-qmp-\(UUID().uuidString.prefix(8)).sock"
        listener = ftvm_socket_listen_unix(path, 4)
        guard listener >= 0 else { throw POSIXError(POSIXErrorCode(rawValue: -listener) ?? .EIO) }
        Thread { [self] in
            for _ in 0..<clients {
                let accepted = accept()
                guard accepted >= 0 else { break }
                script(Client(descriptor: accepted))
                _ = ftvm_socket_close(accepted)
            }
            finished.signal()
        }.start()
    }

    private func accept() -> Int32 {
        while !isStopped.load(ordering: .relaxed) {
            let accepted = ftvm_socket_accept(listener)
            if accepted >= 0 { return accepted }
            _ = ftvm_socket_wait(listener, false, 50_000)
        }
        return -1
    }

    /// Waits for the scripts to end and removes the socket.
    func close() {
        isStopped.store(true, ordering: .relaxed)
        finished.wait()
        _ = ftvm_socket_close(listener)
        unlink(path)
    }
}
