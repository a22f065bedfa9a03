import CLinux
import Glibc
import Model

// Between ftvmd and the plugin: a SOCK_SEQPACKET socket that the plugin listens on. Everything that
// counts is in the log's live words; the socket is the bell, so a lost message costs time only.
//
//   to the plugin     "bell"            something changed: sealed, stopping, generation
//                     "activate N"      become the writer for generation N; answered
//                     "release"         QEMU opens the images itself now; answered
//   from the plugin   "ok"              the answer
//                     "error\nCODE\nMESSAGE\nCAUSE\nADVICE"   the other answer
//                     "notice WORD"     commit (one is wanted), durable, failed, fenced

enum ServerMessage {
    static let bell = "bell", activate = "activate ", release = "release", ok = "ok",
        notice = "notice "
    static let largest = 4096

    static func text(_ error: FtvmError) -> String {
        var text =
            "error\n\(error.code.rawValue)\n\(error.message)\n\(error.cause ?? "")\n"
            + (error.advice ?? "")
        while text.utf8.count > largest { text.removeLast() }
        return text
    }

    static func error(_ text: String) -> FtvmError? {
        let lines = text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
        guard lines.count >= 3, lines[0] == "error" else { return nil }
        func line(_ index: Int) -> String? {
            lines.count > index && !lines[index].isEmpty ? lines[index] : nil
        }
        return FtvmError(
            FtvmError.Code(rawValue: lines[1]) ?? .internalError, lines[2], cause: line(3),
            advice: line(4))
    }

    static func send(_ text: String, to socket: Int32, wait: Bool = false) -> Int {
        var text = text
        return text.withUTF8 { ftvm_memory_send(socket, $0.baseAddress, $0.count, -1, wait) }
    }

    /// nil: nothing there; "" is the end.
    static func receive(from socket: Int32, wait: Bool) -> (text: String, result: Int) {
        withUnsafeTemporaryAllocation(byteCount: largest, alignment: 8) { buffer in
            var passed: Int32 = -1
            let got = ftvm_memory_receive(socket, buffer.baseAddress, largest, &passed, wait)
            if passed >= 0 { close(passed) }
            guard got > 0 else { return ("", got) }
            return (String(decoding: buffer[..<got], as: UTF8.self), got)
        }
    }
}

/// The plugin's end.
package final class ServerSocket: @unchecked Sendable {
    private static let mostClients = 8

    private let server: DiskServer
    private let listener: Int32
    private let wake: Int32
    private let turn = Turnstile()
    // Under `turn`.
    @exclusivity(unchecked) private var clients: [Int32] = []
    @exclusivity(unchecked) private var isClosing = false
    private var thread: OwnThread?

    /// Listens at `path`, in the place of a socket that a killed plugin left.
    package init(_ server: DiskServer, path: String) throws {
        self.server = server
        guard unlink(path) == 0 || errno == ENOENT else {
            throw diskError(-errno, "cannot replace the socket '\(path)'")
        }
        listener = ftvm_memory_listen(path, 4)
        guard listener >= 0 else { throw diskError(listener, "cannot listen at '\(path)'") }
        wake = ftvm_memory_eventfd()
        guard wake >= 0 else {
            Glibc.close(listener)
            throw diskError(wake, "cannot make an eventfd")
        }
        server.notify = { [weak self] notice in self?.tell(notice) }
        thread = try OwnThread("disk-control") { [self] in serve() }
    }

    /// Ends it. Must be called: until then its thread keeps it alive.
    package func close() {
        turn.lock()
        let wasClosing = isClosing
        isClosing = true
        turn.unlock()
        if wasClosing { return }
        var one: UInt64 = 1
        write(wake, &one, 8)
        thread?.join()
        turn.lock()
        for client in clients { Glibc.close(client) }
        clients = []
        turn.unlock()
        Glibc.close(listener)
        Glibc.close(wake)
    }

    private func tell(_ notice: DiskServer.Notice) {
        turn.lock()
        defer { turn.unlock() }
        // A client that does not read has the words.
        for client in clients {
            _ = ServerMessage.send(ServerMessage.notice + notice.rawValue, to: client)
        }
    }

    private func serve() {
        while true {
            turn.lock()
            let (closing, present) = (isClosing, clients)
            turn.unlock()
            if closing { return }
            var polled = ([wake, listener] + present).map {
                pollfd(fd: $0, events: Int16(POLLIN), revents: 0)
            }
            guard poll(&polled, nfds_t(polled.count), 1000) > 0 else { continue }
            if polled[1].revents != 0 { accept() }
            for entry in polled[2...] where entry.revents != 0 { hear(entry.fd) }
        }
    }

    private func accept() {
        let client = ftvm_memory_accept(listener)
        guard client >= 0 else { return }
        turn.lock()
        defer { turn.unlock() }
        if clients.count < ServerSocket.mostClients {
            clients.append(client)
        } else {
            Glibc.close(client)
        }
    }

    private func hear(_ client: Int32) {
        let (text, result) = ServerMessage.receive(from: client, wait: false)
        if result == -Int(EAGAIN) { return }
        guard result > 0 else {
            turn.lock()
            clients.removeAll { $0 == client }
            turn.unlock()
            Glibc.close(client)
            return
        }
        if text == ServerMessage.bell {
            server.ring()
        } else if text.hasPrefix(ServerMessage.activate) {
            let answer = activate(String(text.dropFirst(ServerMessage.activate.count)))
            turn.lock()
            _ = ServerMessage.send(answer, to: client)
            turn.unlock()
        } else if text == ServerMessage.release {
            server.giveUpImages()
            turn.lock()
            _ = ServerMessage.send(ServerMessage.ok, to: client)
            turn.unlock()
        } else {
            let error = FtvmError(.invalidArgument, "the disk server does not know '\(text)'")
            _ = ServerMessage.send(ServerMessage.text(error), to: client)
        }
    }

    private func activate(_ text: String) -> String {
        guard let number = UInt64(text), number <= Generation.maximum else {
            return ServerMessage.text(
                FtvmError(.invalidArgument, "'\(text)' is no generation"))
        }
        do {
            try server.activate(Generation(number))
            return ServerMessage.ok
        } catch {
            return ServerMessage.text(
                FtvmError(wrapping: error, "the disks cannot be taken over"))
        }
    }
}

