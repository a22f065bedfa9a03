import ArgumentParser
import ControlAPI
import Model

struct Hosts: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "List the hosts of the cluster.",
        discussion: """
            HEARTBEAT is how long ago the answering daemon saw the host's heartbeat move. States: online, \
            suspect (heartbeats are missing, nothing is done yet), dead.

            Examples:
              ftvm hosts
              ftvm hosts -o json | jq -r '.[] | select(.state == "online") | .name'
            """)

    @Flag(help: "Print only the names, one a line.")
    var names = false

    @Flag(help: "Print only the names of the hosts' libvirt domains, one a line.")
    var domains = false

    @OptionGroup var output: OutputOptions
    @OptionGroup var connection: ConnectionOptions

    func validate() throws {
        if names, domains { throw ValidationError("Choose one of --names and --domains.") }
    }

    func run() async throws {
        try await connection.withService { service in
            let hosts = try await service.hosts()
            if names {
                try NameList.print(hosts.map(\.name.text), format: output.format)
            } else if domains {
                let all = Set(hosts.flatMap { $0.domains.map(\.name) })
                try NameList.print(all.sorted(), format: output.format)
            } else {
                try output.print(hosts) { ClusterText.table(hosts) }
            }
        }
    }
}
