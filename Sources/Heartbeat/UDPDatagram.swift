import Crypto
import Model

/// A heartbeat between hosts on the network. 168 bytes, numbers big-endian:
///
/// ```text
/// 0    "ftvmhbt1"
/// 8    first 8 bytes of the SHA-256 of the cluster's name
/// 16   incarnation of the sender's ftvmd
/// 24   sequence number, from 1, one for all recipients
/// 32   the sender's monotonic clock when it was sent, nanoseconds
/// 40   echo: incarnation of the recipient that was heard last; 0: none
/// 48   echo: its sequence number
/// 56   echo: nanoseconds since it was heard
/// 64   first 8 bytes of the SHA-256 of the recipient's name
/// 72   what the sender has to say to the recipient: a number of the daemon's own (`setNote`)
/// 80   length of the sender's name in bytes, 1...63
/// 88   the sender's name, UTF-8, then zeros, 64 bytes
/// 152  first 16 bytes of the HMAC-SHA-256 of all before, with the cluster's key
/// ```
///
/// The echo tells a host whether it is heard: with one direction of a link cut, it hears others
/// that do not hear it.
struct UDPDatagram: Sendable, Hashable {
    static let byteCount = 168
    private static let magic: UInt64 = 0x6674_766d_6862_7431
    private static let nameBytesMaximum = 63
    private static let nameStart = 88
    private static let codeStart = 152

    /// What was received of the recipient last.
    struct Echo: Sendable, Hashable {
        var incarnation: UInt64
        var sequence: UInt64
        var ageNanoseconds: UInt64
    }

    var sender: HostName
    var incarnation: UInt64
    var sequence: UInt64
    var sentNanoseconds: UInt64
    var echo: Echo?
    var note: UInt64

    /// Why a datagram is not taken.
    enum Refusal: Error, Sendable {
        /// Not a heartbeat, of another version, or of another cluster.
        case foreign
        /// The authentication code is wrong: somebody without the key made it, or it was damaged.
        case forged
        /// Ours, but made for another host.
        case misdirected
    }

    /// The cluster's name and key as datagrams use them.
    struct Seal: Sendable {
        let cluster: UInt64
        private let key: SymmetricKey

        init(cluster: String, key: ClusterKey) {
            self.cluster = UDPDatagram.mark(cluster)
            self.key = key.symmetric
        }

        func code(_ bytes: UnsafeRawBufferPointer) -> HMAC<SHA256>.MAC {
            HMAC<SHA256>.authenticationCode(for: bytes, using: key)
        }
    }

    /// A name as eight bytes.
    static func mark(_ name: String) -> UInt64 {
        SHA256.hash(data: Array(name.utf8)).prefix(8).reduce(0) { $0 << 8 | UInt64($1) }
    }

    static func fits(_ name: HostName) -> Bool {
        (1...nameBytesMaximum).contains(name.text.utf8.count)
    }

    /// Writes it into `buffer`, which has `byteCount` bytes.
    func write(
        to buffer: UnsafeMutableRawBufferPointer, recipient: UInt64, seal: Seal
    ) {
        precondition(buffer.count == Self.byteCount && Self.fits(sender))
        buffer.initializeMemory(as: UInt8.self, repeating: 0)
        let words = [
            Self.magic, seal.cluster, incarnation, sequence, sentNanoseconds,
            echo?.incarnation ?? 0, echo?.sequence ?? 0, echo?.ageNanoseconds ?? 0, recipient,
            note, UInt64(sender.text.utf8.count),
        ]
        for (index, word) in words.enumerated() {
            buffer.storeBytes(of: word.bigEndian, toByteOffset: 8 * index, as: UInt64.self)
        }
        for (index, byte) in sender.text.utf8.enumerated() {
            buffer[Self.nameStart + index] = byte
        }
        let code = seal.code(UnsafeRawBufferPointer(rebasing: buffer[..<Self.codeStart]))
        code.withUnsafeBytes { code in
            for index in 0..<(Self.byteCount - Self.codeStart) {
                buffer[Self.codeStart + index] = code[index]
            }
        }
    }

    /// Reads and checks what was received.
    init(
        _ buffer: UnsafeRawBufferPointer, recipient: UInt64, seal: Seal
    ) throws(Refusal) {
        func word(_ index: Int) -> UInt64 {
            UInt64(bigEndian: buffer.loadUnaligned(fromByteOffset: 8 * index, as: UInt64.self))
        }
        guard buffer.count == Self.byteCount, word(0) == Self.magic, word(1) == seal.cluster else {
            throw .foreign
        }
        let code = seal.code(UnsafeRawBufferPointer(rebasing: buffer[..<Self.codeStart]))
        // Compared in full, so that the time it takes tells nothing.
        let difference = code.withUnsafeBytes { code in
            (0..<(Self.byteCount - Self.codeStart)).reduce(UInt8(0)) {
                $0 | (code[$1] ^ buffer[Self.codeStart + $1])
            }
        }
        guard difference == 0 else { throw .forged }
        guard word(8) == recipient else { throw .misdirected }
        let length = word(10)
        guard (1...UInt64(Self.nameBytesMaximum)).contains(length), word(2) != 0,
            let name = String(
                validating: buffer[Self.nameStart..<(Self.nameStart + Int(length))], as: UTF8.self)
        else { throw .foreign }
        sender = HostName(name)
        incarnation = word(2)
        sequence = word(3)
        sentNanoseconds = word(4)
        note = word(9)
        echo =
            word(5) == 0
            ? nil : Echo(incarnation: word(5), sequence: word(6), ageNanoseconds: word(7))
    }

    init(
        sender: HostName, incarnation: UInt64, sequence: UInt64, sentNanoseconds: UInt64,
        echo: Echo?, note: UInt64
    ) {
        self.sender = sender
        self.incarnation = incarnation
        self.sequence = sequence
        self.sentNanoseconds = sentNanoseconds
        self.echo = echo
        self.note = note
    }
}
