import ArgumentParser
import Lab
import Model

/// `ftvm lab`: several hosts on one machine, to try ftvm and to rehearse failures.
struct LabCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "lab",
        abstract: "Play several hosts on this machine: try ftvm, rehearse failures.",
        discussion: """
            A lab's hosts are real but for the hardware: each has its own libvirt daemon and ftvmd in its \
            own network, mount and pid namespaces; all are on one switch and share a pool. Everything \
            is under /run/ftvm-lab, and 'ftvm lab down' removes every trace. Needs root.

            Examples:
              ftvm lab up                     hosts h1, h2 and h3
              ftvm lab kill h1                the sudden death of a host
              ftvm lab start h1               the same host after a reboot
              ftvm lab cut h2                 pull its network cable
              ftvm lab exec h1 -- virsh list  run a command inside a host
              ftvm lab client -- bash         run a command beside the hosts, on their switch
              ftvm lab guest status           ask the demo guest how it is
            """,
        subcommands: [
            LabUp.self, LabDown.self, LabShow.self, LabKill.self, LabStart.self, LabFreeze.self,
            LabThaw.self, LabCut.self, LabHeal.self, LabExec.self, LabClient.self, LabGuest.self,
        ])
}

/// Which lab; there is rarely more than one.
struct LabOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            """
            The lab's name: it is in /run/NAME. Several labs can be up at a time. (default: \
            $FTVM_LAB, else \(LabLayout.defaultName))
            """, valueName: "name"))
    var name: String?

    var layout: LabLayout {
        get throws { try LabLayout(name: name ?? LabLayout.nameInEnvironment) }
    }

    func running() throws -> Lab { try Lab.running(try layout) }
}

/// Tells what a long command does, with the time since its start.
struct LabProgress {
    private let environment = CommandEnvironment.current
    private let start: Duration

    init() { start = environment.time.now() }

    var report: Lab.Progress {
        { [environment, start] text in
            let elapsed = (environment.time.now() - start).inSeconds
            let seconds = HumanText.decimal(elapsed, places: 2)
            let blanks = String(repeating: " ", count: max(0, 6 - seconds.count))
            environment.console.remark("[\(blanks)\(seconds) s] \(text)")
        }
    }
}

/// How labs look in tables.
enum LabText {
    static func table(_ status: LabStatus) -> String {
        var table = TextTable([
            .init("HOST"), .init("STATE"), .init("NETWORK"), .init("ADDRESS"),
            .init("PROCESSES", alignRight: true), .init("DIRECTORY"),
        ])
        for host in status.hosts {
            table.add([
                host.name.text, host.state.rawValue, link(host), host.address,
                String(host.processes.count), host.directory,
            ])
        }
        return table.text()
    }

    /// The table and how to reach everything.
    static func page(_ status: LabStatus) -> String {
        var text = table(status) + "\n\n"
        var block = DetailBlock("Reach it")
        for host in status.hosts {
            block.add("libvirt of \(host.name)", "virsh -c '\(host.libvirtURI)'")
        }
        for host in status.hosts {
            block.add(
                "ftvmd of \(host.name)", host.daemonSocket.map { "ftvm --socket \($0)" })
        }
        block.add("pool", status.pool)
        block.add("pool of huge pages", status.hugePool)
        block.add("store", status.store)
        block.add("a client's shell", "ftvm lab client -- bash")
        text += block.text
        return text
    }

    private static func link(_ host: LabStatus.Host) -> String {
        host.link ? "up" : host.state == .dead ? "-" : "cut"
    }
}
