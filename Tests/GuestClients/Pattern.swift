/// The words that the guest's transfers carry (`struct pattern` of `Examples/guest/services.c`).
package struct Pattern: Sendable {
    package static let blockBytes = 64 * 1024
    private static let blockWords = UInt64(blockBytes / 8)
    private static let golden: UInt64 = 0x9e37_79b9_7f4a_7c15

    private let seed: UInt64
    /// Words given so far.
    package private(set) var position: UInt64 = 0
    private var word: UInt64 = 0
    /// FNV-1a over the words given so far, turned at each.
    package private(set) var checksum: UInt64 = 0

    package init(seed: UInt64) { self.seed = seed }

    package mutating func next() -> UInt64 {
        if position % Self.blockWords == 0 {
            word = Self.mix(seed ^ Self.mix(position / Self.blockWords))
        }
        position += 1
        word &+= Self.golden
        checksum = Self.add(word, to: checksum)
        return word
    }

    package static func add(_ word: UInt64, to checksum: UInt64) -> UInt64 {
        let product = (checksum ^ word) &* 0x100_0000_01b3
        return product << 23 | product >> 41
    }

    private static func mix(_ value: UInt64) -> UInt64 {
        var value = value &+ golden
        value = (value ^ (value >> 30)) &* 0xbf58_476d_1ce4_e5b9
        value = (value ^ (value >> 27)) &* 0x94d0_49bb_1331_11eb
        return value ^ (value >> 31)
    }
}
