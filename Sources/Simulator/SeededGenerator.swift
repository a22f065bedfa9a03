/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere for a seed.
package struct SeededGenerator: RandomNumberGenerator, Sendable {
    private var state: UInt64
    package init(seed: UInt64) { state = seed }
    package mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }
    mutating func chance(_ perMille: Int) -> Bool { Int(next() % 1_000) < perMille }
    mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }
    /// Of a range of times, both ends included.
    mutating func time(_ from: UInt64, _ to: UInt64) -> UInt64 { from + next() % (to - from + 1) }
}

/// Milliseconds as the nanoseconds that the world counts in.
func ms(_ milliseconds: UInt64) -> UInt64 { milliseconds * 1_000_000 }
