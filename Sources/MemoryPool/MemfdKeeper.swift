import CLinux
import Glibc
import Model

/// The process that owns a memfd pool: it keeps one memory file for each file of each segment and
/// passes descriptors to every host of the machine over the Unix socket `keeper.sock` in the pool's
/// directory. It never touches the contents and never reserves memory itself, so it never blocks.
///
/// The segments live as long as the keeper, so it must be outside of every host that uses the pool.
/// Peers must be root or the keeper's own user. One thread serves; `serve` is called once.
package final class MemfdKeeper: @unchecked Sendable {
    /// Connections at the same time; more of them wait in the socket's queue.
    package static let maximumClients = 64
    /// Segments of a keeper; each is three to five descriptors.
    package static let maximumSegments = 256
    /// A connection that asks nothing for so long, and is not making a segment, is closed.
    package static let idleLimitMilliseconds: UInt64 = 5000

    private let directory: String
    private let hugePageBytes: UInt64
    private let directoryLock: OwnedDescriptor
    private let listener: OwnedDescriptor
    /// An event descriptor: once it is written to, `serve` ends.
    private let wake: OwnedDescriptor

    // The serving thread's own.
    private var segments: [String: KeptSegment] = [:]
    private var clients: [Client] = []
    private var acceptPausedUntil: UInt64 = 0
    private var buffer = [UInt8](repeating: 0, count: KeeperProtocol.messageBytes)

    private struct KeptSegment {
        var files: [SegmentFile: OwnedDescriptor] = [:]
    }

    private final class Client {
        let socket: OwnedDescriptor
        var lastRequest: UInt64
        /// The segment that this connection is making.
        var making: (name: String, segment: KeptSegment)?
        init(_ socket: OwnedDescriptor, now: UInt64) {
            self.socket = socket
            lastRequest = now
        }
    }

    /// Begins to listen; requests are answered once `serve` runs.
    ///
    /// - Parameters:
    ///   - directory: the pool's directory, which must exist.
    ///   - hugePageBytes: a huge page size that the kernel has, or nil for base pages.
    ///
    /// Throws `.alreadyExists` if another keeper serves this directory.
    package init(directory: String, hugePageBytes: UInt64? = nil) throws {
        self.directory = directory
        self.hugePageBytes = hugePageBytes ?? 0
        if let bytes = hugePageBytes {
            // Said now rather than when the first segment is made.
            let probe = ftvm_memory_memfd("ftvm-probe", bytes)
            guard probe >= 0 else {
                throw systemError(probe, "the kernel has no huge pages of \(bytes) bytes")
            }
            close(probe)
        }
        let lockPath = "\(directory)/\(KeeperProtocol.lockName)"
        let opened = ftvm_memory_open(AT_FDCWD, lockPath, O_RDWR | O_CREAT, 0o600)
        guard opened >= 0 else { throw systemError(opened, "cannot open '\(lockPath)'") }
        directoryLock = OwnedDescriptor(opened)
        let locked = ftvm_lock_set(opened, 0, 1, true)
        if locked == -EAGAIN {
            throw FtvmError(.alreadyExists, "a keeper already serves the pool in '\(directory)'")
        }
        guard locked == 0 else { throw systemError(locked, "cannot lock '\(lockPath)'") }
        let path = "\(directory)/\(KeeperProtocol.socketName)"
        // The lock says that whoever made this socket is dead.
        guard unlink(path) == 0 || errno == ENOENT else {
            throw systemError(lastErrno(), "cannot remove the old socket '\(path)'")
        }
        let listening = ftvm_memory_listen(path, Int32(MemfdKeeper.maximumClients))
        guard listening >= 0 else { throw systemError(listening, "cannot listen at '\(path)'") }
        listener = OwnedDescriptor(listening)
        let event = ftvm_memory_eventfd()
        guard event >= 0 else { throw systemError(event, "cannot make an event descriptor") }
        wake = OwnedDescriptor(event)
    }

    deinit { unlink("\(directory)/\(KeeperProtocol.socketName)") }

    /// Ends `serve` soon, from any thread or from a signal handler's thread.
    package func stop() {
        var count: UInt64 = 1
        _ = write(wake.number, &count, 8)
    }

    /// Answers requests until `stop`. Blocks: give it a thread of its own.
    package func serve() throws {
        while true {
            let now = MemfdKeeper.milliseconds()
            clients.removeAll {
                $0.making == nil && now - $0.lastRequest > MemfdKeeper.idleLimitMilliseconds
            }
            var polled = [pollfd(fd: wake.number, events: Int16(POLLIN), revents: 0)]
            polled += clients.map {
                pollfd(fd: $0.socket.number, events: Int16(POLLIN), revents: 0)
            }
            if clients.count < MemfdKeeper.maximumClients && now >= acceptPausedUntil {
                polled.append(pollfd(fd: listener.number, events: Int16(POLLIN), revents: 0))
            }
            let ready = poll(&polled, nfds_t(polled.count), 1000)
            if ready < 0 && errno != EINTR { throw systemError(lastErrno(), "poll failed") }
            guard ready > 0 else { continue }
            if polled[0].revents != 0 { return }
            let served = clients
            for (index, client) in served.enumerated() where polled[index + 1].revents != 0 {
                if !serveOnce(client) { clients.removeAll { $0 === client } }
            }
            if polled.count > served.count + 1, polled[served.count + 1].revents != 0 {
                acceptClient()
            }
        }
    }

    /// Monotonic time.
    private static func milliseconds() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) * 1000 + UInt64(time.tv_nsec) / 1_000_000
    }

    private func acceptClient() {
        let accepted = ftvm_memory_accept(listener.number)
        guard accepted >= 0 else {
            // No descriptor left: asking again at once would only burn the processor.
            if accepted != -EAGAIN && accepted != -ECONNABORTED {
                acceptPausedUntil = MemfdKeeper.milliseconds() + 1000
            }
            return
        }
        let socket = OwnedDescriptor(accepted)
        var user = uid_t.max
        guard ftvm_memory_peer_user(accepted, &user) == 0, user == 0 || user == geteuid() else {
            return
        }
        clients.append(Client(socket, now: MemfdKeeper.milliseconds()))
    }

    /// Answers one request; false if the client is to be dropped, with the segment it was making.
    private func serveOnce(_ client: Client) -> Bool {
        var passed: Int32 = -1
        let received = ftvm_memory_receive(
            client.socket.number, &buffer, buffer.count, &passed, false)
        // Closed with this call, unless it is what was asked to be kept.
        let given = passed >= 0 ? OwnedDescriptor(passed) : nil
        if received == -Int(EAGAIN) { return true }
        guard received > 0,
            let request = buffer.withUnsafeBytes({
                KeeperProtocol.Request(.init(rebasing: $0[..<received]))
            })
        else { return false }
        client.lastRequest = MemfdKeeper.milliseconds()
        let (reply, file) = answer(request, client, given)
        let bytes = reply.encoded
        let sent = ftvm_memory_send(
            client.socket.number, bytes, bytes.count, file?.number ?? -1, false)
        // A client that does not read its replies is not waited for.
        return sent == bytes.count
    }
}

