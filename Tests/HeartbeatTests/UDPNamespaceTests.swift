import Foundation
import Glibc
import Testing

/// Two network namespaces with a cable between them.
private final class Cable {
    let names: [String]

    init() throws {
        let id = String(UUID().uuidString.prefix(8)).lowercased()
        names = ["ftvm-test-\(id)-a", "ftvm-test-\(id)-b"]
        for name in names { try Self.run("ip", "netns", "add", name) }
        // Interface names have at most 15 bytes.
        try Self.run(
            "ip", "-n", names[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0",
            "netns", names[1])
        for (index, name) in names.enumerated() {
            try Self.run(
                "ip", "-n", name, "address", "add", "10.99.0.\(index + 1)/24", "dev", "eth0")
            try Self.run("ip", "-n", name, "link", "set", "eth0", "up")
            try Self.run("ip", "-n", name, "link", "set", "lo", "up")
        }
    }

    deinit { for name in names { try? Self.run("ip", "netns", "delete", name) } }

    static func run(_ words: String...) throws {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = words
        try process.run()
        process.waitUntilExit()
        try #require(process.terminationStatus == 0, "\(words)")
    }
}

/// The test helper in a namespace, and what it said last.
private final class Beater {
    private let process = Process()
    private let output = Pipe()
    private let input = Pipe()
    private var rest = ""

    init(_ namespace: String, _ words: String...) throws {
        let helper = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
            .deletingLastPathComponent().appendingPathComponent("cluster-test-helper").path
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = ["ip", "netns", "exec", namespace, helper, "udp-beat"] + words
        process.standardOutput = output
        process.standardInput = input
        try process.run()
    }

    deinit {
        kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
    }

    /// What it says now: the number it heard last, and its own that was heard last. Everything that
    /// it said before the question is read over.
    func now() -> (heard: Int, heardUs: Int) {
        let descriptor = output.fileHandleForReading.fileDescriptor
        _ = fcntl(descriptor, F_SETFL, O_NONBLOCK)
        var last: (heard: Int, heardUs: Int)?
        var fresh = false
        for _ in 0..<2_000 {
            var buffer = [UInt8](repeating: 0, count: 65_536)
            let count = read(descriptor, &buffer, buffer.count)
            if count <= 0 {
                // What comes after this was said after the question.
                fresh = true
                usleep(5_000)
                continue
            }
            rest += String(decoding: buffer[..<count], as: UTF8.self)
            var lines = rest.split(separator: "\n", omittingEmptySubsequences: false)
            rest = String(lines.removeLast())
            if let numbers = lines.last?.split(separator: " ").compactMap({ Int($0) }),
                numbers.count == 2
            {
                last = (numbers[0], numbers[1])
            }
            if fresh, let last { return last }
        }
        return last ?? (-1, -1)
    }
}

@Suite struct UDPNamespaceTests {
    /// Over a cable between two hosts: heard, cut in one direction, cut in both, healed.
    @Test func aCutIsSeenAndWhichWay() async throws {
        let cable = try Cable()
        let a = try Beater(
            cable.names[0], "h1", "1", "10.99.0.1:7750", "h2", "10.99.0.2:7750")
        let b = try Beater(
            cable.names[1], "h2", "1", "10.99.0.2:7750", "h1", "10.99.0.1:7750")

        /// Whether each of the four numbers grows: a hears b, a is heard, b hears a, b is heard.
        func growing() async throws -> [Bool] {
            let before = (a.now(), b.now())
            try await Task.sleep(for: .milliseconds(150))
            let after = (a.now(), b.now())
            return [
                after.0.heard > before.0.heard, after.0.heardUs > before.0.heardUs,
                after.1.heard > before.1.heard, after.1.heardUs > before.1.heardUs,
            ]
        }
        func becomes(_ expected: [Bool], line: SourceLocation = #_sourceLocation) async throws {
            var last: [Bool] = []
            for _ in 0..<40 {
                last = try await growing()
                if last == expected { return }
            }
            #expect(last == expected, sourceLocation: line)
        }
        try await becomes([true, true, true, true])
        // What h1 sends is lost, what h2 sends arrives.
        try Cable.run("ip", "-n", cable.names[0], "route", "add", "blackhole", "10.99.0.2/32")
        try await becomes([true, false, false, false])
        try Cable.run("ip", "-n", cable.names[0], "route", "delete", "blackhole", "10.99.0.2/32")
        try await becomes([true, true, true, true])
        try Cable.run("ip", "-n", cable.names[1], "link", "set", "eth0", "down")
        try await becomes([false, false, false, false])
        try Cable.run("ip", "-n", cable.names[1], "link", "set", "eth0", "up")
        try await becomes([true, true, true, true])
    }
}
