import ControlAPI
import Foundation
import Lab
import Model
import Testing

/// How many descriptors each ftvmd has, by the part that its host plays: the same part needs the same number, however
/// often it has been played.
package struct DescriptorCensus {
    private struct Key: Hashable {
        let daemon: ProcessView
        let part: String
    }
    private var counts: [Key: [[String]]] = [:]

    private var order: [Key] = []

    package init() {}

    /// To be taken while the pair is protected.
    package mutating func take(_ lab: TestLab, _ pair: PairView) async throws {
        for host in lab.livingHosts {
            let daemon = try #require(try await lab.daemon(host))
            let part =
                host == pair.primary
                ? "primary" : host == pair.secondary ? "secondary" : "bystander"
            let key = Key(daemon: daemon, part: part)
            if counts[key] == nil { order.append(key) }
            counts[key, default: []].append(daemon.descriptors)
        }
    }

    /// Connections of clients and the like come and go, so a few more or less mean nothing.
    package func check() {
        for key in order {
            guard let samples = counts[key], let first = samples.first, let last = samples.last
            else { continue }
            let grown = Self.kinds(last).merging(Self.kinds(first)) { $0 - $1 }
                .filter { $0.value > 0 && Self.kinds(last)[$0.key] != nil }
            #expect(last.count <= first.count + 2, "ftvmd as \(key.part) leaks: \(grown)")
        }
        // Also over the deaths of daemons: what one leaves in the pool or in a QEMU, the next one holds.
        for part in Set(order.map(\.part)).sorted() {
            let samples = order.filter { $0.part == part }.flatMap { counts[$0] ?? [] }
            print("descriptors of ftvmd as \(part): \(samples.map(\.count))")
            guard samples.count >= 6 else { continue }
            let early = samples.prefix(3).map(\.count).max() ?? 0
            let late = samples.suffix(3).map(\.count).max() ?? 0
            #expect(late <= early + 4, "ftvmd as \(part) has more and more descriptors")
        }
    }

    /// Descriptors by what they are of, without numbers that differ each time.
    private static func kinds(_ links: [String]) -> [String: Int] {
        Dictionary(
            links.map { ($0.split(separator: "[").first.map(String.init) ?? $0, 1) },
            uniquingKeysWith: +)
    }
}

extension TestLab {
    /// What a protected pair takes, and no more: two QEMUs, two taps for each network card, one segment.
    package func expectNoLeak(_ pair: PairView, cards: Int = 1) async throws {
        for host in livingHosts {
            let count = host == pair.primary || host == pair.secondary ? 1 : 0
            #expect(try await qemus(host).count == count, "QEMUs on \(host)")
            #expect(try await taps(host).count == count * cards, "taps on \(host)")
        }
        let pool = try await ftvm(
            PoolDetailView.self, "pool", "show", pair.segment?.pool.text ?? "")
        #expect(pool.segments.count == 1)
    }

    /// The pair is given back, and nothing of it is left in the pool.
    package func disableAndExpectNothing(_ pools: [PoolView]) async throws {
        try await disable()
        let now = try await ftvm([PoolView].self, "pool", "list")
        #expect(now.map(\.steady) == pools.map(\.steady))
        for pool in now where pool.kind != .memfd {
            let directory = pool.path + "/segments"
            guard FileManager.default.fileExists(atPath: directory) else { continue }
            #expect(try FileManager.default.contentsOfDirectory(atPath: directory) == [])
        }
    }
}

extension PoolView {
    /// What nobody else on the machine changes: a pool of memory files has no room of its own, but the machine's.
    package var steady: [String] {
        let free = kind == .memfd ? nil : freeBytes
        return [name.text, "\(segmentCount) segments", "\(free ?? 0) bytes free"]
    }
}
