import ControlAPI
import Foundation
import Model
import Testing

/// What the documents promise is what the program does: each of these fails when one changes alone.
@Suite struct DocumentationTests {
    private func document(_ name: String) throws -> String {
        let root = URL(filePath: #filePath).deletingLastPathComponent()
            .deletingLastPathComponent().deletingLastPathComponent()
        return try String(
            contentsOf: root.appending(path: "Documentation/\(name)"), encoding: .utf8)
    }

    @Test(arguments: FtvmError.Code.allCases)
    func everyExitCodeIsDocumented(code: FtvmError.Code) throws {
        let text = try document("ExitCodes.md")
        #expect(text.contains("\n| \(code.exitStatus) | `\(code.rawValue)` | "))
        let line = try #require(
            text.split(separator: "\n", omittingEmptySubsequences: false)
                .drop { !$0.hasPrefix("The HTTP API answers") }.joined(separator: " ")
                .split(separator: ",").first { $0.contains("`\(code.rawValue)`") })
        #expect(line.contains(" \(code.httpStatus) "))
    }

    /// One command of the argument parser's own description.
    private struct Command: Decodable {
        struct Argument: Decodable {
            struct Name: Decodable {
                var kind: String
                var name: String
            }
            var names: [Name]?
        }
        var commandName: String
        var abstract: String?
        var discussion: String?
        var subcommands: [Command]?
        var arguments: [Argument]?
    }

    private struct Dump: Decodable {
        var command: Command
    }

    /// Every command that does something, by its words.
    private func commands() async throws -> [(words: String, command: Command)] {
        let outcome = await Harness().run("--experimental-dump-help")
        #expect(outcome.status == 0)
        let dump = try ControlJSON.decode(Dump.self, from: outcome.output.utf8)
        func leaves(_ command: Command, _ words: String) -> [(String, Command)] {
            let subcommands = (command.subcommands ?? []).filter { $0.commandName != "help" }
            guard !subcommands.isEmpty else { return [(words, command)] }
            // Some do something without a further word as well.
            let own = (command.arguments ?? []).flatMap { $0.names ?? [] }.contains {
                $0.kind == "long" && $0.name != "help" && $0.name != "version"
            }
            return (own ? [(words, command)] : []) + subcommands.flatMap { leaves($0, "\(words) \($0.commandName)") }
        }
        return leaves(dump.command, "ftvm")
    }

    @Test func everyVerbAndOptionIsDocumented() async throws {
        let text = try document("CLI.md")
        let sections = text.components(separatedBy: "\n### `").dropFirst()
        let common = [
            "output", "socket", "url", "cert", "key", "ca", "help", "version", "no-wait", "timeout",
            "name",
        ]
        let commands = try await commands()
        #expect(commands.count >= 12)
        for (words, command) in commands {
            let section = sections.first { $0.hasPrefix("\(words)`") || $0.hasPrefix("\(words) ") }
            guard let section else {
                Issue.record("CLI.md has no section on '\(words)'")
                continue
            }
            for name in (command.arguments ?? []).flatMap({ $0.names ?? [] })
            where name.kind == "long" && !common.contains(name.name) {
                #expect(section.contains("`--\(name.name)"), "\(words) --\(name.name)")
            }
        }
        let words = Set(commands.map(\.words))
        for section in sections {
            let heading = section.prefix { $0 != "`" }.split(separator: " ")
            let verb = heading.prefix { $0.allSatisfy { $0.isLowercase } }.joined(separator: " ")
            #expect(words.contains(verb), "CLI.md describes '\(verb)', which does not exist")
        }
    }

    @Test func everyVerbsHelpTeaches() async throws {
        for (words, command) in try await commands() {
            #expect(command.abstract?.isEmpty == false, "\(words) has no abstract")
            guard !words.hasPrefix("ftvm lab") else { continue }
            #expect(command.discussion?.contains("  ftvm ") == true, "\(words) has no example")
        }
    }
}
