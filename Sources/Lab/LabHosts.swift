import CLinux
import Foundation
import GRDB
import Model

extension Lab {
    /// Starts a host that is dead. It keeps what a real host has on its disk (definitions of
    /// domains, logs) and has lost what was in memory.
    /// - Parameter qemuRoot: the host has another QEMU from now on, unpacked there; nil: the one it had.
    /// - Throws: `FtvmError` `notFound`, `failedPrecondition` when it is running.
    package func start(_ name: HostName, qemuRoot: String? = nil) async throws {
        if let qemuRoot { try Machine.checkQEMU(root: qemuRoot) }
        try await changing(name) { host in
            guard group(of: host).processes().isEmpty else {
                throw FtvmError(
                    .failedPrecondition, "host \(name) is running",
                    advice: "only a host that was killed can be started")
            }
            if let qemuRoot {
                try files(of: host).setQEMU(root: qemuRoot)
            }
            try await boot(host)
        }
    }

    /// The death of a host: SIGKILL to its first process, and with it to every process of the host.
    /// When this returns, none of them is left, nor is the host's network.
    /// - Throws: `FtvmError` `notFound`, `failedPrecondition` when it is dead already.
    package func kill(_ name: HostName) async throws {
        try await changing(name) { host in
            let group = group(of: host)
            guard let first = firstProcess(of: host), let handle = ProcessHandle(first.pid),
                // Looked at again: now the pid cannot have come to mean another process.
                firstProcess(of: host) == first
            else {
                throw FtvmError(
                    .failedPrecondition, "host \(name) is dead already",
                    advice: "start it again with: ftvm lab start \(name)")
            }
            try handle.end()
            // Also what has come into the host from outside, such as `ftvm lab exec`: until it
            // ends, the host's pid namespace does not either.
            try await group.remove()
            try await waitFor("host \(name) is dead", limit: .seconds(20), period: .milliseconds(2))
            {
                handle.hasEnded ? () : nil
            }
            try await switchboard.unplug(name)
        }
    }

    /// Stops every process of a host at once, as if its machine stood still.
    package func freeze(_ name: HostName) async throws {
        try await changing(name) { host in
            try requireRunning(host)
            try await withStoreUnlocked { try await group(of: host).setFrozen(true) }
        }
    }

    /// Runs `body`, which stops processes, at a moment in which none of them is writing to the store: a process that
    /// is stopped keeps its lock on the file, and no host could write any more. Hosts that are machines have a store
    /// that outlives their standstill.
    package func withStoreUnlocked(_ body: () async throws -> Void) async throws {
        guard Files.exists(layout.store) else { return try await body() }
        var configuration = Configuration()
        configuration.busyMode = .timeout(20)
        configuration.allowsUnsafeTransactions = true
        do {
            let store = try DatabaseQueue(path: layout.store, configuration: configuration)
            try await store.writeWithoutTransaction { try $0.beginTransaction(.immediate) }
            let outcome: Result<Void, any Error>
            do { outcome = .success(try await body()) } catch { outcome = .failure(error) }
            try await store.writeWithoutTransaction { try $0.rollback() }
            try store.close()
            try outcome.get()
        } catch let error as DatabaseError {
            throw FtvmError(
                .unavailable, "cannot wait for a moment without writes to \(layout.store)",
                cause: "\(error)", advice: "see whether a process of the lab stands still")
        }
    }

    /// Lets a frozen host go on.
    package func thaw(_ name: HostName) async throws {
        try await changing(name) { host in
            try requireRunning(host)
            try await group(of: host).setFrozen(false)
        }
    }

    /// Takes a host off the network: its port of the switch goes down. Pools and the store stay.
    package func cut(_ name: HostName) async throws {
        try await changing(name) { host in
            try requireRunning(host)
            try await switchboard.setPort(of: name, up: false)
        }
    }

    /// Puts a host on the network again.
    package func heal(_ name: HostName) async throws {
        try await changing(name) { host in
            try requireRunning(host)
            try await switchboard.setPort(of: name, up: true)
        }
    }

    /// The processes that a host has now, as the machine sees them.
    package func processes(of name: HostName) throws -> [LabProcess] {
        group(of: try host(name)).processes()
    }

    /// A command line that runs `arguments` inside a host: its namespaces and its cgroup.
    /// - Throws: `FtvmError` `failedPrecondition` when the host is dead.
    package func command(in name: HostName, _ arguments: [String]) throws -> [String] {
        let host = try host(name)
        guard let first = firstProcess(of: host) else {
            throw FtvmError(
                .failedPrecondition, "host \(name) is dead",
                advice: "start it again with: ftvm lab start \(name)")
        }
        let enter = [
            "nsenter", "--target=\(first.pid)", "--mount", "--uts", "--ipc", "--net", "--pid", "--",
        ]
        return Self.joining(group(of: host)) + enter + arguments
    }

    /// A command line that runs `arguments` as a client: on the switch, outside every host.
    package func clientCommand(_ arguments: [String]) throws -> [String] {
        let clients = ControlGroup(path: "\(group.path)/clients")
        try clients.make()
        return Self.joining(clients) + switchboard.command(arguments)
    }

    /// The beginning of a command line that goes into a cgroup first.
    private static func joining(_ group: ControlGroup) -> [String] {
        ["/bin/sh", "-c", "echo 0 >\"$0\" && exec \"$@\"", "\(group.path)/cgroup.procs"]
    }

    // MARK: - Inner parts

