import DiskLog
import Glibc

/// SplitMix64 (Steele et al. 2014): the same numbers in the process that dies and in the one that
/// knows what it must have done.
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64
    init(seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }
}

let sectorBytes = 512

/// What the guest, and ftvmd, do.
enum Operation {
    case write(disk: Int, sector: Int, count: Int, fua: Bool)
    case zero(disk: Int, sector: Int, count: Int, trim: Bool)
    case flush(disk: Int)
    case read(disk: Int, sector: Int, count: Int)
    case commit
    case apply

    var isBarrier: Bool {
        switch self {
        case .flush: true
        case .write(_, _, _, let fua): fua
        default: false
        }
    }
}

/// An operation that took place, and the stamp of what it wrote.
struct Event {
    var operation: Operation
    var stamp: UInt64
}

/// A random history, which depends on nothing but its parameters.
struct Plan {
    /// In sectors: the first disk is far larger than the log's data.
    static let disks = [768, 128]
    static let operationCount = 220

    let number: UInt64
    let operations: [Operation]

    init(seed: UInt64, number: UInt64) {
        var generator = SeededGenerator(seed: seed &* 0x1_0001 &+ number)
        self.number = number
        // How eager storage and ftvmd are differs from plan to plan.
        let commitRate = Int.random(in: 2...15, using: &generator)
        let applyRate = Int.random(in: 0...25, using: &generator)
        let flushRate = Int.random(in: 1...20, using: &generator)
        operations = (0..<Plan.operationCount).map { _ in
            let disk = Int.random(in: 0..<4, using: &generator) == 0 ? 1 : 0
            let dice = Int.random(in: 0..<100, using: &generator)
            if dice < commitRate { return .commit }
            if dice < commitRate + applyRate { return .apply }
            if dice < commitRate + applyRate + flushRate { return .flush(disk: disk) }
            let (sector, count) = Plan.range(of: disk, &generator)
            switch Int.random(in: 0..<20, using: &generator) {
            case 0: return .zero(disk: disk, sector: sector, count: count, trim: false)
            case 1: return .zero(disk: disk, sector: sector, count: count, trim: true)
            case 2, 3, 4: return .read(disk: disk, sector: sector, count: count)
            case 5: return .write(disk: disk, sector: sector, count: count, fua: true)
            default: return .write(disk: disk, sector: sector, count: count, fua: false)
            }
        }
    }

    /// Half of all that happens, happens in a small place.
    private static func range(of disk: Int, _ generator: inout SeededGenerator) -> (Int, Int) {
        let size = disks[disk]
        let span = Bool.random(using: &generator) ? 24 : size
        let largest = Int.random(in: 0..<10, using: &generator) == 0 ? 22 : 9
        let count = Int.random(in: 1...min(largest, size), using: &generator)
        return (Int.random(in: 0...max(0, min(span, size - count)), using: &generator), count)
    }

    func stamp(_ index: Int) -> UInt64 { (number + 1) << 32 | UInt64(index + 1) }
}

/// What a sector is filled with: its stamp, disk and number, so that no place can be taken for
/// another. Stamp 0: zeroes.
enum Sector {
    static func fill(_ target: UnsafeMutableRawPointer, stamp: UInt64, disk: Int, sector: Int) {
        if stamp == 0 {
            memset(target, 0, sectorBytes)
            return
        }
        target.storeBytes(of: stamp, as: UInt64.self)
        var generator = SeededGenerator(seed: stamp ^ UInt64(disk) << 60 ^ UInt64(sector) << 40)
        for word in 1..<sectorBytes / 8 {
            target.storeBytes(of: generator.next(), toByteOffset: 8 * word, as: UInt64.self)
        }
    }

    /// The stamp of a sector; nil if it is not whole, or belongs somewhere else.
    static func stamp(_ source: UnsafeRawPointer, disk: Int, sector: Int) -> UInt64? {
        let stamp = source.load(as: UInt64.self)
        return withUnsafeTemporaryAllocation(byteCount: sectorBytes, alignment: 8) { buffer in
            guard let expected = buffer.baseAddress else { return nil }
            fill(expected, stamp: stamp, disk: disk, sector: sector)
            return memcmp(expected, source, sectorBytes) == 0 ? stamp : nil
        }
    }
}

/// The disks' contents as stamps.
struct Contents: Equatable {
    var stamps: [[UInt64]] = Plan.disks.map { [UInt64](repeating: 0, count: $0) }

    mutating func apply(_ event: Event) {
        switch event.operation {
        case .write(let disk, let sector, let count, _):
            for index in sector..<sector + count { stamps[disk][index] = event.stamp }
        case .zero(let disk, let sector, let count, _):
            for index in sector..<sector + count { stamps[disk][index] = 0 }
        default: break
        }
    }
}
