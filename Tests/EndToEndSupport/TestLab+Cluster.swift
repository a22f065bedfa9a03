import Foundation
import Lab
import Model
import Testing

/// A host's configuration, its power switch, and etcd.
extension TestLab {
    /// Gives every host this in addition to its configuration, and has all of them begin anew with it. Without pairs.
    package func configure(_ text: (HostName) -> String) async throws {
        for host in hosts {
            try text(host).write(
                toFile: layout.configurationDirectory(of: host) + "/50-test.toml",
                atomically: true, encoding: .utf8)
        }
        configured = hosts.map(text)
        for host in hosts { try await killDaemon(host) }
        try await allOnline()
    }

    /// The same, unless that is how they are configured already; then a pair that is there stays.
    package func prepare(_ text: (HostName) -> String = { _ in "" }) async throws {
        guard configured != hosts.map(text) else { return }
        try await removeDemo()
        try await configure(text)
    }

    /// Every host sees every host, on all ways.
    package func allOnline() async throws {
        struct Host: Decodable { let state: HostState }
        var last = ""
        try await eventually("all hosts are online", seconds: 30, found: last) {
            () async throws -> Void? in
            for host in hosts {
                let outcome = try await self.attempt(["hosts"], on: host, seconds: 20)
                guard outcome.status == 0 else {
                    last = "\(host): \(outcome.errorOutput)"
                    return nil
                }
                let states = try JSONDecoder().decode(
                    [Host].self, from: Data(outcome.output.utf8)
                ).map(\.state)
                last = "\(host) sees \(states)"
                guard states.count == hosts.count, states.allSatisfy({ $0 == .online }) else {
                    return nil
                }
            }
            return ()
        }
    }

    /// Starts an etcd of one member where the switch is, and waits until it answers. Its data outlive it.
    package func startEtcd() async throws {
        let data = layout.directory + "/etcd"
        let client = try clientArguments([
            "/usr/bin/etcd", "--name", "lab", "--data-dir", data, "--listen-client-urls",
            etcdURL, "--advertise-client-urls", etcdURL, "--listen-peer-urls",
            "http://127.0.0.1:2380", "--log-level", "error", "--heartbeat-interval", "50",
            "--election-timeout", "400",
        ])
        let process = Process()
        process.executableURL = URL(fileURLWithPath: client[0])
        process.arguments = Array(client.dropFirst())
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = FileHandle.nullDevice
        process.standardError = FileHandle.nullDevice
        try process.run()
        try await eventually("etcd answers", seconds: 30) { () async throws -> Void? in
            let outcome = try await self.attemptClient([
                "/usr/bin/etcdctl", "--endpoints", etcdURL, "get", "x",
            ])
            return outcome.status == 0 ? () : nil
        }
    }

    package func killEtcd() async throws {
        let data = layout.directory + "/etcd"
        for pid in Self.processes where pid.text("cmdline").contains(data) { try pid.kill() }
        try await eventually("etcd is gone") {
            Self.processes.contains { $0.text("cmdline").contains(data) } ? nil : ()
        }
    }

    package var etcdURL: String { "http://\(LabLayout.switchAddress):2379" }

    private static var processes: [ProcessView] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []
        return names.compactMap { Int32($0) }.map { ProcessView(pid: $0) }.filter {
            $0.arguments.first == "/usr/bin/etcd"
        }
    }

    private func clientArguments(_ arguments: [String]) throws -> [String] {
        [Command.ftvm, "lab", "client", "--name", layout.name, "--"] + arguments
    }

    // MARK: - Power

    /// What the lab's fence agent asks for is in here.
    package var powerDirectory: String { layout.directory + "/power" }

    /// Does what `Agents/fence_lab` asks for, as a host's power switch does, while `body` runs.
    package func withPowerSwitches<Value: Sendable>(
        _ body: () async throws -> Value
    ) async throws -> Value {
        try FileManager.default.createDirectory(
            atPath: powerDirectory, withIntermediateDirectories: true)
        let work = Task { try await self.switchOff() }
        do {
            let value = try await body()
            work.cancel()
            _ = try? await work.value
            return value
        } catch {
            work.cancel()
            _ = try? await work.value
            throw error
        }
    }

    private func switchOff() async throws {
        while !Task.isCancelled {
            for host in hosts where isThere("\(host).off-wanted") && !isThere("\(host).off") {
                // It may be dead already: then it is off as well.
                if try await status().hosts.first(where: { $0.name == host })?.pid != nil {
                    try await kill(host)
                }
                _ = FileManager.default.createFile(
                    atPath: "\(powerDirectory)/\(host).off", contents: nil)
            }
            try await Task.sleep(for: .milliseconds(5))
        }
    }

    private func isThere(_ file: String) -> Bool {
        FileManager.default.fileExists(atPath: "\(powerDirectory)/\(file)")
    }

    /// Boots a host whose power was switched off.
    package func switchOn(_ host: HostName) async throws {
        for file in ["off-wanted", "off"] {
            try? FileManager.default.removeItem(atPath: "\(powerDirectory)/\(host).\(file)")
        }
        try await start(host)
    }
}
