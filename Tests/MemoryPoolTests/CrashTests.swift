import Foundation
import MemoryPool
import Model
import Testing
import segment_crasher

/// A process that writes commits and undo entries is killed at every step of the protocol; what is
/// found afterwards must be exactly the last published commit.
@Suite struct CrashTests {
    /// One way to die: the n-th time that a point is reached, and the epoch published by then.
    struct Death {
        let point: String
        let count: Int
        let published: UInt64
    }

    static let points: Set<String> = [
        "segment.undo.image-copied", "segment.undo.entry-written", "segment.undo.head-published",
        "segment.commit.record-half-written", "segment.commit.record-written",
        "segment.commit.position-swapped", "segment.generation.read", "segment.generation.raised",
        "segment.rollback.verified", "segment.rollback.page-applied",
        "segment.rollback.half-done", "segment.rollback.applied",
        "workload.page-half-written", "workload.state-half-written",
    ]

    /// Runs the workload once without dying and chooses deaths: for every point the first times,
    /// the last one, and some in between.
    private func deaths(
        _ home: TestPool, _ arguments: [String], perPoint: Int, seed: UInt64
    ) throws -> [Death] {
        let trace = "/dev/shm/ftvm-pool-test-trace-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: trace) }
        #expect(try CrasherProcess.run(arguments + ["none", "1"], trace: trace) == .finished)
        var reached: [String: [Death]] = [:]
        var published: UInt64 = 0
        for line in try String(contentsOfFile: trace, encoding: .utf8).split(separator: "\n") {
            let point = String(line)
            if point == "segment.commit.position-swapped" { published += 1 }
            let count = reached[point, default: []].count + 1
            reached[point, default: []].append(
                Death(point: point, count: count, published: published))
        }
        #expect(Set(reached.keys) == CrashTests.points)
        var generator = SeededGenerator(seed: seed)
        return reached.sorted { $0.key < $1.key }.flatMap { _, all in
            var chosen = Set([1, 2, all.count].filter { $0 <= all.count })
            for _ in 0..<perPoint {
                chosen.insert(Int.random(in: 1...all.count, using: &generator))
            }
            return chosen.sorted().map { all[$0 - 1] }
        }
    }

    private static let epochs: UInt64 = 12

    private func specification(_ name: String) -> SegmentSpecification {
        smallSegment(name, pages: 48, undo: 20)
    }

    private func recover(_ segment: Segment) throws -> Epoch {
        try segment.raiseGeneration(to: segment.position.generation.next)
        if segment.position.epoch.number > 0 { try segment.rollBack() }
        return segment.position.epoch
    }

    @Test(arguments: [1, 2, 3, 4, 5, 6] as [UInt64])
    func recoveryYieldsExactlyTheLastCommit(seed: UInt64) throws {
        try dieEverywhere(
            TestPool(), specification, epochs: CrashTests.epochs, perPoint: 5, seed: seed)
    }

    @Test func recoveryYieldsExactlyTheLastCommitInMemfds() throws {
        try dieEverywhere(
            TestPool(.memfd), specification, epochs: CrashTests.epochs, perPoint: 2, seed: 7)
    }

    @Test(.enabled(if: isRoot, "needs root, to mount hugetlbfs"))
    func recoveryYieldsExactlyTheLastCommitOnHugePages() throws {
        try HugePageTests.exclusively {
            try dieEverywhere(
                TestPool(.hugetlbfs, hugePages: 80),
                { smallSegment($0, pages: 9, undo: 8, pageBytes: 2 << 20) }, epochs: 7,
                perPoint: 0, seed: 9)
        }
    }

    private func dieEverywhere(
        _ home: TestPool, _ specification: (String) -> SegmentSpecification, epochs: UInt64,
        perPoint: Int, seed: UInt64
    ) throws {
        let kind = home.pool.configuration.kind.rawValue
        let arguments = { (name: String) in
            ["work", home.directory, kind, name, "\(seed)", "\(epochs)"]
        }
        let header = try home.pool.createSegment(specification("trace")).header
        let workload = Workload(
            seed: seed, pages: header.pageCount, capacity: header.undoCapacity, epochs: epochs)
        let deaths = try deaths(home, arguments("trace"), perPoint: perPoint, seed: seed)
        try home.pool.removeSegment(name: "trace")
        for death in deaths {
            let comment = "seed \(seed), \(death)"
            _ = try home.pool.createSegment(specification("vm"))
            let ending = try CrasherProcess.run(arguments("vm") + [death.point, "\(death.count)"])
            #expect(ending == .killed, "\(comment)")
            let segment = try home.pool.openSegment(name: "vm", access: .write)
            let epoch = try recover(segment)
            #expect(epoch.number == death.published, "\(comment)")
            if death.published > 0 {
                try expectCommit(epoch, of: workload, in: segment, comment)
                try goOn(segment, from: epoch, workload, comment)
            } else {
                #expect(try segment.latestCommit() == nil, "\(comment)")
            }
            #expect(segment.dump().problems == [], "\(comment)")
            try home.pool.removeSegment(name: "vm")
        }
    }

