import NIOSSL

/// What went wrong while two ends were agreeing on TLS, as far as it can be told from the library's
/// words.
package enum TLSFailure: Sendable, Hashable {
    /// The other end's certificate is not signed by the authority, or names another host.
    case peerIsNotTrusted
    /// The other end does not take our certificate, or misses it.
    case weAreNotTrusted
    case other

    /// nil when it has nothing to do with TLS.
    package init?(_ error: any Error) {
        guard error is NIOSSLError || error is BoringSSLError || error is NIOSSLExtraError else {
            return nil
        }
        self.init(words: "\(error)")
    }

    package init(words: String) {
        let ours = [
            "CERTIFICATE_VERIFY_FAILED", "unableToValidate", "failedToValidateHostname",
            "noCertificateToValidate",
        ]
        if ours.contains(where: words.contains) {
            self = .peerIsNotTrusted
        } else if words.contains("CERTIFICATE") || words.contains("UNKNOWN_CA") {
            // An alert of the other end: BAD_CERTIFICATE, CERTIFICATE_REQUIRED,
            // CERTIFICATE_EXPIRED, ...
            self = .weAreNotTrusted
        } else {
            self = .other
        }
    }
}
