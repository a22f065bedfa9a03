import Foundation
import Hypervisor
import Logging
import Model

/// libvirt's own QEMU driver inside the test process, with a directory of its own and no daemon
/// (`qemu:///embed`): the real thing but for the connection. A process can have only one.
final class EmbeddedLibvirt: Sendable {
    static let shared = EmbeddedLibvirt()

    let root: String
    var uri: String { "qemu:///embed?root=\(root)" }

    private init() {
        // Short: libvirt makes sockets below it.
        root = "/tmp/ftvm-embed-\(getpid())"
        let configuration = """
            stdio_handler = "file"
            security_driver = "none"
            namespaces = []
            cgroup_controllers = []
            user = "root"
            group = "root"
            """
        try? FileManager.default.createDirectory(
            atPath: "\(root)/etc", withIntermediateDirectories: true)
        try? configuration.write(toFile: "\(root)/etc/qemu.conf", atomically: true, encoding: .utf8)
        atexit { try? FileManager.default.removeItem(atPath: EmbeddedLibvirt.shared.root) }
    }

    func host() -> LibvirtHost {
        var options = LibvirtHost.Options(uri: uri)
        options.stateDirectory = "\(root)/run/qemu"
        options.lifecycleTimeoutMilliseconds = 120_000
        options.callTimeoutMilliseconds = 60_000
        return LibvirtHost(options: options, logger: Logger(label: "test"))
    }
}

/// Reads a stream of events, with a limit on how long.
final class EventReader {
    private var iterator: AsyncStream<HostEvent>.Iterator
    private let watchdog: Task<Void, any Error>

    init(_ host: LibvirtHost, seconds: Int = 60) {
        iterator = host.events().makeAsyncIterator()
        // A stream that says nothing is ended, and the test fails then.
        watchdog = Task {
            try await Task.sleep(for: .seconds(seconds))
            await host.close()
        }
    }

    deinit { watchdog.cancel() }

    /// Kinds of events about the domain, up to and including the first that `isLast` holds for.
    func kinds(
        of name: String, until isLast: (DomainEvent.Kind) -> Bool
    ) async -> [DomainEvent.Kind] {
        var kinds: [DomainEvent.Kind] = []
        while let event = await iterator.next() {
            guard case .domain(let domain) = event, domain.name == name else { continue }
            kinds.append(domain.kind)
            if isLast(domain.kind) { break }
        }
        return kinds
    }
}
