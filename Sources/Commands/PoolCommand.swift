import ArgumentParser
import ControlAPI
import Model

struct PoolCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "pool",
        abstract: "Look at pools and the segments in them.",
        discussion: """
            A pool is memory that every host of the cluster can map; a segment is one VM's place in it.
            """,
        subcommands: [PoolList.self, PoolShow.self, PoolDump.self])
}

struct PoolList: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "list",
        abstract: "List the pools.",
        discussion: """
            FREE is what a new segment may still take: segments are reserved whole, so a pool never \
            runs out under a running VM.

            Example:
              ftvm pool list
            """)

    @Flag(help: "Print only the names, one a line.")
    var names = false

    @OptionGroup var output: OutputOptions
    @OptionGroup var connection: ConnectionOptions

    func run() async throws {
        try await connection.withService { service in
            let pools = try await service.pools()
            if names {
                try NameList.print(pools.map(\.name.text), format: output.format)
            } else {
                try output.print(pools) { ClusterText.table(pools) }
            }
        }
    }
}

struct PoolShow: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "show",
        abstract: "Show a pool and its segments.",
        discussion: """
            LOCK says whether a primary lives: QEMU itself holds the segment's lock, and the kernel \
            drops it when the process is gone. BOUND TO are the NUMA nodes asked for, NODES where the \
            pages really are. A segment that is left over belongs to no pair.

            Example:
              ftvm pool show default
            """)

    @Argument(help: "The pool's name.", completion: Completions.pools)
    var pool: PoolName

    @OptionGroup var output: OutputOptions
    @OptionGroup var connection: ConnectionOptions

    func run() async throws {
        try await connection.withService { service in
            let detail = try await service.pool(pool)
            try output.print(detail) { ClusterText.detail(detail) }
        }
    }
}
