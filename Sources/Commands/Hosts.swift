import ArgumentParser
import ControlAPI
import Model

struct Hosts: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "List the hosts of the cluster.",
        discussion: """
            HEARTBEAT is how long ago the answering daemon heard the host on each way (a counter in the pool, \
            udp between hosts, its lease in the store) and how irregularly; '!' marks a way on which beats \
            are missing. States: online, suspect (silent on one way, nothing is done yet), dead (silent on \
            all); with its fence, if there is one. PRIMARIES and SECONDARIES are the pairs there.

            Examples:
              ftvm hosts
              ftvm hosts -o json | jq -r '.[] | select(.state == "online") | .name'
            """, subcommands: [HostsFence.self])

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
