import ArgumentParser
import ControlAPI
import Model

/// `ftvm`: the root of the command line; each verb has a file of its own.
struct FtvmCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "ftvm",
        abstract: "Fault tolerance for ordinary libvirt/QEMU virtual machines.",
        discussion: """
            A protected VM is a pair: the primary, which runs, and the secondary, a waiting QEMU on \
            another host. Both map the VM's segment, its RAM in a pool that outlives either host. When \
            the primary's host dies, the secondary goes on from the last commit, at most one epoch \
            (50 ms) back.

            Try it on this machine:
              ftvm lab up                start three hosts
              ftvm enable demo           protect the running domain demo
              ftvm status demo           see it
              ftvm lab kill h1           kill a host
              ftvm events                see what happened

            Exit codes: 0 done, 2 wrong usage, 3 not found, 4 already so, 5 cannot be protected, 6 not \
            in the present state, 7 full, 8 no answer, 9 timed out, 10 not allowed, 11 somebody else \
            was first, 12 damaged data, 20 a drill that failed, 21 a check that failed, 1 a defect of ftvm. An error says what happened, why, and what \
            to do next.
            """,
        version: FtvmVersion.text,
        groupedSubcommands: [
            CommandGroup(
                name: "Protection",
                subcommands: [Enable.self, Disable.self, SwitchoverVerb.self, Promote.self]),
            CommandGroup(
                name: "Maintenance", subcommands: [HostCommand.self, Drill.self]),
            CommandGroup(
                name: "Observation",
                subcommands: [
                    Status.self, List.self, Hosts.self, Events.self, Check.self,
                    PoolCommand.self, Doctor.self, Version.self,
                ]),
            CommandGroup(
                name: "Setup",
                subcommands: [
                    ConfigCommand.self, LabCommand.self, Completion.self, LibvirtHook.self,
                ]),
        ])
}

/// What `main` calls.
package enum FtvmMain {
    /// Runs one command line.
    ///
    /// - Parameter arguments: without the program's name.
    /// - Returns: the exit status, after everything was printed.
    package static func run(_ arguments: [String]) async -> Int32 {
        let console = CommandEnvironment.current.console
        do {
            var command = try FtvmCommand.parseAsRoot(arguments)
            if var asynchronous = command as? any AsyncParsableCommand {
                try await asynchronous.run()
            } else {
                try command.run()
            }
            return 0
        } catch {
            return ErrorReport.finish(
                error, asJSON: ErrorReport.wantsJSON(arguments), console: console)
        }
    }
}

extension PairName: ExpressibleByArgument {
    public init?(argument: String) {
        guard !argument.isEmpty else { return nil }
        self.init(argument)
    }
}

extension HostName: ExpressibleByArgument {
    public init?(argument: String) {
        guard !argument.isEmpty else { return nil }
        self.init(argument)
    }
}

extension PoolName: ExpressibleByArgument {
    public init?(argument: String) {
        guard !argument.isEmpty else { return nil }
        self.init(argument)
    }
}
