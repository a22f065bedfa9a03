import CLinux
import Testing
import segment_crasher

@Suite struct ChecksumTests {
    /// RFC 3720, appendix B.4, and the usual check value.
    @Test func knownVectors() {
        let vectors: [([UInt8], UInt32)] = [
            (Array("123456789".utf8), 0xe306_9283),
            ([UInt8](repeating: 0, count: 32), 0x8a91_36aa),
            ([UInt8](repeating: 0xff, count: 32), 0x62a8_ab43),
            (Array(0..<32), 0x46dd_794e),
            (Array((0..<32).reversed()), 0x113f_db5c),
            ([], 0),
        ]
        for (bytes, expected) in vectors {
            #expect(ftvm_crc32c(0, bytes, bytes.count) == expected)
            #expect(ftvm_crc32c_portable(0, bytes, bytes.count) == expected)
        }
    }

    /// All lengths around the lanes' borders, all alignments, in one piece and in two.
    @Test func bothWaysAgree() {
        var generator = SeededGenerator(seed: 5)
        let bytes = (0..<16400).map { _ in UInt8.random(in: .min ... .max, using: &generator) }
        let lengths =
            Array(0..<40) + Array(4070..<4100) + Array(8150..<8200) + [1360, 2720, 12240, 16384]
        bytes.withUnsafeBytes { all in
            guard let base = all.baseAddress else { return }
            for length in lengths {
                let start = base + length % 9
                let whole = ftvm_crc32c(0, start, length)
                #expect(whole == ftvm_crc32c_portable(0, start, length), "\(length) bytes")
                let split = length * 2 / 3
                let first = ftvm_crc32c(0, start, split)
                #expect(ftvm_crc32c(first, start + split, length - split) == whole)
            }
        }
    }

    @Test func copyingGivesTheChecksumOfTheCopy() {
        let source = (0..<4096).map { UInt8(truncatingIfNeeded: $0 &* 37) }
        var target = [UInt8](repeating: 0, count: 4096)
        #expect(ftvm_crc32c_copy(&target, source, 4096) == ftvm_crc32c(0, source, 4096))
        #expect(target == source)
    }
}
