import ArgumentParser
import Lab
import Model

/// What the verbs on one host have in common.
struct LabHostOptions: ParsableArguments {
    @Argument(
        help: "The host, such as h1.",
        completion: .shellCommand(
            "ftvm lab status -o json 2>/dev/null | grep -o '\"h[0-9]*\"' | tr -d '\"'"))
    var host: HostName

    @OptionGroup var lab: LabOptions
    @OptionGroup var output: OutputOptions

    /// Does something to the host and shows the lab after it.
    func perform(
        _ done: String, _ change: (Lab, HostName) async throws -> Void
    ) async throws {
        let progress = LabProgress()
        let lab = try lab.running()
        try await change(lab, host)
        progress.report("\(host) \(done)")
        let status = try await lab.status()
        try output.print(status) { LabText.table(status) }
    }
}

struct LabKill: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "kill", abstract: "Let a host die: everything in it ends at once.")
    @OptionGroup var options: LabHostOptions
    func run() async throws { try await options.perform("is dead") { try await $0.kill($1) } }
}

struct LabStart: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "start", abstract: "Boot a host that was killed.")
    @OptionGroup var options: LabHostOptions

    @Option(
        help: ArgumentHelp(
            "Give the host another QEMU, unpacked below this directory.", valueName: "directory"))
    var qemu: String?

    func run() async throws {
        try await options.perform("is up") { try await $0.start($1, qemuRoot: qemu) }
    }
}

struct LabFreeze: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "freeze", abstract: "Stop every process of a host, as if it hung.")
    @OptionGroup var options: LabHostOptions
    func run() async throws { try await options.perform("is frozen") { try await $0.freeze($1) } }
}

struct LabThaw: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "thaw", abstract: "Let a frozen host go on.")
    @OptionGroup var options: LabHostOptions
    func run() async throws { try await options.perform("goes on") { try await $0.thaw($1) } }
}

struct LabCut: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "cut", abstract: "Take a host off the network; pools and store stay.")
    @OptionGroup var options: LabHostOptions
    func run() async throws {
        try await options.perform("is off the network") { try await $0.cut($1) }
    }
}

struct LabHeal: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "heal", abstract: "Put a host on the network again.")
    @OptionGroup var options: LabHostOptions
    func run() async throws {
        try await options.perform("is on the network") { try await $0.heal($1) }
    }
}
