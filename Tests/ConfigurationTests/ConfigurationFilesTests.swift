import ConfigurationFiles
import Foundation
import Glibc
import Model
import Testing

private let smallest = """
    host = "h1"
    [[pool]]
    name = "ram0"
    path = "/dev/shm"

    """

private func parse(_ text: String) throws(FtvmError) -> ClusterConfiguration {
    try ConfigurationFiles.parse(text, file: "test.toml")
}

/// A directory with a configuration in it.
private final class Directory {
    let path = "/dev/shm/ftvm-test-\(UUID().uuidString)"
    var main: String { path + "/ftvmd.toml" }

    init(_ files: [String: String]) throws {
        try FileManager.default.createDirectory(
            atPath: path + "/conf.d", withIntermediateDirectories: true)
        for (name, text) in files {
            try text.write(toFile: "\(path)/\(name)", atomically: false, encoding: .utf8)
        }
    }
    deinit { try? FileManager.default.removeItem(atPath: path) }
}

@Suite struct ConfigurationFilesTests {
    @Test func whatIsNotSaidHasTheDefault() throws {
        let configuration = try parse(smallest)
        var daemon = DaemonConfiguration(host: HostName("h1"))
        daemon.pools = [PoolConfiguration(name: PoolName("ram0"), kind: .tmpfs, path: "/dev/shm")]
        #expect(configuration == ClusterConfiguration(daemon: daemon))
        #expect(configuration.api.network == nil && configuration.heartbeat.udp == nil)
    }

    /// What a lab writes for its hosts.
    @Test func theKeysOfTheFirstVersionMeanWhatTheyMeant() throws {
        let daemon = try parse(
            """
            host = "h2"
            libvirt_uri = "qemu:///system?socket=/x"
            socket_path = "/a/ftvmd.sock"
            runtime_directory = "/a/run"
            store_path = "/a/store.sqlite"
            injector_path = "/a/ftvm-inject"
            log_level = "debug"
            heartbeat_period_milliseconds = 50
            heartbeat_misses_until_dead = 7
            epoch_maximum_milliseconds = 20

            [[pool]]
            name = "pool"
            kind = "tmpfs"
            path = "/a/pool"

            [[pool]]
            name = "memfd"
            kind = "memfd"
            path = "/a/memfd"
            """
        ).daemon
        var expected = DaemonConfiguration(host: HostName("h2"))
        expected.libvirtURI = "qemu:///system?socket=/x"
        expected.socketPath = "/a/ftvmd.sock"
        expected.runtimeDirectory = "/a/run"
        expected.storePath = "/a/store.sqlite"
        expected.injectorPath = "/a/ftvm-inject"
        expected.logLevel = "debug"
        expected.heartbeatPeriodMilliseconds = 50
        expected.heartbeatMissesUntilDead = 7
        expected.epochMaximumMilliseconds = 20
        expected.pools = [
            PoolConfiguration(name: PoolName("pool"), kind: .tmpfs, path: "/a/pool"),
            PoolConfiguration(name: PoolName("memfd"), kind: .memfd, path: "/a/memfd"),
        ]
        #expect(daemon == expected)
    }

    @Test(arguments: [
        ("hots = \"h1\"\n" + smallest, "test.toml, line 1: unknown key `hots`", "`hosts`"),
        (smallest + "[heartbeat]\nprofle = \"fast\"", "line 6: unknown key `profle`", "`profile`"),
        (smallest + "kid = \"tmpfs\"", "line 5: unknown key `kid`", "`kind`"),
        (smallest + "[[fence]]\nhost = \"h1\"\nagent = \"a\"\nlevl = 2", "line 8", "`level`"),
        (
            smallest + "[limits]\nzzzzzzzzzzzz = 1", "line 6: unknown key `zzzzzzzzzzzz`",
            "known keys"
        ),
        (smallest + "[stroe]\nkind = \"etcd\"", "line 5: unknown key `stroe`", "`store`"),
    ])
    func anUnknownKeyIsAnErrorWithItsLineAndASuggestion(
        text: String, message: String, hint: String
    ) throws {
        let error = try #require(throws: FtvmError.self) { try parse(text) }
        #expect(error.code == .invalidArgument)
        #expect(error.message.contains(message), "\(error)")
        #expect(error.advice?.contains(hint) == true, "\(error)")
    }

