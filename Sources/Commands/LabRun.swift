import ArgumentParser
import Glibc
import Lab
import Model

struct LabExec: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "exec", abstract: "Run a command inside a host.",
        discussion: """
            The command sees what a program on that host sees, and ends with the host. Its exit code is \
            the command's.

            Example:
              ftvm lab exec h1 -- virsh list --all
            """)
    @Argument(help: "The host, such as h1.")
    var host: HostName
    @Argument(parsing: .postTerminator, help: "The command and its arguments, after '--'.")
    var command: [String]
    @OptionGroup var lab: LabOptions

    func validate() throws {
        guard !command.isEmpty else { throw ValidationError("Give a command after '--'.") }
    }

    func run() async throws {
        try Self.become(try lab.running().command(in: host, command))
    }

    /// Turns this process into another program: its signals, terminal and exit code are then its own.
    static func become(_ command: [String]) throws -> Never {
        var arguments: [UnsafeMutablePointer<CChar>?] = command.map { strdup($0) }
        arguments.append(nil)
        // Concurrency's threads block all signals, and a program starts with its thread's mask.
        var none = sigset_t()
        sigemptyset(&none)
        pthread_sigmask(SIG_SETMASK, &none, nil)
        execv(command[0], arguments)
        throw FtvmError(
            .unavailable, "cannot run \(command[0])", cause: String(cString: strerror(errno)))
    }
}

struct LabClient: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "client", abstract: "Run a command on the lab's switch, outside every host.",
        discussion: """
            Clients of guests run here: they live on when a host dies. The switch has the address \
            \(LabLayout.switchAddress), h1 has 10.77.0.101, and so on.

            Example:
              ftvm lab client -- ping 10.77.0.101
            """)
    @Argument(parsing: .postTerminator, help: "The command and its arguments, after '--'.")
    var command: [String]
    @OptionGroup var lab: LabOptions

    func validate() throws {
        guard !command.isEmpty else { throw ValidationError("Give a command after '--'.") }
    }

    func run() async throws {
        try LabExec.become(try lab.running().clientCommand(command))
    }
}

struct LabGuest: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "guest", abstract: "Ask the demo guest over the lab's network.",
        discussion: """
            The demo guest (Scripts/guest-image, Examples/demo.xml) checks its own memory without \
            pause: BAD must stay 0. UPTIME and COUNTER go on over a failover, and BOOT stays the same.

            Questions: status, next (a number that only grows), 'dirty N' (rewrite N pages a second), \
            poweroff.
            """)
    @Argument(help: "The question; see above.")
    var question = ["status"]
    @Option(help: ArgumentHelp("The guest's IPv4 address.", valueName: "address"))
    var address = LabLayout.guestAddress
    @Option(
        help: ArgumentHelp(
            "Keep trying for so many seconds until the guest answers.", valueName: "seconds"))
    var wait = 0
    @OptionGroup var lab: LabOptions
    @OptionGroup var output: OutputOptions

    func validate() throws {
        guard (0...86_400).contains(wait) else {
            throw ValidationError("--wait must be from 0 to 86400 seconds.")
        }
    }

    func run() async throws {
        let layout = try lab.running().layout
        let time = CommandEnvironment.current.time
        let deadline = time.now() + .seconds(wait)
        while true {
            do {
                return try ask(layout)
            } catch let error as FtvmError where error.code == .unavailable {
                guard time.now() < deadline else { throw error }
            }
            try await time.sleep(.milliseconds(100))
        }
    }

    private func ask(_ layout: LabLayout) throws {
        let client = try GuestClient(layout, address: address)
        if question == ["status"] {
            let status = try client.status()
            try output.print(status) { Self.table(status) }
        } else {
            let answer = try client.ask(question.joined(separator: " "))
            try output.print(["answer": answer]) { answer }
        }
    }

    private static func table(_ status: GuestStatus) -> String {
        var table = TextTable([
            .init("UPTIME", alignRight: true), .init("COUNTER", alignRight: true),
            .init("BAD", alignRight: true), .init("CHECKED", alignRight: true),
            .init("WRITES", alignRight: true), .init("WRITES/S", alignRight: true),
            .init("BOOT"),
        ])
        table.add([
            HumanText.decimal(status.uptimeSeconds) + " s", String(status.counter),
            String(status.checker.bad), String(status.checker.pagesChecked),
            String(status.checker.writes), String(status.dirtyPagesPerSecond), status.bootID,
        ])
        return table.text()
    }
}