    private func changing(
        _ name: HostName, _ body: (LabHost) async throws -> Void
    ) async throws {
        try Self.requireRoot()
        let host = try host(name)
        let claim = try await Claim.take(layout)
        defer { claim.release() }
        try await body(host)
    }

    func files(of host: LabHost) -> HostFiles {
        HostFiles(layout: layout, specification: specification, host: host, hosts: hosts)
    }

    func firstProcess(of host: LabHost) -> LabProcess? {
        group(of: host).processes().first { $0.innerPid == 1 }
    }

    private func requireRunning(_ host: LabHost) throws {
        guard firstProcess(of: host) != nil else {
            throw FtvmError(
                .failedPrecondition, "host \(host.name) is dead",
                advice: "start it again with: ftvm lab start \(host.name)")
        }
    }

    /// Boots a dead host and waits until its daemons answer.
    func boot(_ host: LabHost) async throws {
        let group = group(of: host)
        try group.make()
        try await switchboard.unplug(host.name)
        try files(of: host).clearVolatile()
        try spawn(host, in: group)
        do {
            try await waitUntilReady(host)
        } catch {
            let paths = [
                layout.bootLog(of: host.name), layout.libvirtLog(of: host.name),
                layout.daemonLog(of: host.name),
            ]
            let logs = paths.compactMap { path in
                Files.tail(of: path).map { "\(path) ends with: \($0)" }
            }
            let causes = ["\(error)"] + logs
            throw FtvmError(
                .unavailable, "host \(host.name) does not start",
                cause: causes.joined(separator: "; "))
        }
    }

    private func spawn(_ host: LabHost, in group: ControlGroup) throws {
        let environment = [
            "FTVM_HOST=\(host.name)",
            "FTVM_ADDRESS=\(host.address)/\(LabLayout.prefixLength)",
            "FTVM_MAC=52:54:00:77:01:\(hexByte(host.number))",
            "FTVM_LAB=\(layout.directory)",
            "FTVM_DAEMON=\(specification.daemonPath ?? "")",
        ]
        try spawn(
            "host \(host.name)", ["/bin/bash", layout.bootScript], environment, in: group,
            log: layout.bootLog(of: host.name))
    }

    /// Starts a process in namespaces of its own.
    private func spawn(
        _ what: String, _ arguments: [String], _ environment: [String], in group: ControlGroup,
        log path: String
    ) throws {
        let cgroup = try group.openDirectory()
        defer { close(cgroup) }
        let log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o644)
        guard log >= 0 else { throw systemFailure("cannot open \(path)", errno) }
        defer { close(log) }
        let common = [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/root", "LANG=C.UTF-8",
        ]
        let result = withCStrings(arguments) { arguments in
            withCStrings(common + environment) { environment in
                ftvm_namespace_spawn(cgroup, log, arguments, environment)
            }
        }
        guard result >= 0 else { throw systemFailure("cannot start \(what)", -result) }
    }

    /// Starts the process that keeps the pool of anonymous memory: outside of every host, since the memory is gone
    /// with it, and before them.
    func startKeeper() async throws {
        guard let daemon = specification.daemonPath else { return }
        try Files.makeDirectory(layout.memfdPool)
        let group = ControlGroup(path: "\(group.path)/keeper")
        try group.make()
        try spawn(
            "the pool's keeper", [daemon, "keep-pool", "--path", layout.memfdPool], [], in: group,
            log: layout.keeperLog)
        let socket = "\(layout.memfdPool)/keeper.sock"
        try await waitFor(
            "the pool's keeper answers", limit: .seconds(specification.startLimitSeconds)
        ) { () async throws -> Void? in
            guard !group.processes().isEmpty else {
                throw FtvmError(
                    .unavailable, "the pool's keeper does not start",
                    cause: Files.tail(of: layout.keeperLog))
            }
            return Files.exists(socket) ? () : nil
        }
    }

    private func waitUntilReady(_ host: LabHost) async throws {
        // The socket is there early; an answer means that the QEMU driver works.
        let virsh = ["virsh", "--connect", layout.libvirtURI(of: host.name), "version"]
        let socket = layout.libvirtSocket(of: host.name)
        let limit = Duration.seconds(specification.startLimitSeconds)
        try await waitFor("libvirtd of \(host.name) answers", limit: limit) {
            () async throws -> Void? in
            try requireRunning(host)
            guard Files.exists(socket) else { return nil }
            return try await Tool.attempt(virsh).status == 0 ? () : nil
        }
        guard specification.daemonPath != nil else { return }
        let daemonSocket = layout.daemonSocket(of: host.name)
        try await waitFor("ftvmd of \(host.name) answers", limit: limit) {
            () async throws -> Void? in
            try requireRunning(host)
            let descriptor = ftvm_socket_connect_unix(daemonSocket)
            guard descriptor >= 0 else { return nil }
            close(descriptor)
            return ()
        }
    }
}

private func hexByte(_ number: Int) -> String {
    let text = String(number, radix: 16)
    return text.count < 2 ? "0" + text : text
}

/// Lends a NULL-terminated array of C strings.
private func withCStrings<Result>(
    _ strings: [String], _ body: (UnsafePointer<UnsafePointer<CChar>?>) -> Result
) -> Result {
    var pointers = strings.map { UnsafePointer<CChar>(strdup($0)) }
    defer { for pointer in pointers { free(UnsafeMutablePointer(mutating: pointer)) } }
    pointers.append(nil)
    return pointers.withUnsafeBufferPointer { buffer in
        guard let base = buffer.baseAddress else { preconditionFailure("the array is not empty") }
        return body(base)
    }
}
