import Foundation
import HTTPTypes
import Hummingbird
import HummingbirdCore
import HummingbirdTLS
import Logging
import Model
import NIOCore
import TransportSecurity

/// The control API on the network: the routes of the Unix socket, behind mutual TLS. Who has no
/// certificate of the configured authority gets no further than the handshake.
package struct NetworkAPI: Sendable {
    /// An IP address of this host, and the port; 0: one that the kernel chooses.
    package var address: String
    package var port: Int
    package var tls: TLSFiles
    /// Connections at a time; more wait in the kernel's queue.
    package var connections = 64
    /// After so long without a request, or in the middle of one, a connection is closed.
    package var idleSeconds = 30
    /// How long the answer to a request may take to begin.
    package var requestSeconds = 60
    /// The largest body of a request, in bytes.
    package var bodyBytes = 64 * 1024

    package init(address: String, port: Int, tls: TLSFiles) {
        self.address = address
        self.port = port
        self.tls = tls
    }

    /// A service for the service group, to be run beside that of the Unix socket.
    /// - Parameters:
    ///   - responder: what the router of the Unix socket builds.
    ///   - running: called with the port once it listens.
    /// - Throws: what is wrong with the certificates, at once and not with the first connection.
    package func application<Responder: HTTPResponder>(
        responder: Responder, logger: Logger,
        running: @escaping @Sendable (Int) async -> Void = { _ in }
    ) throws -> Application<LimitedResponder<Responder>>
    where
        Responder.Context: InitializableFromSource,
        Responder.Context.Source == ApplicationRequestContextSource
    {
        let configuration = try tls.serverConfiguration()
        let http = HTTP1Channel.Configuration(
            idleTimeout: .seconds(Int64(idleSeconds)),
            httpDecoderConfiguration: .init(
                maxHeaderFieldSize: 8 * 1024, maxHeaderListSize: 16 * 1024, maxHeaderFieldCount: 64)
        )
        return Application(
            responder: LimitedResponder(
                base: responder, seconds: requestSeconds, bodyBytes: bodyBytes),
            server: try .tls(.http1(configuration: http), tlsConfiguration: configuration),
            configuration: ApplicationConfiguration(
                address: .hostname(address, port: port), serverName: "ftvmd",
                availableConnectionsDelegate: MaximumAvailableConnections(connections)),
            onServerRunning: { channel in await running(channel.localAddress?.port ?? 0) },
            logger: logger)
    }
}

/// Refuses bodies that are too large by what they say of themselves (the routes count what comes),
/// and ends requests that take too long.
package struct LimitedResponder<Base: HTTPResponder>: HTTPResponder {
    package typealias Context = Base.Context
    let base: Base
    let seconds: Int
    let bodyBytes: Int

    /// A context on its way into the one child task that uses it, while its owner waits.
    private struct Carried: @unchecked Sendable {
        let context: Context
    }

    package func respond(to request: Request, context: Context) async throws -> Response {
        if let length = request.headers[.contentLength].flatMap({ Int($0) }), length > bodyBytes {
            return Response(status: .contentTooLarge)
        }
        let carried = Carried(context: context)
        return try await withThrowingTaskGroup(of: Response?.self) { group in
            group.addTask { try await base.respond(to: request, context: carried.context) }
            group.addTask {
                try await Task.sleep(for: .seconds(seconds))
                return nil
            }
            defer { group.cancelAll() }
            return try await group.next().flatMap { $0 } ?? Response(status: .gatewayTimeout)
        }
    }
}
