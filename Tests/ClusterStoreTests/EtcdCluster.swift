import ClusterStore
import Foundation
import Glibc
import Synchronization
import TransportSecurity

/// Members of a real etcd on loopback, with what they keep on tmpfs; all gone when the test lets go
/// of it. Killed with the test process too: each is watched over by a shell that reads a pipe of
/// ours.
final class EtcdCluster: @unchecked Sendable {
    // @unchecked: a test uses it from one task at a time.
    private struct Member {
        var name: String
        var clientPort: UInt16
        var peerPort: UInt16
        var guardian: Process?
        var pid: pid_t = 0
    }

    private let directory: Directory
    private var members: [Member]
    private let tls: TLSFiles?
    private var scheme: String { tls == nil ? "http" : "https" }

    /// - Parameter tls: the members' certificate; who connects must have one of its authority.
    init(members count: Int = 1, tls: TLSFiles? = nil) throws {
        directory = try Directory()
        self.tls = tls
        let ports = Self.freePorts(2 * count)
        members = (0..<count).map {
            Member(name: "m\($0)", clientPort: ports[2 * $0], peerPort: ports[2 * $0 + 1])
        }
        for index in members.indices { try start(index) }
    }

    deinit { for index in members.indices { kill(index) } }

    var endpoints: [String] { members.map { "\(scheme)://127.0.0.1:\($0.clientPort)" } }

    func options(tls: TLSFiles? = nil, prefix: String = "/ftvm/") -> EtcdOptions {
        var options = EtcdOptions(endpoints: endpoints)
        options.tls = tls
        options.prefix = prefix
        // For a machine that is busy with other tests: what is lost shows by other means than time.
        options.attemptMilliseconds = 5_000
        options.requestMilliseconds = 15_000
        options.rereadMilliseconds = 500
        return options
    }

    /// Starts (again) a member; it keeps what it had.
    func start(_ index: Int) throws {
        let member = members[index]
        var arguments = [
            "--name", member.name, "--data-dir", "\(directory.path)/\(member.name)",
            "--listen-client-urls", endpoints[index], "--advertise-client-urls", endpoints[index],
            "--listen-peer-urls", "http://127.0.0.1:\(member.peerPort)",
            "--initial-advertise-peer-urls", "http://127.0.0.1:\(member.peerPort)",
            "--initial-cluster",
            members.map { "\($0.name)=http://127.0.0.1:\($0.peerPort)" }.joined(separator: ","),
            "--heartbeat-interval", "50", "--election-timeout", "400", "--log-level", "error",
        ]
        if let tls {
            arguments += [
                "--cert-file", tls.certificatePath, "--key-file", tls.keyPath,
                "--client-cert-auth", "--trusted-ca-file", tls.authorityPath,
            ]
        }
        let process = Process()
        let output = Pipe()
        process.executableURL = URL(fileURLWithPath: "/bin/bash")
        process.arguments =
            [
                "-c",
                "exec 2>/dev/null; /usr/bin/etcd \"$@\" </dev/null >\"$0\" 2>&1 & "
                    + "echo $!; read -r; kill -KILL $!; wait",
                "\(directory.path)/\(member.name).log",
            ] + arguments
        process.standardInput = Pipe()
        process.standardOutput = output
        try process.run()
        let said = String(decoding: output.fileHandleForReading.availableData, as: UTF8.self)
        members[index].pid = Int32(said.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0
        members[index].guardian = process
    }

    /// SIGKILL, and wait until it is gone.
    func kill(_ index: Int) {
        guard let guardian = members[index].guardian else { return }
        if members[index].pid > 0 { Glibc.kill(members[index].pid, SIGCONT) }
        try? (guardian.standardInput as? Pipe)?.fileHandleForWriting.close()
        guardian.waitUntilExit()
        members[index].guardian = nil
    }

    /// Stops it without a word, as a frozen host would.
    func freeze(_ index: Int) { Glibc.kill(members[index].pid, SIGSTOP) }
    func thaw(_ index: Int) { Glibc.kill(members[index].pid, SIGCONT) }

    /// The member that leads; waits for an election.
    func leader() async -> Int? {
        for _ in 0..<200 {
            for index in members.indices {
                guard let status = await ctl(["endpoint", "status", "-w", "fields"], at: index)
                else { continue }
                let fields = status.split(separator: "\n").reduce(into: [String: String]()) {
                    let parts = $1.split(separator: ":", maxSplits: 1).map {
                        $0.trimmingCharacters(in: CharacterSet(charactersIn: " \""))
                    }
                    if parts.count == 2 { $0[parts[0]] = parts[1] }
                }
                if let leader = fields["Leader"], leader != "0", leader == fields["MemberID"] {
                    return index
                }
            }
            try? await Task.sleep(for: .milliseconds(50))
        }
        return nil
    }

    /// etcdctl against one member; nil when it fails.
    @discardableResult
    func ctl(_ arguments: [String], at index: Int = 0) async -> String? {
        let process = Process()
        let output = Pipe()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/etcdctl")
        process.arguments =
            ["--endpoints", endpoints[index], "--command-timeout", "2s", "--dial-timeout", "1s"]
            + arguments
        process.environment = ["ETCDCTL_API": "3"]
        process.standardOutput = output
        process.standardError = FileHandle.nullDevice
        guard (try? process.run()) != nil else { return nil }
        let text = String(
            decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        return process.terminationStatus == 0 ? text : nil
    }

    /// Waits until a store can be used.
    func ready(_ options: EtcdOptions) async throws -> EtcdStore {
        let store = try EtcdStore(options: options)
        for _ in 0..<4 {
            do {
                try await store.check()
                return store
            } catch {
                continue
            }
        }
        try await store.check()
        return store
    }

    /// Ports that nobody uses just now, below those that the kernel gives to connections: nobody
    /// else takes them before etcd does.
    private static let given = Mutex<Set<UInt16>>([])
    static func freePorts(_ count: Int) -> [UInt16] {
        var sockets: [CInt] = []
        defer { for socket in sockets { close(socket) } }
        var ports: [UInt16] = []
        while ports.count < count {
            let port = UInt16.random(in: 15_000..<32_000)
            // Not one that another cluster of this process has, or is about to have.
            guard given.withLock({ $0.insert(port).inserted }) else { continue }
            let socket = Glibc.socket(AF_INET, CInt(SOCK_STREAM.rawValue), 0)
            sockets.append(socket)
            var address = sockaddr_in()
            address.sin_family = sa_family_t(AF_INET)
            address.sin_addr.s_addr = inet_addr("127.0.0.1")
            address.sin_port = port.bigEndian
            let isFree = withUnsafePointer(to: &address) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    bind(socket, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
                }
            }
            if isFree { ports.append(port) }
        }
        return ports
    }
}
