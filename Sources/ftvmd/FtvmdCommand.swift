import ArgumentParser
import Foundation
import HostAgent
import Model

@main
struct FtvmdCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "ftvmd",
        abstract: "Serves one libvirt host of an ftvm cluster.",
        discussion: """
            Runs in the foreground; systemd starts it (Examples/ftvmd.service). It may be killed and
            restarted at any time: guests wait at their next first touch of a page and go on when a
            restarted ftvmd has adopted them.
            """,
        version: FtvmVersion.text, subcommands: [Serve.self, KeepPool.self],
        defaultSubcommand: Serve.self)
}

struct Serve: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Serve this host (the default).")

    @Option(name: .shortAndLong, help: "The configuration file.")
    var config = "/etc/ftvm/ftvmd.toml"

    func run() async throws {
        try await reporting { try await Daemon.run(configurationPath: config) }
    }
}

struct KeepPool: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Keep a pool of anonymous memory for the hosts of this machine.",
        discussion: """
            A pool of kind 'memfd' has no file system: its memory lives as long as this process, which
            hands it to every ftvmd that opens the pool's directory. Run one for each such pool,
            outside of all hosts; ending it ends the pool, but not VMs that run on it.
            """)

    @Option(help: "The pool's directory, as in the hosts' configuration.")
    var path: String

    @Option(help: "Size of huge pages to use, in bytes; 0: base pages.")
    var hugePageBytes = 0

    func run() async throws {
        try await reporting { try Daemon.keepPool(directory: path, hugePageBytes: hugePageBytes) }
    }
}

/// Errors in three lines on standard error, and their exit status.
private func reporting(_ body: () async throws -> Void) async throws {
    do {
        try await body()
    } catch let error as FtvmError {
        var text = "ftvmd: error: \(error.message)\n"
        if let cause = error.cause { text += "  why: \(cause)\n" }
        if let advice = error.advice { text += "  next: \(advice)\n" }
        FileHandle.standardError.write(Data(text.utf8))
        throw ExitCode(error.exitStatus)
    }
}