    /// Each is wrong in one way; what is expected is part of what is said.
    @Test(arguments: [
        ("", "`host` is missing"), ("host = 5", "`host` must be a string"),
        ("host = \"a b\"", "`host` must be letters"), ("host = \"h1\"", "no [[pool]]"),
        ("host = \"h1\"\n[[pool", "not valid TOML"),
        ("host = \"h1\"\nhost = \"h2\"", "line 2: not valid TOML"),
        ("host = \"h1\"\n[[pool]]\nname = \"a\"", "`path` is missing"),
        ("host = \"h1\"\n[[pool]]\nname = \"a\"\npath = \"x\"", "begins with a slash"),
        (smallest + "kind = \"nfs\"", "one of \"tmpfs\""),
        (
            smallest + "[[pool]]\nname = \"ram0\"\npath = \"/y\"",
            "line 5: the pool ram0 is there twice"
        ),
        ("pool = 5\n" + "host = \"h1\"", "written [[pool]]"),
        ("log_level = \"loud\"\n" + smallest, "one of trace"),
        ("heartbeat_period_milliseconds = 9\n" + smallest, "from 10 to 10000"),
        ("heartbeat_period_milliseconds = 1.5\n" + smallest, "a whole number"),
        ("cluster = \"\"\n" + smallest, "`cluster` must be"),
        (smallest + "[store]\nkind = \"etcd\"", "`endpoints` is missing"),
        (smallest + "[store]\nkind = \"redis\"", "one of \"sqlite\", \"etcd\""),
        (smallest + "[store]\nkind = \"etcd\"\nendpoints = [\"10.0.0.1\"]", "not the client URL"),
        (smallest + "[store]\nkind = \"etcd\"\nendpoints = [\"https://a:1\"]", "needs `ca`"),
        (smallest + "[store]\nkind = \"etcd\"\nendpoints = [1]", "an array of strings"),
        (smallest + "[store]\nendpoints = [\"http://127.0.0.1:1\"]", "is for etcd only"),
        (smallest + "[store]\nca = \"/a\"\nkey = \"/b\"", "`certificate` is missing"),
        (smallest + "[store]\nprefix = \"x\"", "begins and ends with a slash"),
        (smallest + "[store]\nrequest_milliseconds = 200", "less than `attempt_milliseconds`"),
        (smallest + "[heartbeat]\nprofile = \"slow\"", "one of \"default\", \"fast\""),
        (smallest + "[heartbeat]\nport = 7750", "`key_file` is missing"),
        (smallest + "[heartbeat]\nkey_file = \"/k\"", "no address for heartbeats"),
        (smallest + "[heartbeat]\nkey_file = \"/k\"\naddress = \"localhost\"", "an IP address"),
        (smallest + "[[hosts]]\nname = \"h2\"", "not among the [[hosts]]"),
        (smallest + "[[hosts]]\nname = \"h1\"\n[[hosts]]\nname = \"h1\"", "line 7: the host h1"),
        (
            smallest
                + "[[hosts]]\nname=\"h1\"\naddress=\"::1\"\n[[hosts]]\nname=\"h2\"\naddress=\"::1\"",
            "line 10: ::1 is the address of h1 too"
        ),
        (smallest + "[[fence]]\nhost = \"h9\"\nagent = \"a\"", "h9 is not among"),
        (smallest + "[[fence]]\nhost = \"h1\"", "either `agent` or `libvirt_uri`"),
        (
            smallest + "[[hosts]]\nname=\"h1\"\n[[fence]]\nhost=\"h1\"\nlibvirt_uri=\"qemu://x\"",
            "needs its `libvirt_uuid`"
        ),
        (
            smallest
                + "[[hosts]]\nname=\"h1\"\n[[fence]]\nhost=\"h1\"\nagent=\"a\"\n[fence.parameters]\n"
                + "action=\"on\"", "line 11: `action` is not to be configured"
        ),
        (smallest + "[self_fence]\ndeadline_milliseconds = 900", "is too short"),
        (smallest + "[self_fence]\nwait_milliseconds = 5000", "may run guests for up to"),
        (
            smallest + "[self_fence]\nwatchdog = \"/dev/watchdog\"\nwait_milliseconds = 9000",
            "may run guests for up to 9219 ms"
        ),
        (smallest + "[api]\nlisten = \"0.0.0.0:7751\"", "without certificates"),
        (smallest + "[api]\nlisten = \"7751\"", "an address and a port"),
        (smallest + "[api]\nsocket_mode = \"0666\"", "everybody on this host"),
        (smallest + "[api]\nsocket_mode = \"rw\"", "an octal mode"),
        (smallest + "[limits]\nfailovers = 0", "from 1 to 256"),
        (smallest + "[drill]\nkill_host_command = [\"kill\", \"{host}\"]", "whole path"),
    ])
    func whatIsWrongIsRefusedWithItsPlace(text: String, expected: String) throws {
        let error = try #require(throws: FtvmError.self) { try parse(text) }
        #expect(error.code == .invalidArgument)
        #expect(error.message.contains("test.toml"), "\(error)")
        #expect(error.message.contains(expected), "\(error)")
    }

