import ArgumentParser
import Model

struct Completion: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Print the completion script for a shell.",
        discussion: """
            The script completes verbs and options, and asks the daemon for the names of pairs, \
            domains, hosts and pools.

            Examples:
              ftvm completion bash > /etc/bash_completion.d/ftvm
              ftvm completion zsh > "${fpath[1]}/_ftvm"
              ftvm completion fish > ~/.config/fish/completions/ftvm.fish
            """)

    enum Shell: String, ExpressibleByArgument, CaseIterable {
        case bash, zsh, fish

        var generator: CompletionShell {
            switch self {
            case .bash: .bash
            case .zsh: .zsh
            case .fish: .fish
            }
        }
    }

    @Argument(help: "The shell: bash, zsh or fish.")
    var shell: Shell

    func run() throws {
        try CommandEnvironment.current.console.print(
            FtvmCommand.completionScript(for: shell.generator))
    }
}
