import AsyncHTTPClient
import Foundation
import Model
import NIOCore
import NIOPosix
import NIOSSL
import TransportSecurity

/// Why one request to one member came to nothing.
struct EtcdFailure: Error, Sendable {
    enum Kind: Sendable {
        /// Nothing was sent, or the member refused to begin: it may be tried elsewhere.
        case notDone
        /// Sent, and no answer that tells whether it was done.
        case unknown
        /// The token of the authentication is no longer good; nothing was done.
        case token
        /// A final answer: trying elsewhere makes no difference.
        case refused(FtvmError.Code)
    }
    var kind: Kind
    var text: String
    var advice: String?

    init(_ kind: Kind, _ text: String, advice: String? = nil) {
        self.kind = kind
        self.text = text
        self.advice = advice
    }

    /// What the gateway answered (gRPC's codes: google.golang.org/grpc/codes).
    init(_ error: EtcdGatewayError, status: Int) {
        let text = error.text
        switch error.status {
        case 3 where text.contains("user name is empty"):
            self.init(
                .refused(.permissionDenied), text,
                advice: "etcd demands a user: set user and password of the etcd store")
        case 3 where text.contains("authentication failed"):
            self.init(
                .refused(.permissionDenied), text,
                advice: "check user and password of the etcd store")
        case 3: self.init(.refused(.invalidArgument), text)
        case 5: self.init(.refused(.notFound), text)
        case 7:
            self.init(
                .refused(.permissionDenied), text,
                advice: "give etcd's user a role with read and write on the store's prefix")
        case 8 where text.contains("too many requests"): self.init(.notDone, text)
        case 8:
            self.init(
                .refused(.resourceExhausted), text,
                advice: "compact and defragment etcd (etcdctl compact, defrag, alarm disarm) and "
                    + "run it with --auto-compaction-retention")
        case 12: self.init(.refused(.unsupported), text, advice: "etcd 3.4 or later is needed")
        case 16: self.init(.token, text)
        case 2 where text.contains("proposal dropped"): self.init(.notDone, text)
        case 14 where Self.isRefusal(text): self.init(.notDone, text)
        case 1, 2, 4, 14: self.init(.unknown, text)
        default: self.init(.refused(.internalError), "\(text) (status \(error.status))")
        }
    }

    /// Said before anything is begun. Other words of "unavailable", such as "request timed out",
    /// come when a proposal is on its way.
    private static func isRefusal(_ text: String) -> Bool {
        ["no leader", "not capable", "unhealthy", "memory quota"].contains(where: text.contains)
    }

    /// A failure below HTTP.
    init(transport error: any Error) {
        switch error {
        case let known as EtcdFailure:
            self = known
        case let known as NIOConnectionError:
            let reasons = known.connectionErrors.map { "\($0.error)" }
            self.init(
                .notDone,
                reasons.first ?? known.dnsAError.map { "\($0)" } ?? "\(known)")
        case is NIOSSLError, is BoringSSLError, is NIOSSLExtraError:
            self.init(tls: "\(error)")
        case let known as HTTPClientError where known == .connectTimeout:
            self.init(.notDone, "no connection in time")
        case let known as HTTPClientError where known == .remoteConnectionClosed:
            self.init(.unknown, "the connection was closed")
        case let known as IOError
        where known.errnoCode == ECONNREFUSED || known.errnoCode == EHOSTUNREACH:
            self.init(.notDone, "\(known)")
        default:
            self.init(.unknown, "\(error)")
        }
    }

    private init(tls text: String) {
        let advice =
            switch TLSFailure(words: text) {
            case .peerIsNotTrusted:
                "etcd's certificate must be signed by the configured authority and name the "
                    + "endpoint's address"
            case .weAreNotTrusted:
                "etcd does not accept this host's certificate: it must be signed by the authority "
                    + "that etcd trusts (--trusted-ca-file), for client authentication"
            case .other: "check that the endpoint speaks TLS"
            }
        self.init(.notDone, "TLS: \(text)", advice: advice)
    }
}

/// Thrown by `withDeadline`.
struct DeadlineExceeded: Error {}

/// Runs `body`, cancelled after `limit`.
/// - Throws: what `body` throws; `DeadlineExceeded`.
func withDeadline<Value: Sendable>(
    _ limit: Duration, _ body: @escaping @Sendable () async throws -> Value
) async throws -> Value {
    try await withThrowingTaskGroup(of: Value?.self) { group in
        group.addTask { try await body() }
        group.addTask {
            try await Task.sleep(for: limit)
            return nil
        }
        defer { group.cancelAll() }
        guard let first = try await group.next(), let value = first else {
            throw DeadlineExceeded()
        }
        return value
    }
}