    @Test func filesOfTheDirectoryAreMergedInTheOrderOfTheirNames() throws {
        let directory = try Directory([
            "ftvmd.toml": smallest + """
                [store]
                kind = "etcd"
                endpoints = ["http://127.0.0.1:1"]
                """,
            "conf.d/20-late.toml": """
            log_level = "debug"
            [store]
            prefix = "/late/"
            [[hosts]]
            name = "h2"
            """,
            "conf.d/10-early.toml": """
            log_level = "error"
            [store]
            prefix = "/early/"
            endpoints = ["http://127.0.0.1:2"]
            [[hosts]]
            name = "h1"
            [[pool]]
            name = "more"
            path = "/dev/shm/more"
            """,
            "conf.d/30.toml.disabled": "nonsense", "conf.d/.hidden.toml": "nonsense",
        ])
        let configuration = try ConfigurationFiles.load(path: directory.main)
        #expect(configuration.daemon.logLevel == "debug")
        #expect(configuration.store.prefix == "/late/")
        #expect(configuration.store.endpoints == ["http://127.0.0.1:2"])
        #expect(configuration.hosts.map(\.name.text) == ["h1", "h2"])
        #expect(configuration.daemon.pools.map(\.name.text) == ["ram0", "more"])
        let found = ConfigurationFiles.check(path: directory.main)
        #expect(found.allSatisfy { $0.severity == .warning } && !found.isEmpty)
    }

