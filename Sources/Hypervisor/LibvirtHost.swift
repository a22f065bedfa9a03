import CLibvirt
import Dispatch
import Foundation
import Logging
import Model
import Synchronization

/// This host's libvirt: life cycle of domains, their XML, and their events. Every call runs on a
/// thread of its own pool (libvirt's calls block) and is given up after its time; the connection is
/// opened on demand, and again after it was lost.
///
/// All calls throw `FtvmError`: `.notFound` for an unknown domain, `.unavailable` when libvirt
/// cannot be reached, `.timedOut` when it hangs, and what libvirt's own error comes closest to.
package final class LibvirtHost: Sendable {
    package struct Options: Sendable {
        package var uri: String
        /// Where the libvirt daemon keeps its PID files.
        package var stateDirectory: String
        /// The connection is closed after about three times this long without an answer, in
        /// seconds.
        package var keepAliveSeconds: Int32
        /// For calls that only ask or change the definition, in milliseconds.
        package var callTimeoutMilliseconds: Int
        /// For calls that start or end a QEMU, in milliseconds.
        package var lifecycleTimeoutMilliseconds: Int
        /// Events that may wait for a slow listener.
        package var eventLimit: Int

        package init(uri: String) {
            self.uri = uri
            self.stateDirectory = "/run/libvirt/qemu"
            self.keepAliveSeconds = 2
            self.callTimeoutMilliseconds = 10_000
            self.lifecycleTimeoutMilliseconds = 60_000
            self.eventLimit = 1_024
        }
    }

    package let options: Options
    let logger: Logger
    private let hub: EventHub
    private let threads = CallThreads(name: "libvirt-call")
    /// The open connection, if there is one.
    private let connection = Mutex<LibvirtConnection?>(nil)
    /// One thread opens a connection at a time; the others wait for it.
    private let opening = NSLock()

    package init(options: Options, logger: Logger) {
        self.options = options
        self.logger = logger
        self.hub = EventHub(limit: options.eventLimit, logger: logger)
    }

    deinit {
        hub.finish()
        threads.close()
        if let old = connection.withLock({ $0.take() }) {
            DispatchQueue.global().async { old.unregister() }
        }
    }

    /// Opens the connection now rather than with the first call.
    package func connect() async throws {
        try await use("connect to libvirt") { _ in }
    }

    /// Closes the connection and ends all event streams; later calls throw `.unavailable`.
    package func close() async {
        let old = connection.withLock { $0.take() }
        hub.finish()
        threads.close()
        if let old { await Self.release(old) }
    }

    /// Events from now on; they come only while there is a connection. When a `.disconnected`
    /// comes, call `connect()` until it succeeds; after a `.connected`, look at the domains anew.
    package func events() -> AsyncStream<HostEvent> { hub.subscribe() }

    /// Events that were dropped because a listener was too slow.
    package var droppedEvents: Int { hub.dropped }

    // MARK: Calls

    /// Runs `body` with an open connection on a thread where it may block.
    /// - Parameter what: for messages: `list the domains`.
    func use<Value: Sendable>(
        _ what: String, timeoutMilliseconds: Int? = nil,
        _ body: @escaping @Sendable (LibvirtConnection) throws -> Value
    ) async throws -> Value {
        try await threads.run(
            what, timeoutMilliseconds: timeoutMilliseconds ?? options.callTimeoutMilliseconds
        ) { [self] in
            let connection = try current()
            do {
                return try body(connection)
            } catch {
                guard !connection.isAlive else { throw error }
                drop(connection, reason: "it is not alive any more")
                // Whatever libvirt calls it ("internal error" for a keep-alive that ran out).
                throw FtvmError(
                    .unavailable, "cannot \(what): the connection to libvirt was lost",
                    cause: (error as? FtvmError).map { $0.cause ?? $0.message } ?? "\(error)",
                    advice: "see whether libvirtd runs on this host")
            }
        }
    }

    /// The same with a domain.
    func use<Value: Sendable>(
        _ what: String, _ identifier: DomainIdentifier, timeoutMilliseconds: Int? = nil,
        _ body: @escaping @Sendable (LibvirtDomain) throws -> Value
    ) async throws -> Value {
        try await use(
            "\(what) domain \(identifier)", timeoutMilliseconds: timeoutMilliseconds
        ) { connection in
            try body(try connection.domain(identifier))
        }
    }

    private func current() throws -> LibvirtConnection {
        opening.lock()
        defer { opening.unlock() }
        if let known = connection.withLock({ $0 }) {
            if known.isAlive { return known }
            drop(known, reason: "it is not alive any more")
        }
        let fresh = try LibvirtConnection.open(
            uri: options.uri, keepAliveSeconds: options.keepAliveSeconds)
        let target = EventTarget(hub: hub) { [weak self, weak fresh] reason in
            guard let self, let fresh else { return }
            drop(fresh, reason: reason)
        }
        try fresh.register(target)
        connection.withLock { $0 = fresh }
        logger.info("connected to libvirt", metadata: ["uri": "\(options.uri)"])
        hub.send(.connected)
        return fresh
    }

    /// Forgets a connection that is of no use any more; does nothing when that was done already.
    private func drop(_ lost: LibvirtConnection, reason: String) {
        let isCurrent = connection.withLock { known in
            guard known === lost else { return false }
            known = nil
            return true
        }
        guard isCurrent else { return }
        logger.warning(
            "connection to libvirt lost",
            metadata: ["uri": "\(options.uri)", "reason": "\(reason)"])
        hub.send(.disconnected(reason: reason))
        // This may be libvirt's own event thread, on which a connection cannot be closed.
        Task { await Self.release(lost) }
    }

    /// Takes the callbacks back and closes the connection, away from libvirt's threads.
    private static func release(_ connection: LibvirtConnection) async {
        await withCheckedContinuation { continuation in
            DispatchQueue.global().async {
                connection.unregister()
                continuation.resume()
            }
        }
    }
}
