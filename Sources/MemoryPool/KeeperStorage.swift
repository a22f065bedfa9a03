import CLinux
import Glibc
import Model

/// Segments in the memory of a keeper process, see `MemfdKeeper`.
struct KeeperStorage: SegmentStorage {
    let pool: PoolName
    let directory: String

    /// Page size of the keeper's files. Throws `.unavailable` if there is no keeper.
    func pageSizeBytes() throws -> UInt64 {
        let (reply, _) = try KeeperConnection(self).ask(.information, "ask for its page size")
        let size = reply.payload.withUnsafeBytes { bytes in
            bytes.count == 8 ? bytes.loadUnaligned(as: UInt64.self) : 0
        }
        guard size >= 4096, size.nonzeroBitCount == 1 else { throw garbled() }
        return size
    }

    func names() throws -> [String] {
        let connection = try KeeperConnection(self)
        var names: [String] = []
        while true {
            let (reply, _) = try connection.ask(.list(after: names.last ?? ""), "list the segments")
            if reply.payload.isEmpty { return names }
            var rest = reply.payload[...]
            while let length = rest.popFirst() {
                guard rest.count >= Int(length) else { throw garbled() }
                let name = String(decoding: rest.prefix(Int(length)), as: UTF8.self)
                guard name > names.last ?? "" else { throw garbled() }
                names.append(name)
                rest = rest.dropFirst(Int(length))
            }
        }
    }

    func open(_ file: SegmentFile, of name: String, writable: Bool) throws -> OwnedDescriptor {
        try SegmentSpecification.validateName(name)
        let (_, passed) = try KeeperConnection(self).ask(
            .open(name, file), "open segment '\(name)'")
        guard let passed else { throw garbled() }
        // What the keeper passes is its own open file description, shared by everybody who asks.
        return try passed.reopened(writable: writable, "segment '\(name)' of pool '\(pool)'")
    }

    func path(of file: SegmentFile, of name: String) -> String? { nil }

    func beginCreation(of name: String) throws -> any SegmentCreation {
        try SegmentSpecification.validateName(name)
        let connection = try KeeperConnection(self)
        _ = try connection.ask(.begin(name), "make segment '\(name)'")
        FaultPoint.reached("segment.create.begun")
        return KeeperCreation(storage: self, connection: connection, name: name)
    }

    func remove(_ name: String) throws {
        try SegmentSpecification.validateName(name)
        _ = try KeeperConnection(self).ask(.remove(name), "remove segment '\(name)'")
    }

    /// A creation ends with its connection, so a dead creator leaves nothing.
    func removeLeftovers() throws -> [String] { [] }

    func garbled() -> FtvmError {
        FtvmError(
            .internalError, "the keeper of pool '\(pool)' gave an answer that makes no sense",
            advice: "keeper and ftvmd must be of the same version of ftvm")
    }
}

private final class KeeperCreation: SegmentCreation {
    private let storage: KeeperStorage
    private let name: String
    private var connection: KeeperConnection?

    init(storage: KeeperStorage, connection: KeeperConnection, name: String) {
        self.storage = storage
        self.connection = connection
        self.name = name
    }

    private func ask(_ request: KeeperProtocol.Request) throws -> OwnedDescriptor? {
        guard let connection else { preconditionFailure("the creation is finished") }
        return try connection.ask(request, "make segment '\(name)'").passed
    }

    func makeFile(_ file: SegmentFile) throws -> OwnedDescriptor {
        guard let passed = try ask(.makeFile(file)) else { throw storage.garbled() }
        return passed
    }

    func take(_ object: OwnedDescriptor) throws -> Bool {
        guard let connection else { preconditionFailure("the creation is finished") }
        _ = try connection.ask(.takeObject, "keep the memory of segment '\(name)'", passing: object)
        return true
    }

    func complete() throws {
        _ = try ask(.complete)
        connection = nil
        FaultPoint.reached("segment.create.renamed")
    }

    func abandon() { connection = nil }
}

/// One connection to a keeper.
private final class KeeperConnection {
    private let storage: KeeperStorage
    private let socket: OwnedDescriptor

    init(_ storage: KeeperStorage) throws {
        self.storage = storage
        let path = "\(storage.directory)/\(KeeperProtocol.socketName)"
        let result = ftvm_memory_connect(path)
        guard result >= 0 else {
            throw FtvmError(
                result == -EACCES || result == -EPERM ? .permissionDenied : .unavailable,
                "the keeper of memfd pool '\(storage.pool)' does not answer at '\(path)'",
                cause: String(cString: strerror(-result)),
                advice: "start the pool's keeper; it must outlive every host that uses the pool")
        }
        socket = OwnedDescriptor(result)
        let failure = ftvm_memory_set_timeouts(result, KeeperConnection.timeoutMilliseconds)
        guard failure == 0 else { throw systemError(failure, "cannot set up a socket") }
    }

    /// A keeper answers at once or is stopped.
    private static let timeoutMilliseconds: Int32 = 5000

    func ask(
        _ request: KeeperProtocol.Request, _ action: String, passing given: OwnedDescriptor? = nil
    ) throws -> (reply: KeeperReply, passed: OwnedDescriptor?) {
        func failed(_ result: Int) -> FtvmError {
            let timedOut = result == -Int(EAGAIN)
            return FtvmError(
                timedOut ? .timedOut : .unavailable,
                "the keeper of memfd pool '\(storage.pool)' cannot \(action)",
                cause: timedOut
                    ? "no answer within 5 seconds"
                    : result == 0 ? "it hung up" : String(cString: strerror(Int32(-result))),
                advice: "see that the keeper runs, then try again")
        }
        let bytes = request.encoded
        let sent = ftvm_memory_send(
            socket.number, bytes, bytes.count, given?.number ?? -1, true)
        guard sent == bytes.count else { throw failed(sent) }
        var buffer = [UInt8](repeating: 0, count: KeeperProtocol.messageBytes)
        var passed: Int32 = -1
        let received = ftvm_memory_receive(
            socket.number, &buffer, buffer.count, &passed, true)
        let descriptor = passed >= 0 ? OwnedDescriptor(passed) : nil
        guard received > 0 else { throw failed(received) }
        guard let reply = buffer.withUnsafeBytes({ KeeperReply(.init(rebasing: $0[..<received])) })
        else { throw storage.garbled() }
        guard reply.status == 0 else { throw refused(reply.status, action) }
        return (reply, descriptor)
    }

    private func refused(_ status: Int32, _ action: String) -> FtvmError {
        systemError(
            status, "the keeper of memfd pool '\(storage.pool)' cannot \(action)",
            advice: status == -ENOENT ? "'ftvm pool show' lists the segments" : nil)
    }
}
