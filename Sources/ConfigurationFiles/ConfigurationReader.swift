import Glibc
import Model

/// Turns what the files say into a configuration. Defaults are those of the types.
struct ConfigurationReader {
    var root: SettingReader
    let findings: Findings
    var result: ClusterConfiguration

    /// - Returns: nil when errors were found.
    static func read(_ table: SettingTable, _ findings: Findings) -> ClusterConfiguration? {
        var reader = ConfigurationReader(table, findings)
        reader.daemon()
        reader.pools()
        reader.store()
        reader.heartbeat()
        reader.hosts()
        reader.fences()
        reader.selfFence()
        reader.api()
        reader.limits()
        reader.drill()
        reader.root.refuseOthers()
        reader.relations()
        return findings.all.contains { $0.severity == .error } ? nil : reader.result
    }

    private init(_ table: SettingTable, _ findings: Findings) {
        root = SettingReader(table, findings)
        self.findings = findings
        result = ClusterConfiguration(daemon: DaemonConfiguration(host: HostName("")))
    }

    private mutating func daemon() {
        if let host = root.text("host") {
            if Self.isHostName(host) {
                result.daemon = DaemonConfiguration(host: HostName(host))
            } else {
                let _: Bool? = root.wrong("host", "letters, digits, dots and dashes, at most 63")
            }
        } else if !root.has("host") {
            root.missing("host", advice: "set host = \"NAME\", another name on every host")
        }
        if let name = root.text("cluster") {
            if Self.isHostName(name) {
                result.cluster = name
            } else {
                let _: Bool? = root.wrong("cluster", "letters, digits, dots and dashes, at most 63")
            }
        }
        var daemon = result.daemon
        daemon.libvirtURI = root.text("libvirt_uri") ?? daemon.libvirtURI
        daemon.socketPath = root.path("socket_path") ?? daemon.socketPath
        daemon.runtimeDirectory = root.path("runtime_directory") ?? daemon.runtimeDirectory
        daemon.storePath = root.path("store_path") ?? daemon.storePath
        daemon.injectorPath = root.path("injector_path")
        let levels = ["trace", "debug", "info", "notice", "warning", "error", "critical"]
        if let level = root.text("log_level") {
            if levels.contains(level) {
                daemon.logLevel = level
            } else {
                let _: Bool? = root.wrong("log_level", "one of " + levels.joined(separator: ", "))
            }
        }
        daemon.epochMaximumMilliseconds =
            root.integer("epoch_maximum_milliseconds", in: 1...10_000)
            ?? daemon.epochMaximumMilliseconds
        daemon.hangTimeoutMilliseconds =
            root.integer("hang_timeout_milliseconds", in: 200...600_000)
            ?? daemon.hangTimeoutMilliseconds
        daemon.stateDirectory = root.path("state_directory") ?? daemon.stateDirectory
        result.daemon = daemon
    }

    private mutating func pools() {
        for var pool in root.sections("pool") {
            let name = pool.text("name")
            let path = pool.path("path")
            let kind = pool.choice("kind", PoolKind.self) ?? .tmpfs
            pool.refuseOthers()
            if !pool.has("name") { pool.missing("name") }
            if !pool.has("path") { pool.missing("path") }
            guard let name, let path else { continue }
            guard !name.isEmpty else {
                let _: Bool? = pool.wrong("name", "a name")
                continue
            }
            guard !result.daemon.pools.contains(where: { $0.name.text == name }) else {
                findings.error(pool.table.place, "the pool \(name) is there twice")
                continue
            }
            result.daemon.pools.append(
                PoolConfiguration(name: PoolName(name), kind: kind, path: path))
        }
        guard !root.sections("pool").isEmpty else {
            findings.error(
                root.table.place, "no [[pool]] is configured",
                advice: "name at least one directory on tmpfs or hugetlbfs")
            return
        }
    }

    private mutating func store() {
        var section = root.section("store")
        var store = StoreConfiguration()
        store.kind = section.choice("kind", StoreConfiguration.Kind.self) ?? .sqlite
        store.endpoints = section.texts("endpoints") ?? []
        store.prefix = section.text("prefix") ?? store.prefix
        store.tls = tls(&section, authority: "ca")
        store.user = section.text("user")
        store.passwordFile = section.path("password_file")
        store.attemptMilliseconds =
            section.integer("attempt_milliseconds", in: 100...60_000) ?? store.attemptMilliseconds
        store.requestMilliseconds =
            section.integer("request_milliseconds", in: 100...60_000) ?? store.requestMilliseconds
        section.refuseOthers()
        result.store = store
        if store.requestMilliseconds < store.attemptMilliseconds {
            findings.error(
                section.place("request_milliseconds"),
                "`request_milliseconds` is less than `attempt_milliseconds`")
        }
        if !store.prefix.hasPrefix("/") || !store.prefix.hasSuffix("/") {
            let _: Bool? = section.wrong("prefix", "a path that begins and ends with a slash")
        }
        guard store.kind == .etcd else {
            for key in ["endpoints", "ca", "user"] where section.has(key) {
                findings.error(
                    section.place(key), "`\(key)` is for etcd only", advice: "set kind = \"etcd\"")
            }
            return
        }
        if store.endpoints.isEmpty {
            section.missing("endpoints", advice: "list the client URLs of etcd's members")
        }
        for url in store.endpoints {
            guard url.hasPrefix("https://") || url.hasPrefix("http://") else {
                findings.error(
                    section.place("endpoints"),
                    "\"\(url)\" is not the client URL of an etcd member",
                    advice: "write it as https://ADDRESS:2379")
                continue
            }
            if url.hasPrefix("https://"), store.tls == nil {
                findings.error(
                    section.place("endpoints"), "\(url) needs `ca`, `certificate` and `key`")
            } else if url.hasPrefix("http://"), !Self.isLoopback(url) {
                findings.warning(
                    section.place("endpoints"), "\(url) is neither encrypted nor authenticated",
                    advice: "whoever reaches that network can take over every VM: use https")
            }
        }
        if store.endpoints.count == 2 {
            findings.warning(
                section.place("endpoints"), "two members of etcd are worse than one",
                advice: "with one of them lost there is no quorum: use three")
        }
    }