    /// The recovered segment is as good as any: an epoch is begun on it and lost, another
    /// committed.
    private func goOn(
        _ segment: Segment, from epoch: Epoch, _ workload: Workload, _ comment: String
    ) throws {
        #expect(segment.appendUndo(page: 7, epoch: epoch.next) != .fenced, "\(comment)")
        if segment.undoFree > 0 {
            #expect(segment.appendUndo(page: 8, epoch: epoch.next) == .appended, "\(comment)")
            segment.fill(page: 8, with: 0xee)
            try segment.rollBack()
            try expectCommit(epoch, of: workload, in: segment, comment)
        }
        try segment.publish(
            epoch: epoch.next, generation: segment.position.generation, stateLength: 0)
        #expect(segment.undoFree == segment.undoCapacity, "\(comment)")
    }

    @Test(arguments: [11, 12, 13] as [UInt64])
    func aRollbackThatIsKilledCanBeRepeated(seed: UInt64) throws {
        let home = try TestPool()
        let work = ["work", home.directory, "tmpfs", "vm", "\(seed)", "\(CrashTests.epochs)"]
        let workload = Workload(seed: seed, pages: 48, capacity: 20, epochs: CrashTests.epochs)
        var killedRollbacks = 0
        for count in [25, 33, 40, 52, 60, 75] {
            _ = try home.pool.createSegment(specification("vm"))
            #expect(
                try CrasherProcess.run(work + ["segment.undo.head-published", "\(count)"])
                    == .killed)
            var generation: UInt64 = 100
            for (point, times) in [
                ("segment.generation.raised", 1), ("segment.rollback.verified", 1),
                ("segment.rollback.page-applied", 1), ("segment.rollback.half-done", 1),
                ("segment.rollback.page-applied", 3), ("segment.rollback.applied", 1),
            ] {
                let ending = try CrasherProcess.run(
                    ["recover", home.directory, "tmpfs", "vm", "\(generation)", point, "\(times)"])
                #expect(ending == .killed || ending == .finished)
                if ending == .killed { killedRollbacks += 1 }
                generation += 1
            }
            let segment = try home.pool.openSegment(name: "vm", access: .write)
            let epoch = try recover(segment)
            #expect(epoch.number > 0)
            try expectCommit(epoch, of: workload, in: segment, "seed \(seed), count \(count)")
            try home.pool.removeSegment(name: "vm")
        }
        #expect(killedRollbacks >= 30)
    }

    @Test func aKilledCreationLeavesNothingVisible() throws {
        let home = try TestPool()
        for point in [
            "segment.create.directory-made", "segment.create.locked", "segment.create.ram-reserved",
            "segment.create.control-reserved", "segment.create.control-written",
        ] {
            let ending = try CrasherProcess.run(
                ["create", home.directory, "tmpfs", "vm", "16", point, "1"])
            #expect(ending == .killed)
            #expect(try home.pool.segmentNames() == [])
            #expect(home.entries.count == 1, "\(point)")
            #expect(try home.pool.removeStaleCreations().count == 1)
            #expect(home.entries == [])
        }
        let ending = try CrasherProcess.run(
            ["create", home.directory, "tmpfs", "vm", "16", "segment.create.renamed", "1"])
        #expect(ending == .killed)
        #expect(try home.pool.removeStaleCreations() == [])
        #expect(try home.pool.segmentNames() == ["vm"])
        #expect(try home.pool.openSegment(name: "vm", access: .read).dump().problems == [])
    }

    @Test func aKilledRemovalIsFinishedLater() throws {
        let home = try TestPool()
        _ = try home.pool.createSegment(smallSegment())
        let ending = try CrasherProcess.run(
            ["remove", home.directory, "tmpfs", "vm", "segment.remove.renamed", "1"])
        #expect(ending == .killed)
        #expect(try home.pool.segmentNames() == [])
        _ = try home.pool.createSegment(smallSegment())
        #expect(try home.pool.removeStaleCreations().count == 1)
        #expect(home.entries == ["vm"])
    }

    /// The same history in one process, looked at after every step.
    @Test(arguments: (21...40).map(UInt64.init))
    func everyRollbackOfARandomHistoryIsExact(seed: UInt64) throws {
        let home = try TestPool()
        _ = try home.pool.createSegment(specification("vm"))
        var committed: Epoch?
        var rollbacks = 0
        var runner = try WorkloadRunner(home.pool, "vm", seed: seed, epochs: 60)
        try runner.run { segment, workload, operation in
            switch operation {
            case .publish(let epoch): committed = epoch
            case .promote:
                rollbacks += 1
                try expectCommit(
                    try #require(committed), of: workload, in: segment, "seed \(seed)")
            default: break
            }
        }
        #expect(rollbacks > 5)
    }
}
