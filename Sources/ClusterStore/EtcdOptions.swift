import Foundation
import Model
import TransportSecurity

/// Where an etcd cluster is and how to talk to it.
package struct EtcdOptions: Sendable {
    /// Client URLs of the members, `https://10.0.0.1:2379` or `http://...`; the first that answers
    /// is used.
    package var endpoints: [String]
    /// Needed for `https` endpoints.
    package var tls: TLSFiles?
    /// Name and password, where etcd's authentication is switched on.
    package var user: String?
    package var password: String?
    /// Everything of this cluster is under this prefix, so that one etcd may serve several.
    package var prefix = "/ftvm/"
    /// How long one member may take to answer, in milliseconds.
    package var attemptMilliseconds = 1_500
    /// How long a call may take in all, whichever members it asks, in milliseconds.
    package var requestMilliseconds = 5_000
    /// How often watches compare what they know with the store, whether or not they were told of a
    /// change, in milliseconds.
    package var rereadMilliseconds = 5_000

    package init(endpoints: [String]) {
        self.endpoints = endpoints
    }

    /// - Throws: `invalidArgument`.
    func check() throws(FtvmError) {
        guard !endpoints.isEmpty else {
            throw FtvmError(.invalidArgument, "the etcd store has no endpoints")
        }
        for endpoint in endpoints {
            guard let url = URL(string: endpoint), let host = url.host, !host.isEmpty,
                url.scheme == "https" || url.scheme == "http", url.path.isEmpty || url.path == "/"
            else {
                throw FtvmError(
                    .invalidArgument, "\(endpoint) is not the client URL of an etcd member",
                    advice: "write it as https://ADDRESS:2379")
            }
            guard url.scheme == "http" || tls != nil else {
                throw FtvmError(
                    .invalidArgument, "\(endpoint) needs certificates, and none are configured",
                    advice: "set the authority, certificate and key of the etcd store")
            }
        }
        guard prefix.hasPrefix("/"), prefix.hasSuffix("/") else {
            throw FtvmError(
                .invalidArgument, "the etcd prefix \(prefix) does not begin and end with a slash")
        }
        precondition(attemptMilliseconds > 0 && requestMilliseconds >= attemptMilliseconds)
        precondition(rereadMilliseconds > 0)
    }
}
