import ArgumentParser
import ControlAPI
import Glibc
import Model

struct HostsFence: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "fence", abstract: "Make certain that a host can change nothing any more.",
        discussion: """
            Without --confirm-dead the host's fence devices are run, as after its death, and ftvm waits for the \
            proof. A host that still works reads in the store that it is being fenced: it ends the guests of its \
            pairs, says so, and joins again. Its guests go on elsewhere.

            With --confirm-dead you say that you have seen to it yourself: the host is off, or its cables are \
            out. Nobody checks that. If it still runs, two guests run and disks are damaged. It is refused for a \
            host that is heard.

            Examples:
              ftvm hosts fence h1
              ftvm hosts fence h1 --confirm-dead
            """)

    @Argument(help: "The host.", completion: Completions.hosts)
    var host: HostName

    @Flag(help: "You have made certain yourself that the host is off.")
    var confirmDead = false

    @OptionGroup var waiting: WaitOptions
    @OptionGroup var output: OutputOptions
    @OptionGroup var connection: ConnectionOptions

    func run() async throws {
        let environment = CommandEnvironment.current
        try await connection.withService { service in
            let accepted = try await service.fence(
                host, FenceHostRequest(confirmDead: confirmDead, requestedBy: Self.person))
            guard !waiting.noWait, accepted.fence?.method == nil else {
                try output.print(accepted) { FenceText.summary(accepted) }
                return
            }
            let proven = try await wait(
                service, environment, incarnation: accepted.incarnation, limit: waiting.limit)
            try output.print(proven) { FenceText.summary(proven) }
        }
    }

    /// Who gives its word.
    private static var person: String {
        let name = getpwuid(getuid()).map { String(cString: $0.pointee.pw_name) } ?? "\(getuid())"
        return "\(name) says so"
    }

    private func wait(
        _ service: any ControlService, _ environment: CommandEnvironment, incarnation: UInt64,
        limit: Duration
    ) async throws -> HostMembership {
        let start = environment.time.now()
        var progress = ProgressDisplay(inPlace: environment.console.noteIsTerminal)
        defer { environment.console.note(progress.finish()) }
        while true {
            let elapsed = environment.time.now() - start
            let text: String
            switch await Self.membership(of: host, service) {
            case .success(let member?):
                // Back under another incarnation: it has ended its guests.
                if member.incarnation != incarnation || member.fence?.method != nil {
                    return member
                }
                text = FenceText.summary(member)
            case .success(nil): text = "\(host) is not known any more"
            case .failure(let error):
                guard error.code == .unavailable || error.code == .timedOut else { throw error }
                text = "\(error.message), trying again"
            }
            environment.console.note(progress.show(text, elapsed: elapsed))
            guard elapsed < limit else {
                throw FtvmError(
                    .timedOut, "\(host) is not fenced after \(HumanText.duration(limit))",
                    cause: text, advice: "it goes on: see 'ftvm hosts' and 'ftvm events'")
            }
            try await environment.time.sleep(.milliseconds(200))
        }
    }
}

extension HostsFence {
    fileprivate static func membership(
        of host: HostName, _ service: any ControlService
    ) async -> Result<HostMembership?, FtvmError> {
        do {
            let views = try await service.hosts()
            return .success(views.first { $0.name == host }?.membership)
        } catch {
            return .failure(error)
        }
    }
}

/// Fences as people read them.
package enum FenceText {
    package static func summary(_ member: HostMembership) -> String {
        guard let fence = member.fence else {
            return "\(member.name) has ended its guests and is a member again"
        }
        if let method = fence.method {
            return "\(member.name) is fenced (\(method.rawValue)): \(fence.detail)"
        }
        return "waiting for a fence of \(member.name) (\(fence.status))"
    }
}
