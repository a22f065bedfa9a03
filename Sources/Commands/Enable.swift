import ArgumentParser
import ControlAPI
import Model

struct Enable: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Protect a domain.",
        usage: "ftvm enable <domain> [<options>]",
        discussion: """
            Reserves a segment for the domain's RAM in a pool, moves a running guest's memory into it \
            while the guest goes on, starts the secondary on another host and begins to commit. Whatever \
            cannot work is refused before anything is touched: unknown domain, no second host, pool \
            full, a device that cannot be carried over.

            A domain that is shut off is enabled at once and protected when it is started.

            Waits until the pair is protected and shows progress on standard error. Ending ftvm does not \
            end the work, which is the daemon's.

            Examples:
              ftvm enable demo
              ftvm enable demo --secondary h2 --epoch-max 20
              ftvm enable demo --pool huge --numa-node 0 --undo-log 512M --no-wait
            """)

    @Argument(
        help: "The libvirt domain's name; the pair is called the same.",
        completion: Completions.domains)
    var domain: PairName

    @Option(
        help: "The host that has the domain. Default: found by looking on all hosts.",
        completion: Completions.hosts)
    var host: HostName?

    @Option(
        help: "The host for the secondary. Default: chosen by its room.",
        completion: Completions.hosts)
    var secondary: HostName?

    @Option(
        help: "The pool for the segment. Default: the first in the daemon's configuration.",
        completion: Completions.pools)
    var pool: PoolName?

    @Option(
        name: .customLong("epoch-max"),
        help: ArgumentHelp(
            "The oldest an epoch gets before it is committed. Default: the daemon's, 50 ms.",
            discussion:
                "Shorter: less is lost in a failover. Longer: the guest is paused less often.",
            valueName: "ms"))
    var epochMaximum: Int?

    @Option(
        name: .customLong("numa-node"), parsing: .singleValue,
        help: ArgumentHelp(
            "Bind the segment to this NUMA node; may be given several times.", valueName: "node"))
    var numaNodes: [Int] = []

    @Option(
        name: .customLong("undo-log"),
        help: ArgumentHelp(
            "Room for the undo log, such as 256M. Default: a quarter of the RAM, at least 64M; of huge pages at least 512 of them, or all that the RAM has.",
            valueName: "size"))
    var undoLog: ByteCount?

    @Option(
        name: .customLong("disk-log"),
        help: ArgumentHelp(
            "Room for what the guest writes to its disks, such as 1G. Default: 256M.",
            valueName: "size"))
    var diskLog: ByteCount?

    @Option(
        name: .customLong("pool-durable"), parsing: .singleValue,
        help: ArgumentHelp(
            "Do not wait for stable storage when the guest flushes this disk; may be given several times.",
            discussion:
                "Its writes survive every failure of a host, but not the loss of the pool.",
            valueName: "disk"))
    var poolDurable: [String] = []

    @OptionGroup var waiting: WaitOptions
    @OptionGroup var output: OutputOptions
    @OptionGroup var connection: ConnectionOptions

    func validate() throws {
        let range = PairOptionsRequest.epochMaximumMillisecondsRange
        if let epochMaximum, !range.contains(epochMaximum) {
            throw ValidationError(
                "--epoch-max must be from \(range.lowerBound) to \(range.upperBound) ms.")
        }
        if let node = numaNodes.first(where: { $0 < 0 }) {
            throw ValidationError("--numa-node \(node) is not the number of a NUMA node.")
        }
    }

    /// What is sent to the daemon: only what was chosen.
    var request: EnableRequest {
        let options = PairOptionsRequest(
            epochMaximumMilliseconds: epochMaximum, pool: pool,
            numaNodes: numaNodes.isEmpty ? nil : numaNodes, undoLogBytes: undoLog?.bytes,
            secondaryHost: secondary, diskLogBytes: diskLog?.bytes,
            poolDurableDisks: poolDurable.isEmpty ? nil : poolDurable)
        return EnableRequest(
            domain: domain.text, host: host, options: options.isEmpty ? nil : options)
    }

    func run() async throws {
        let environment = CommandEnvironment.current
        try await connection.withService { service in
            let accepted = try await service.enable(request)
            guard !waiting.noWait else {
                try output.print(accepted) {
                    "\(domain): \(PairWait.progressText(accepted)); "
                        + "follow it with 'ftvm status \(domain)'"
                }
                return
            }
            let (pair, elapsed) = try await PairWaiter(service: service, environment: environment)
                .wait(
                    for: domain, PairWait(name: domain, goal: .protected), limit: waiting.limit)
            try output.print(pair ?? accepted) {
                Enable.text(pair ?? accepted, elapsed: elapsed)
            }
        }
    }

    private static func text(_ pair: PairView, elapsed: Duration) -> String {
        guard pair.state == .protected else {
            return "\(pair.name) is enabled and will be protected when it runs: "
                + PairWait.progressText(pair)
        }
        let secondary = pair.secondary?.text ?? "none"
        return "\(pair.name) is protected: primary \(pair.primary), secondary \(secondary), "
            + "generation \(pair.generation) (\(HumanText.duration(elapsed)))"
    }
}
