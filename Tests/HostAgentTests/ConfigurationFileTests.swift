import Foundation
import HostAgent
import Model
import Testing

@Suite struct ConfigurationFileTests {
    private let smallest = """
        host = "h1"
        [[pool]]
        name = "ram0"
        path = "/dev/shm"
        """

    @Test func whatIsNotSaidHasTheDefault() throws {
        let configuration = try ConfigurationFile.parse(smallest, path: "test.toml")
        var expected = DaemonConfiguration(host: HostName("h1"))
        expected.pools = [
            PoolConfiguration(name: PoolName("ram0"), kind: .tmpfs, path: "/dev/shm")
        ]
        #expect(configuration == expected)
    }

    @Test(arguments: [
        ("hots = \"h1\"", "hots", "`host`"),
        ("heartbeat_period_miliseconds = 50", "heartbeat_period_miliseconds", "heartbeat_period"),
        ("zzzzzzzzzzzz = 1", "zzzzzzzzzzzz", "known keys"),
    ])
    func anUnknownKeyIsAnErrorWithASuggestion(line: String, key: String, hint: String) throws {
        let error = try #require(throws: FtvmError.self) {
            try ConfigurationFile.parse(line + "\n" + smallest, path: "test.toml")
        }
        #expect(error.code == .invalidArgument)
        #expect(error.message.contains("test.toml") && error.message.contains("`\(key)`"))
        #expect(error.advice?.contains(hint) == true)
    }

    @Test(arguments: [
        "", "host = 5", "host = \"\"", "host = \"h1\"",
        "host = \"h1\"\n[[pool]]\nname = \"a\"",
        "host = \"h1\"\n[[pool]]\nname = \"a\"\npath = \"/x\"\nkind = \"nfs\"",
        "host = \"h1\"\nheartbeat_period_milliseconds = 0\n[[pool]]\nname = \"a\"\npath = \"/x\"",
        "host = \"h1\"\n[[pool]]\nname=\"a\"\npath=\"/x\"\n[[pool]]\nname=\"a\"\npath=\"/y\"",
        "host = \"h1\"\n[[pool",
        "host=\"h1\"\n[[pool]]\nname=\"a\"\npath=\"/x\"\n[drill]\nkill_host_command=[\"ipmi\"]",
        "host=\"h1\"\n[[pool]]\nname=\"a\"\npath=\"/x\"\n[drill]\nkill_host_command=[\"/x\"]",
        "host=\"h1\"\n[[pool]]\nname=\"a\"\npath=\"/x\"\n[drill]\nkil_host_command=[\"/x\"]",
    ])
    func whatIsWrongIsRefusedWithItsPlace(text: String) throws {
        let error = try #require(throws: FtvmError.self) {
            try ConfigurationFile.parse(text, path: "test.toml")
        }
        #expect(error.code == .invalidArgument)
        #expect(error.message.contains("test.toml"))
    }

    @Test func howAHostIsKilledInADrill() throws {
        let text =
            smallest + """

                [drill]
                kill_host_command = ["/usr/bin/ipmitool", "-H", "{host}-ipmi", "power", "off"]
                """
        let configuration = try ConfigurationFile.parse(text, path: "test.toml")
        #expect(configuration.drillKillHostCommand.count == 5)
        #expect(!configuration.drillKillHostFromClient)
    }

    /// The example names every key, and every line of it is right once it is uncommented.
    @Test func theExampleIsRight() throws {
        let example = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .appendingPathComponent("../../Examples/ftvmd.toml")
        let text = try String(contentsOf: example, encoding: .utf8)
        _ = try ConfigurationFile.parse(text, path: "example")
        let setting = try Regex("^#\\s?([a-z_]+ = |\\[)")
        let uncommented = text.split(separator: "\n", omittingEmptySubsequences: false).map {
            line in
            line.firstMatch(of: setting) == nil ? String(line) : String(line.dropFirst())
        }
        _ = try ConfigurationFile.parse(
            uncommented.joined(separator: "\n"), path: "example, uncommented")
    }
}
