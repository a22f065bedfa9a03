import ArgumentParser
import ControlAPI
import MemoryPool
import Model

struct PoolDump: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "dump",
        abstract: "Decode a segment: header, commit records, undo log.",
        discussion: """
            Reads the segment itself, on this machine, and changes nothing; Documentation/SegmentFormat.md \
            explains the fields. A path needs no ftvmd, so that a segment can be looked at when \
            everything else is down. Exit code 12 says that the segment is damaged; what could be read \
            is printed all the same.

            Examples:
              ftvm pool dump demo
              ftvm pool dump default/demo --entries 100
              ftvm pool dump /run/ftvm-lab/pool/segments/demo -o json | jq .position
            """)

    @Argument(
        help: ArgumentHelp(
            "The segment: NAME, POOL/NAME, or the path of its directory.", valueName: "segment"),
        completion: .directory)
    var segment: String

    @Option(
        help: ArgumentHelp(
            "Show at most so many entries of the undo log, up to 100000.", valueName: "count"))
    var entries = defaultDumpEntries

    @OptionGroup var output: OutputOptions
    @OptionGroup var connection: ConnectionOptions

    /// Looks at a segment that seems damaged while it is being written, before it is called so.
    private static let looks = 3

    func validate() throws {
        guard (0...100_000).contains(entries) else {
            throw ValidationError("--entries must be from 0 to 100000.")
        }
        guard !segment.isEmpty else { throw ValidationError("The segment's name is empty.") }
    }

    func run() async throws {
        let (pool, name) = try await find()
        let time = CommandEnvironment.current.time
        var description = try pool.describeSegment(name: name, entryLimit: entries)
        for _ in 1..<PoolDump.looks where !description.problems.isEmpty {
            guard description.primaryLocked == true || description.managerLocked == true else {
                break
            }
            try await time.sleep(.milliseconds(100))
            description = try pool.describeSegment(name: name, entryLimit: entries)
        }
        try output.print(description) {
            description.description.split(separator: "\n", omittingEmptySubsequences: false)
                .map { TextTable.printable(String($0)) }.joined(separator: "\n")
        }
        guard let problem = description.problems.first else { return }
        throw FtvmError(
            .dataCorrupted, "segment '\(name)' of pool '\(pool.name)' is damaged",
            cause: description.problems.count == 1
                ? problem : "\(problem), and \(description.problems.count - 1) more",
            advice: "do not promote from it; 'ftvm status' tells whether a pair needs it")
    }

    private func find() async throws -> (Pool, name: String) {
        if segment.hasPrefix("/") || segment.hasPrefix(".") {
            return try PoolDump.pool(ofSegmentAt: segment)
        }
        let parts = segment.split(separator: "/", omittingEmptySubsequences: false).map(String.init)
        guard parts.count <= 2, !parts.contains("") else {
            throw FtvmError(
                .invalidArgument, "'\(segment)' names no segment",
                advice: "give NAME, POOL/NAME or a path that begins with '/' or '.'")
        }
        let (view, name) = try await connection.withService { service in
            parts.count == 2
                ? (try await service.pool(PoolName(parts[0])).pool, parts[1])
                : try await PoolDump.search(service, for: parts[0])
        }
        let configuration = PoolConfiguration(name: view.name, kind: view.kind, path: view.path)
        do {
            return (try Pool(configuration), name)
        } catch {
            var failure = FtvmError(
                wrapping: error, "pool '\(view.name)' cannot be read from here")
            failure.advice = "run ftvm on host \(view.host), whose path it is"
            throw failure
        }
    }

    /// The only segment of that name in any pool.
    private static func search(
        _ service: any ControlService, for name: String
    ) async throws -> (PoolView, String) {
        var found: [PoolView] = []
        for pool in try await service.pools() where pool.problem == nil {
            let detail = try await service.pool(pool.name)
            if detail.segments.contains(where: { $0.name == name }) { found.append(pool) }
        }
        guard let first = found.first else {
            throw FtvmError(
                .notFound, "no pool has a segment '\(name)'",
                advice: "'ftvm pool list' shows the pools, 'ftvm pool show POOL' their segments")
        }
        guard found.count == 1 else {
            throw FtvmError(
                .invalidArgument, "more than one pool has a segment '\(name)'",
                cause: found.map(\.name.text).joined(separator: ", "),
                advice: "say which: \(first.name)/\(name)")
        }
        return (first, name)
    }

    /// Takes `<pool>/segments/<name>` apart; the pool's kind is what its file system is.
    private static func pool(ofSegmentAt path: String) throws -> (Pool, name: String) {
        var parts = path.split(separator: "/", omittingEmptySubsequences: true).map(String.init)
        guard let name = parts.popLast(), parts.popLast() == "segments",
            !parts.isEmpty
        else {
            throw FtvmError(
                .invalidArgument, "'\(path)' is not the directory of a segment",
                advice: "it looks like <pool's directory>/segments/<name>")
        }
        let relative = parts.joined(separator: "/")
        let directory = path.hasPrefix("/") ? "/\(relative)" : relative
        let poolName = PoolName(parts[parts.count - 1])
        var causes: [String] = []
        for kind in [PoolKind.tmpfs, .hugetlbfs] {
            do {
                return (try Pool(.init(name: poolName, kind: kind, path: directory)), name)
            } catch let error as FtvmError where error.code == .invalidArgument {
                causes.append(error.cause ?? error.message)
            }
        }
        throw FtvmError(
            .invalidArgument, "'\(directory)' is no pool: neither on tmpfs nor on hugetlbfs",
            cause: causes.first)
    }
}
