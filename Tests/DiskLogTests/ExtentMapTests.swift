import DiskLog
import Testing

@Suite struct ExtentMapTests {
    private static let bytes = 6000

    /// The map against a plain array: per byte the place of its newest contents, and the record.
    private struct Model {
        var source = [UInt64?](repeating: nil, count: ExtentMapTests.bytes)
        var sequence = [UInt64](repeating: 0, count: ExtentMapTests.bytes)
    }

    private func check(_ map: ExtentMap, _ model: Model, _ range: Range<Int>, _ comment: String) {
        var found = [UInt64?](repeating: nil, count: ExtentMapTests.bytes)
        var last = UInt64(range.lowerBound)
        map.forEach(UInt64(range.lowerBound), UInt64(range.upperBound)) { extent in
            #expect(
                extent.start >= last && extent.end > extent.start
                    && extent.end <= UInt64(range.upperBound), "\(comment)")
            last = extent.end
            for byte in extent.start..<extent.end {
                found[Int(byte)] =
                    extent.isZero ? extent.source : extent.source + (byte - extent.start)
            }
        }
        #expect(Array(found[range]) == Array(model.source[range]), "\(comment)")
    }

    @Test(arguments: 1...20 as ClosedRange<UInt64>)
    func randomChangesAgainstAnArray(seed: UInt64) {
        var generator = SystemRandomNumberGenerator()
        let map = ExtentMap()
        var model = Model()
        let largest = seed % 3 == 0 ? 400 : 12
        for sequence in 1...2500 as ClosedRange<UInt64> {
            let count = Int.random(in: 1...largest, using: &generator)
            let start = Int.random(in: 0...(ExtentMapTests.bytes - count), using: &generator)
            let range = start..<start + count
            switch Int.random(in: 0..<10, using: &generator) {
            case 0:
                let below = UInt64.random(in: 0...sequence, using: &generator)
                map.remove(UInt64(start), UInt64(range.upperBound), below: below)
                for byte in range where model.sequence[byte] < below { model.source[byte] = nil }
            case 1:
                map.insert(
                    Extent(
                        start: UInt64(start), end: UInt64(range.upperBound), source: Extent.hole,
                        sequence: sequence))
                for byte in range {
                    (model.source[byte], model.sequence[byte]) = (Extent.hole, sequence)
                }
            default:
                let source = UInt64.random(in: 0...1 << 40, using: &generator)
                map.insert(
                    Extent(
                        start: UInt64(start), end: UInt64(range.upperBound), source: source,
                        sequence: sequence))
                for byte in range {
                    model.source[byte] = source + UInt64(byte - start)
                    model.sequence[byte] = sequence
                }
            }
            if sequence % 50 == 0 {
                check(map, model, 0..<ExtentMapTests.bytes, "step \(sequence)")
                check(map, model, range, "step \(sequence), part")
            }
        }
        map.remove(0, UInt64(ExtentMapTests.bytes), below: .max)
        #expect(map.count == 0)
    }

    @Test func inOrderAndBackwards() {
        for backwards in [false, true] {
            let map = ExtentMap()
            for step in 0..<5000 as Range<UInt64> {
                let place = backwards ? 4999 - step : step
                map.insert(
                    Extent(
                        start: place * 8, end: place * 8 + 8, source: place * 100, sequence: step))
            }
            #expect(map.count == 5000)
            var next: UInt64 = 0
            map.forEach(0, .max) { extent in
                #expect(extent.start == next * 8 && extent.source == next * 100)
                next += 1
            }
            #expect(next == 5000)
            map.forEach(81, 82) { #expect($0.start == 81 && $0.end == 82 && $0.source == 1001) }
        }
    }
}