    /// A duplicate in another file is told with that file's name; everything that is wrong at once.
    @Test func checkingTellsOfEverything() throws {
        let directory = try Directory([
            "ftvmd.toml": smallest + "[limits]\nfailovers = 0\n",
            "conf.d/a.toml": "[[pool]]\nname = \"ram0\"\npath = \"/x\"\nknid = 1\n",
            "conf.d/b.toml": "log_level = 3\n",
        ])
        let texts = ConfigurationFiles.check(path: directory.main).map(\.error.message)
        for expected in [
            "ftvmd.toml, line 6: `failovers` must be", "conf.d/a.toml, line 4: unknown key `knid`",
            "conf.d/a.toml, line 1: the pool ram0 is there twice",
            "conf.d/b.toml, line 1: `log_level` must be",
        ] {
            #expect(texts.contains { $0.contains(expected) }, "\(expected) in \(texts)")
        }
        #expect(texts.count == 4)
        #expect(
            ConfigurationFiles.check(path: "/nonexistent.toml").map(\.error.code) == [.notFound])
    }

    @Test func whatMayBeMeantOtherwiseIsAWarning() throws {
        let directory = try Directory([
            "ftvmd.toml": smallest + """
                [store]
                kind = "etcd"
                endpoints = ["http://10.0.0.1:2379", "http://127.0.0.1:2379"]
                [[hosts]]
                name = "h1"
                [[hosts]]
                name = "h2"
                [[fence]]
                host = "h2"
                agent = "fence_ipmilan"
                [fence.parameters]
                password = "x"
                """
        ])
        chmod(directory.main, 0o644)
        let texts = ConfigurationFiles.check(path: directory.main).map(\.error.message)
        for expected in [
            "http://10.0.0.1:2379 is neither encrypted", "worse than one",
            "nothing can fence h1", "everybody can read it",
        ] {
            #expect(texts.contains { $0.contains(expected) }, "\(expected) in \(texts)")
        }
        #expect(texts.count == 4, "\(texts)")
        chmod(directory.main, 0o600)
        #expect(ConfigurationFiles.check(path: directory.main).count == 3)
        #expect(
            try ConfigurationFiles.load(path: directory.main).fenceLevels(of: HostName("h2")).count
                == 1)
    }

    @Test func profilesSetWhatIsNotSet() throws {
        let fast = try parse(smallest + "[heartbeat]\nprofile = \"fast\"").daemon
        #expect(fast.heartbeatPeriodMilliseconds == 40 && fast.heartbeatMissesUntilDead == 4)
        let mixed = try parse(
            "heartbeat_period_milliseconds = 20\n" + smallest + "[heartbeat]\nprofile = \"fast\""
        ).daemon
        #expect(mixed.heartbeatPeriodMilliseconds == 20 && mixed.heartbeatMissesUntilDead == 4)
    }
}

@Suite struct ExampleTests {
    private func example() throws -> String {
        try String(
            contentsOf: URL(fileURLWithPath: #filePath).deletingLastPathComponent()
                .appendingPathComponent("../../Examples/ftvmd.toml"), encoding: .utf8)
    }

    /// All lines that are settings or tables without their mark.
    private func uncommented() throws -> String {
        let setting = try Regex("^# ([a-z_]+ = |\\[)")
        return try example().split(separator: "\n", omittingEmptySubsequences: false).map { line in
            line.firstMatch(of: setting) == nil ? String(line) : String(line.dropFirst(2))
        }.joined(separator: "\n")
    }

    @Test func theExampleIsRightAsItIs() throws {
        _ = try ConfigurationFiles.parse(try example(), file: "ftvmd.toml")
    }

    @Test func everyKeyIsDocumentedAndEveryDocumentedKeyExists() throws {
        let text = try uncommented()
        let all = try ConfigurationFiles.parse(text, file: "ftvmd.toml, uncommented")
        #expect(try ConfigurationFiles.unset(in: text, file: "ftvmd.toml") == [])
        #expect(all.hosts.count == 2 && all.fences.count == 2 && all.daemon.pools.count == 2)
        #expect(all.api.network?.port == 7_751)
        #expect(all.heartbeat.udp?.address == "10.0.0.1")
        #expect(all.store.kind == .etcd && all.store.tls != nil)
        #expect(all.fenceLevels(of: HostName("h2")).count == 2)
    }

    /// A commented line shows the default, where there is one.
    @Test func theDefaultsAreTheOnesShown() throws {
        let shown = try ConfigurationFiles.parse(try uncommented(), file: "ftvmd.toml")
        let plain = try ConfigurationFiles.parse(try example(), file: "ftvmd.toml")
        var daemon = shown.daemon
        daemon.pools = plain.daemon.pools
        daemon.injectorPath = nil
        daemon.drillKillHostCommand = []
        #expect(daemon == plain.daemon)
        #expect(shown.limits == plain.limits && shown.cluster == plain.cluster)
        #expect(shown.store.prefix == plain.store.prefix)
        #expect(shown.store.attemptMilliseconds == plain.store.attemptMilliseconds)
        #expect(shown.store.requestMilliseconds == plain.store.requestMilliseconds)
        var fence = shown.selfFence
        fence.enabled = false
        fence.watchdogPath = nil
        fence.waitMilliseconds = nil
        #expect(fence == plain.selfFence)
    }
}
