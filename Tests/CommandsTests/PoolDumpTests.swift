import Commands
import ControlAPI
import Foundation
import MemoryPool
import Model
import Testing

/// `ftvm pool dump` on real segments of a pool on tmpfs.
@Suite final class PoolDumpTests {
    private let directory = "/dev/shm/ftvm-dump-\(UUID().uuidString)"
    private let pool: Pool

    init() throws {
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: true)
        pool = try Pool(
            PoolConfiguration(name: PoolName("default"), kind: .tmpfs, path: directory))
        _ = try pool.createSegment(
            SegmentSpecification(
                name: "demo", uuid: "0d2a2c1e-6f3b-4c67-9a43-5a1f0c7d9e10", memoryBytes: 1 << 20,
                undoLogBytes: 1 << 20, generation: Generation(3)))
    }

    deinit { try? FileManager.default.removeItem(atPath: directory) }

    private var path: String { "\(directory)/segments/demo" }

    /// A daemon whose only pool is this one.
    private func daemon(path: String? = nil, segments: [String] = ["demo"]) -> Harness {
        var state = ScriptedService.State()
        var view = Samples.pool
        view.path = path ?? directory
        state.pools = [view]
        state.poolDetail = PoolDetailView(
            pool: view,
            segments: segments.map { name in
                var segment = Samples.poolDetail.segments[0]
                segment.name = name
                return segment
            })
        return Harness(state)
    }

    @Test func byPathWithoutADaemon() async {
        let harness = Harness()
        let outcome = await harness.run("pool", "dump", path)
        #expect(outcome.status == 0, "\(outcome.notes)")
        #expect(outcome.output.contains("generation 3, epoch 0"))
        #expect(outcome.output.contains("0d2a2c1e-6f3b-4c67-9a43-5a1f0c7d9e10"))
        #expect(harness.socketsAsked == [])
        #expect(await Harness().run("pool", "dump", path + "/").status == 0)
    }

    @Test func asJSON() async throws {
        let outcome = await Harness().run("pool", "dump", path, "-o", "json")
        let decoded = try ControlJSON.decode(
            SegmentDescription.self, from: Array(outcome.output.utf8))
        #expect(decoded.name == "demo")
        #expect(decoded.position?.generation == Generation(3))
        #expect(decoded.problems == [])
    }

    @Test(arguments: ["demo", "default/demo"])
    func byName(segment: String) async {
        let outcome = await daemon().run("pool", "dump", segment, "--entries", "0")
        #expect(outcome.status == 0, "\(outcome.notes)")
        #expect(outcome.output.hasPrefix("segment demo of pool default\n"))
    }

    @Test func aDamagedSegmentIsPrintedAndReported() async throws {
        let file = try FileHandle(forUpdating: URL(filePath: "\(path)/control"))
        try file.seek(toOffset: 16)
        try file.write(contentsOf: Data([0xFF, 0xFF, 0xFF, 0xFF]))
        try file.close()
        let outcome = await Harness().run("pool", "dump", path)
        #expect(outcome.status == 12)
        #expect(outcome.output.contains("PROBLEM"))
        #expect(outcome.notes.hasPrefix("ftvm: error: segment 'demo' of pool '"))
    }

    @Test func whatIsNotThere() async {
        #expect(await Harness().run("pool", "dump", "\(directory)/segments/none").status == 3)
        #expect(await Harness().run("pool", "dump", "/nowhere/segments/demo").status == 3)
        #expect(await daemon(segments: []).run("pool", "dump", "demo").status == 3)
        #expect(await daemon(segments: []).run("pool", "dump", "default/other").status == 3)
        let elsewhere = await daemon(path: "/nowhere").run("pool", "dump", "demo")
        #expect(elsewhere.status == 3)
        #expect(elsewhere.notes.contains("next: run ftvm on host h1, whose path it is"))
    }

    @Test(arguments: ["", "/demo", "/segments/demo", "a/b/c", "a/", "./x", "/etc/segments/x"])
    func whatNamesNoSegment(segment: String) async {
        #expect(await daemon().run("pool", "dump", segment).status == 2)
    }

    @Test func aNameInTwoPoolsIsNotGuessed() async {
        let harness = daemon()
        harness.service.state.withLock { $0.pools.append($0.pools[0]) }
        let outcome = await harness.run("pool", "dump", "demo")
        #expect(outcome.status == 2)
        #expect(outcome.notes.contains("next: say which: default/demo"))
    }
}
