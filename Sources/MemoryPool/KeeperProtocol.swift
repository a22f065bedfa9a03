import CLinux
import Glibc
import Model

/// What is said on a keeper's socket: one message a request, one a reply, on a SOCK_SEQPACKET
/// socket of the same machine, so in the machine's own byte order. Both sides are of the same
/// version of ftvm or refuse each other.
enum KeeperProtocol {
    static let version: UInt8 = 1
    static let socketName = "keeper.sock"
    static let lockName = "keeper.lock"
    /// Larger than any message.
    static let messageBytes = 4096

    enum Request: Equatable {
        /// The page size of the keeper's files.
        case information
        /// Names after a name, in order.
        case list(after: String)
        case open(String, SegmentFile)
        /// A new segment, which belongs to this connection until it is complete.
        case begin(String)
        case makeFile(SegmentFile)
        /// Keep the descriptor that comes with this as the segment's `object`.
        case takeObject
        case complete
        case remove(String)
    }
}

extension KeeperProtocol.Request {
    private var parts: (code: UInt8, file: UInt8, name: String) {
        switch self {
        case .information: (1, 0, "")
        case .list(let name): (2, 0, name)
        case .open(let name, let file): (3, file.code, name)
        case .begin(let name): (4, 0, name)
        case .makeFile(let file): (5, file.code, "")
        case .complete: (6, 0, "")
        case .remove(let name): (7, 0, name)
        case .takeObject: (8, 0, "")
        }
    }

    /// Version, code, file, length of the name, name.
    var encoded: [UInt8] {
        let (code, file, name) = parts
        precondition(name.utf8.count <= 128, "names are validated before they are sent")
        return [KeeperProtocol.version, code, file, UInt8(name.utf8.count)] + Array(name.utf8)
    }

    /// nil for anything but a well-formed request.
    init?(_ bytes: UnsafeRawBufferPointer) {
        guard bytes.count >= 4, bytes[0] == KeeperProtocol.version,
            bytes.count == 4 + Int(bytes[3]), bytes[2] == 0 || SegmentFile(code: bytes[2]) != nil
        else { return nil }
        let name = String(decoding: bytes[4...], as: UTF8.self)
        let nameIsSound = (try? SegmentSpecification.validateName(name)) != nil
        let file = SegmentFile(code: bytes[2])
        switch (bytes[1], file, nameIsSound) {
        case (1, nil, _) where name.isEmpty: self = .information
        case (2, nil, let sound) where sound || name.isEmpty: self = .list(after: name)
        case (3, let file?, true): self = .open(name, file)
        case (4, nil, true): self = .begin(name)
        case (5, let file?, _) where name.isEmpty: self = .makeFile(file)
        case (6, nil, _) where name.isEmpty: self = .complete
        case (7, nil, true): self = .remove(name)
        case (8, nil, _) where name.isEmpty: self = .takeObject
        default: return nil
        }
    }
}

extension SegmentFile {
    fileprivate var code: UInt8 {
        switch self {
        case .ram: 1
        case .control: 2
        case .lock: 3
        case .disk: 4
        case .object: 5
        }
    }

    fileprivate init?(code: UInt8) {
        guard let file = SegmentFile.allCases.first(where: { $0.code == code }) else { return nil }
        self = file
    }
}

/// A reply: 0 or a negative errno, and what belongs to the request.
struct KeeperReply {
    var status: Int32
    var payload: [UInt8] = []

    var encoded: [UInt8] { withUnsafeBytes(of: status) { Array($0) } + payload }

    init(status: Int32, payload: [UInt8] = []) {
        self.status = status
        self.payload = payload
    }

    init?(_ bytes: UnsafeRawBufferPointer) {
        guard bytes.count >= 4 else { return nil }
        status = bytes.loadUnaligned(as: Int32.self)
        payload = Array(bytes[4...])
    }
}
