import AsyncHTTPClient
import FoundationEssentials
import Model
import NIOSSL
import TransportSecurity

/// A host's `ftvmd` on the network: `ftvm --host https://h1:7751 --cert FILE --key FILE --ca FILE`.
public struct RemoteHost: Sendable {
    /// Scheme, host and port.
    public let url: String
    private let tls: TLSConfiguration

    /// - Parameters:
    ///   - url: `https://h1:7751`; other schemes are refused.
    ///   - certificatePath: this user's certificate, signed by the authority that `ftvmd` trusts.
    ///   - authorityPath: the authority that signed `ftvmd`'s certificate.
    /// - Throws: `invalidArgument` for a URL of another form; the failures of the files.
    public init(
        url: String, certificatePath: String, keyPath: String, authorityPath: String
    ) throws(FtvmError) {
        guard let parsed = URL(string: url), parsed.scheme == "https", let host = parsed.host(),
            !host.isEmpty, parsed.path.isEmpty || parsed.path == "/", parsed.query == nil
        else {
            throw FtvmError(
                .invalidArgument, "\(url) is not the address of an ftvmd",
                advice: "write it as https://HOST:7751")
        }
        self.url = url.hasSuffix("/") ? String(url.dropLast()) : url
        tls = try TLSFiles(
            authorityPath: authorityPath, certificatePath: certificatePath, keyPath: keyPath
        ).clientConfiguration()
    }

    /// What an HTTP client for this host needs.
    var httpConfiguration: HTTPClient.Configuration {
        var configuration = HTTPClient.Configuration()
        configuration.tlsConfiguration = tls
        configuration.timeout.connect = .seconds(5)
        return configuration
    }

    /// Why there is no answer from it.
    func failure(_ error: any Error) -> FtvmError {
        switch TLSFailure(error) {
        case .peerIsNotTrusted:
            FtvmError(
                .permissionDenied, "\(url) is not known to be an ftvmd of yours", cause: "\(error)",
                advice:
                    "its certificate must be signed by the authority given with --ca and name the "
                    + "host in the address")
        case .weAreNotTrusted:
            FtvmError(
                .permissionDenied, "ftvmd at \(url) does not accept your certificate",
                cause: "\(error)",
                advice:
                    "it must be signed by the `client_ca` of that host's configuration, and valid")
        case .other:
            FtvmError(
                .unavailable, "no secure connection to \(url)", cause: "\(error)",
                advice: "check that ftvmd listens there (`listen` in [api]), and the port")
        case nil:
            FtvmError(
                .unavailable, "the connection to ftvmd at \(url) failed", cause: "\(error)",
                advice: "check that its host runs and `listen` is set in its configuration")
        }
    }
}
