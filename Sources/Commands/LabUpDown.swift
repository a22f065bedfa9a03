import ArgumentParser
import ControlAPI
import Glibc
import Lab
import Model

struct LabUp: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "up", abstract: "Start a lab.",
        discussion: """
            Starts each host's libvirt daemon and ftvmd and waits until they answer. A lab of the same \
            shape that is up already is left as it is. If anything fails, nothing is left behind.

            Memory of a pool is taken as segments are made, not before; huge pages are taken from the \
            machine at once and given back by 'ftvm lab down'.
            """)

    @Option(help: ArgumentHelp("Number of hosts, 1 to 16.", valueName: "count"))
    var hosts = 3

    @Option(help: ArgumentHelp("Size of the tmpfs pool (default: 4GiB).", valueName: "size"))
    var poolSize: ByteCount?

    @Option(
        help: ArgumentHelp(
            "Take this many 2-MiB pages for a second pool, 'huge'.", valueName: "count"))
    var hugePages = 0

    @Option(
        help: ArgumentHelp(
            "The user that QEMU runs as; any but root also runs sandboxed.", valueName: "user"))
    var qemuUser = "libvirt-qemu"

    @Option(
        help: ArgumentHelp(
            "Give a host another QEMU, unpacked below a directory (Scripts/newer-qemu).",
            valueName: "host=directory"))
    var qemu: [HostQEMU] = []

    @Flag(
        help: ArgumentHelp(
            "Each host plays a machine of its own.",
            discussion:
                "The kernel's word about a lock is then no proof, and a dead host must be fenced."))
    var separateMachines = false

    @Flag(help: "Start the hosts without ftvmd.")
    var noDaemon = false

    @Option(help: ArgumentHelp("ftvmd's log level.", valueName: "level"))
    var logLevel = "info"

    @OptionGroup var lab: LabOptions
    @OptionGroup var output: OutputOptions

    func run() async throws {
        var specification = LabSpecification()
        specification.hostCount = hosts
        if let poolSize { specification.poolBytes = poolSize.bytes }
        specification.hugePages = hugePages
        specification.qemuUser = qemuUser
        specification.logLevel = logLevel
        specification.separateMachines = separateMachines
        for entry in qemu { specification.qemuRoots[entry.host] = entry.root }
        specification.daemonPath = noDaemon ? nil : try Self.daemonPath()
        let progress = LabProgress()
        let made = try await Lab.up(specification, layout: lab.layout, progress: progress.report)
        let status = try await made.status()
        try await Self.waitUntilHostsSeeEachOther(status)
        progress.report("\(HumanText.count(status.hosts.count, "host")) up")
        try output.print(status) { LabText.table(status) }
    }

    /// Whoever types the next command right away finds hosts that are online, not such as have not been heard yet.
    private static func waitUntilHostsSeeEachOther(_ status: LabStatus) async throws {
        let limit = ContinuousClock.now + .seconds(20)
        for host in status.hosts {
            guard let socket = host.daemonSocket else { continue }
            let client = ControlClient(discovery: SocketDiscovery(option: socket))
            var unseen: [String] = []
            repeat {
                let views = (try? await client.hosts()) ?? []
                unseen = status.hosts.map(\.name)
                    .filter { name in !views.contains { $0.name == name && $0.state == .online } }
                    .map(\.text)
                if unseen.isEmpty { break }
                try await Task.sleep(for: .milliseconds(20))
            } while ContinuousClock.now < limit
            await client.shutdown()
            guard unseen.isEmpty else {
                throw FtvmError(
                    .timedOut,
                    "the lab is up, but \(host.name) does not hear \(unseen.joined(separator: ", "))",
                    advice: "see \(host.directory)/ftvmd.log; 'ftvm lab down' ends the lab")
            }
        }
    }

    /// `ftvmd` lies beside `ftvm`.
    private static func daemonPath() throws -> String {
        guard let resolved = realpath("/proc/self/exe", nil) else {
            throw FtvmError(.internalError, "cannot find ftvm's own executable")
        }
        defer { free(resolved) }
        let own = String(cString: resolved)
        return own.split(separator: "/").dropLast().map { "/\($0)" }.joined() + "/ftvmd"
    }
}

/// `h3=/var/cache/ftvm/newer-qemu`.
struct HostQEMU: ExpressibleByArgument {
    let host: String
    let root: String

    init?(argument: String) {
        let halves = argument.split(separator: "=", maxSplits: 1)
        guard halves.count == 2 else { return nil }
        host = String(halves[0])
        root = String(halves[1])
    }
}

struct LabDown: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "down", abstract: "End a lab and remove every trace of it.",
        discussion: """
            Ends all hosts and clients and removes namespaces, mounts, control groups and files, and \
            gives huge pages back; also what is left of a lab that was never made whole. Nothing \
            there is fine.
            """)

    @OptionGroup var lab: LabOptions
    @OptionGroup var output: OutputOptions

    func run() async throws {
        try await Lab.down(lab.layout, progress: LabProgress().report)
        // There is nothing left to show: an empty object tells a program that it is done.
        try output.print([String: String]()) { "" }
    }
}

struct LabShow: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "status", abstract: "Show the lab's hosts and how to reach them.")

    @OptionGroup var lab: LabOptions
    @OptionGroup var output: OutputOptions

    func run() async throws {
        let status = try await lab.running().status()
        try output.print(status) { LabText.page(status) }
    }
}
