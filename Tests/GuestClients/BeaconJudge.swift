/// A beacon as the guest sends it (`struct beacon` of `Examples/guest/services.c`).
package struct Beacon: Sendable, Hashable {
    package var sender: UInt64
    package var sequence: UInt64
    package var nonce: [UInt64]
    package var uptimeNanoseconds: UInt64
    package var bootID: String

    package static let bytes = 8 + 5 * 8 + 40
    private static let magic = Array("ftvm-bcn".utf8)

    /// Nil when the bytes are no beacon.
    package init?(_ payload: some Collection<UInt8>) {
        let bytes = Array(payload)
        guard bytes.count == Self.bytes, bytes.starts(with: Self.magic) else { return nil }
        func word(_ index: Int) -> UInt64 {
            bytes[(8 + 8 * index)..<(16 + 8 * index)].reduce(0) { $0 << 8 | UInt64($1) }
        }
        sender = word(0)
        sequence = word(1)
        nonce = [word(2), word(3)]
        uptimeNanoseconds = word(4)
        bootID = String(decoding: bytes[48...].prefix { $0 != 0 }, as: UTF8.self)
    }
}

/// Judges the beacons on the wire. The sequence is the guest's memory, the nonce cannot be made twice: the same
/// sequence with another nonce means that the guest has gone back behind a frame that was seen, so the first of the two
/// frames belonged to an epoch that was never committed.
package struct BeaconJudge: Sendable {
    private struct Key: Hashable {
        let bootID: String
        let sender: UInt64
    }
    private var seen: [Key: [UInt64: [UInt64]]] = [:]
    package private(set) var findings = Findings()
    package private(set) var count = 0
    package private(set) var repeated = 0

    package init() {}

    package mutating func judge(_ beacon: Beacon) {
        count += 1
        let key = Key(bootID: beacon.bootID, sender: beacon.sender)
        guard let nonce = seen[key]?[beacon.sequence] else {
            seen[key, default: [:]][beacon.sequence] = beacon.nonce
            return
        }
        if nonce == beacon.nonce {
            repeated += 1
        } else {
            findings.add(
                "beacon \(beacon.sequence) of sender \(beacon.sender) was sent twice, differently: the guest "
                    + "went back behind a frame that was let out")
        }
    }

    /// Numbers that never came.
    package var missing: Int {
        seen.values.reduce(0) { sum, sequences in
            guard let first = sequences.keys.min(), let last = sequences.keys.max() else {
                return sum
            }
            return sum + Int(last - first) + 1 - sequences.count
        }
    }
}