    /// Three keys that are all there or not at all.
    func tls(_ section: inout SettingReader, authority: String) -> TLSPaths? {
        let paths = [authority, "certificate", "key"].map { ($0, section.path($0)) }
        if let ca = paths[0].1, let certificate = paths[1].1, let key = paths[2].1 {
            return TLSPaths(authority: ca, certificate: certificate, key: key)
        }
        if paths.contains(where: { section.has($0.0) }) {
            for (name, _) in paths where !section.has(name) {
                section.missing(name, advice: "certificate, key and \(authority) belong together")
            }
        }
        return nil
    }

    private mutating func heartbeat() {
        var section = root.section("heartbeat")
        var heartbeat = HeartbeatConfiguration()
        heartbeat.profile =
            section.choice("profile", HeartbeatConfiguration.Profile.self) ?? .standard
        result.daemon.heartbeatPeriodMilliseconds =
            root.integer("heartbeat_period_milliseconds", in: 10...10_000)
            ?? heartbeat.profile.periodMilliseconds
        result.daemon.heartbeatMissesUntilDead =
            root.integer("heartbeat_misses_until_dead", in: 2...1_000)
            ?? heartbeat.profile.missesUntilDead
        let port = section.integer("port", in: 1...65_535) ?? 7_750
        let address = section.text("address")
        let keyFile = section.path("key_file")
        section.refuseOthers()
        result.heartbeat = heartbeat
        guard let keyFile else {
            for key in ["address", "port"] where section.has(key) {
                section.missing(
                    "key_file",
                    advice: "heartbeats over the network are signed with the cluster's key")
                return
            }
            return
        }
        if let address, !Self.isAddress(address) {
            let _: Bool? = section.wrong("address", "an IP address: no name server is asked")
        }
        // Without one it is this host's in [[hosts]], which are read next.
        result.heartbeat.udp = HeartbeatConfiguration.UDP(
            address: address ?? "", port: UInt16(port), keyFile: keyFile)
    }

    private mutating func hosts() {
        for var section in root.sections("hosts") {
            let name = section.text("name")
            let address = section.text("address")
            let uuid = section.text("libvirt_uuid")
            let machine = section.text("machine")
            section.refuseOthers()
            guard let name else {
                if !section.has("name") { section.missing("name") }
                continue
            }
            guard Self.isHostName(name) else {
                let _: Bool? = section.wrong(
                    "name", "letters, digits, dots and dashes, at most 63")
                continue
            }
            if let address, !Self.isAddress(address) {
                let _: Bool? = section.wrong("address", "an IP address: no name server is asked")
            }
            for other in result.hosts {
                if other.name.text == name {
                    findings.error(section.table.place, "the host \(name) is there twice")
                }
                if let address, other.address == address {
                    findings.error(
                        section.place("address"), "\(address) is the address of \(other.name) too")
                }
            }
            result.hosts.append(
                HostConfiguration(
                    name: HostName(name), address: address, libvirtUUID: uuid, machine: machine))
        }
    }

    private mutating func fences() {
        for var section in root.sections("fence") {
            let host = section.text("host")
            let level = section.integer("level", in: 1...9) ?? 1
            let agent = section.text("agent")
            let libvirt = section.text("libvirt_uri")
            let off = section.integer("off_milliseconds", in: 100...600_000) ?? 60_000
            let status = section.integer("status_milliseconds", in: 100...600_000) ?? 20_000
            var parameters = section.section("parameters")
            let values = parameters.anything()
            section.refuseOthers()
            guard let host else {
                if !section.has("host") { section.missing("host") }
                continue
            }
            let method: FenceConfiguration.Method
            switch (agent, libvirt) {
            case (let agent?, nil): method = .agent(agent, parameters: values)
            case (nil, let uri?): method = .libvirt(uri: uri)
            default:
                findings.error(
                    section.table.place, "either `agent` or `libvirt_uri` is needed",
                    advice: "write one [[fence]] for each")
                continue
            }
            if libvirt != nil, section.has("parameters") {
                findings.error(section.place("parameters"), "`parameters` are for agents")
            }
            for key in ["action", "option"] where values[key] != nil {
                findings.error(
                    parameters.place(key), "`\(key)` is not to be configured",
                    advice: "ftvm itself tells the agent what is to be done")
            }
            for (key, value) in values where value.utf8.contains(0x0A) {
                findings.error(parameters.place(key), "`\(key)` has a line end")
            }
            result.fences.append(
                FenceConfiguration(
                    host: HostName(host), level: level, method: method, offMilliseconds: off,
                    statusMilliseconds: status))
        }
        result.fences = result.fences.enumerated().sorted {
            ($0.element.level, $0.offset) < ($1.element.level, $1.offset)
        }.map(\.element)
    }
}