// MARK: - Requests

extension MemfdKeeper {
    private func answer(
        _ request: KeeperProtocol.Request, _ client: Client, _ given: OwnedDescriptor?
    ) -> (KeeperReply, OwnedDescriptor?) {
        switch request {
        case .information:
            let pageSize = hugePageBytes == 0 ? 4096 : hugePageBytes
            let payload = withUnsafeBytes(of: pageSize) { [UInt8]($0) }
            return (KeeperReply(status: 0, payload: payload), nil)
        case .list(let after):
            return (KeeperReply(status: 0, payload: names(after: after)), nil)
        case .open(let name, let file):
            guard let found = segments[name]?.files[file] else {
                return (KeeperReply(status: -ENOENT), nil)
            }
            return (KeeperReply(status: 0), found)
        case .begin(let name):
            guard client.making == nil else { return (KeeperReply(status: -EBUSY), nil) }
            guard segments[name] == nil else { return (KeeperReply(status: -EEXIST), nil) }
            client.making = (name, KeptSegment())
            return (KeeperReply(status: 0), nil)
        case .makeFile(let file):
            return makeFile(file, client)
        case .takeObject:
            return (KeeperReply(status: take(given, client)), nil)
        case .complete:
            return (KeeperReply(status: complete(client)), nil)
        case .remove(let name):
            segments[name] = nil
            return (KeeperReply(status: 0), nil)
        }
    }

    /// As many names as fit into a reply, each after its length.
    private func names(after last: String) -> [UInt8] {
        var payload: [UInt8] = []
        for name in segments.keys.sorted() where name > last {
            let bytes = Array(name.utf8)
            guard payload.count + bytes.count + 1 <= KeeperProtocol.messageBytes - 8 else { break }
            payload.append(UInt8(bytes.count))
            payload += bytes
        }
        return payload
    }

    private func makeFile(_ file: SegmentFile, _ client: Client) -> (KeeperReply, OwnedDescriptor?)
    {
        guard file != .object else { return (KeeperReply(status: -EINVAL), nil) }
        guard let making = client.making else { return (KeeperReply(status: -EINVAL), nil) }
        guard making.segment.files[file] == nil else { return (KeeperReply(status: -EEXIST), nil) }
        let made = ftvm_memory_memfd(
            "ftvm:\(making.name):\(file.rawValue)", file == .lock ? 0 : hugePageBytes)
        guard made >= 0 else { return (KeeperReply(status: made), nil) }
        let descriptor = OwnedDescriptor(made)
        // Memory files begin with mode 0777: a QEMU that got one read-only could open it anew.
        guard fchmod(made, 0o600) == 0 else { return (KeeperReply(status: lastErrno()), nil) }
        client.making?.segment.files[file] = descriptor
        return (KeeperReply(status: 0), descriptor)
    }

    private func take(_ object: OwnedDescriptor?, _ client: Client) -> Int32 {
        guard let object, client.making != nil else { return -EINVAL }
        guard client.making?.segment.files[.object] == nil else { return -EEXIST }
        client.making?.segment.files[.object] = object
        return 0
    }

    private func complete(_ client: Client) -> Int32 {
        guard let making = client.making else { return -EINVAL }
        guard segments[making.name] == nil else { return -EEXIST }
        guard segments.count < MemfdKeeper.maximumSegments else { return -ENOSPC }
        for file in SegmentFile.allCases {
            guard let descriptor = making.segment.files[file] else {
                if file.mayBeAbsent { continue }
                return -EINVAL
            }
            var status = stat()
            guard fstat(descriptor.number, &status) == 0 else { return lastErrno() }
            guard file == .lock || status.st_size > 0 else { return -EINVAL }
            // From here on nobody can make a file shorter under the feet of its users (SIGBUS).
            let sealed = ftvm_memory_seal_size(descriptor.number)
            // A QEMU seals what it makes itself; a file with a name cannot be sealed.
            guard sealed == 0 || file == .object else { return sealed }
        }
        segments[making.name] = making.segment
        client.making = nil
        return 0
    }
}