/// ftvmd's end of the plugin's control socket. For one thread at a time.
package final class DiskServerClient {
    /// Readable when a notice has come, or when the plugin is gone.
    package let descriptor: Int32
    private var notices: Set<DiskServer.Notice> = []

    /// - Throws: `.notFound` or `.unavailable` while no plugin listens there.
    package init(path: String) throws {
        descriptor = ftvm_memory_connect(path)
        guard descriptor >= 0 else {
            throw diskError(descriptor, "the disk server at '\(path)' cannot be reached")
        }
    }

    deinit { close(descriptor) }

    /// Rings: some word of the log has changed. Does not block; false when the plugin is gone.
    @discardableResult
    package func ring() -> Bool {
        let result = ServerMessage.send(ServerMessage.bell, to: descriptor)
        // A full socket rings all the same.
        return result > 0 || result == -Int(EAGAIN)
    }

    /// Tells the plugin to become the writer of a generation.
    ///
    /// Throws what `DiskServer.activate` throws; `.unavailable` when the plugin is gone; `.timedOut`.
    package func activate(_ generation: Generation, timeoutMilliseconds: Int = 5000) throws {
        try ask("\(ServerMessage.activate)\(generation)", timeoutMilliseconds)
    }

    /// Tells the plugin that its images have everything and are about to be opened by QEMU.
    package func releaseImages(timeoutMilliseconds: Int = 2000) throws {
        try ask(ServerMessage.release, timeoutMilliseconds)
    }

    private func ask(_ question: String, _ timeoutMilliseconds: Int) throws {
        let gone = FtvmError(
            .unavailable, "the disk server is gone", advice: "start it again, then repeat this")
        guard ServerMessage.send(question, to: descriptor, wait: true) > 0 else { throw gone }
        let deadline = ftvm_disk_now() + UInt64(timeoutMilliseconds) * 1_000_000
        while true {
            let now = ftvm_disk_now()
            var polled = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            guard now < deadline, poll(&polled, 1, Int32((deadline - now) / 1_000_000 + 1)) > 0
            else {
                throw FtvmError(.timedOut, "the disk server does not answer")
            }
            let (text, result) = ServerMessage.receive(from: descriptor, wait: false)
            if result == -Int(EAGAIN) { continue }
            guard result > 0 else { throw gone }
            if note(text) { continue }
            if text == ServerMessage.ok { return }
            throw ServerMessage.error(text)
                ?? FtvmError(
                    .internalError, "the disk server gave an answer of its own", cause: text)
        }
    }

    private func note(_ text: String) -> Bool {
        guard text.hasPrefix(ServerMessage.notice) else { return false }
        let word = String(text.dropFirst(ServerMessage.notice.count))
        if let notice = DiskServer.Notice(rawValue: word) { notices.insert(notice) }
        return true
    }

    /// Reads away what has come, without blocking or allocating: what counts is in the log's words.
    /// - Returns: false when the plugin is gone.
    package func drain() -> Bool {
        while true {
            var buffer: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64) = (
                0, 0, 0, 0, 0, 0, 0, 0
            )
            let got = withUnsafeMutableBytes(of: &buffer) {
                recv(descriptor, $0.baseAddress, $0.count, Int32(MSG_DONTWAIT))
            }
            if got < 0, errno == EINTR { continue }
            if got < 0 { return errno == EAGAIN }
            if got == 0 { return false }
        }
    }

    /// What has come since the last call, without blocking.
    ///
    /// - Throws: `.unavailable` when the plugin is gone.
    package func takeNotices() throws -> Set<DiskServer.Notice> {
        while true {
            let (text, result) = ServerMessage.receive(from: descriptor, wait: false)
            if result == -Int(EAGAIN) { break }
            guard result > 0 else {
                throw FtvmError(
                    .unavailable, "the disk server is gone",
                    advice: "start it again: the guest's requests wait for it")
            }
            _ = note(text)
        }
        defer { notices = [] }
        return notices
    }
}
