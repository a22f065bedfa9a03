import Foundation
import Glibc
import Model
import NIOSSL

/// The PEM files that one end of a mutually authenticated TLS connection needs.
package struct TLSFiles: Sendable, Hashable {
    /// Certificates of the authority that signs the other end's certificate.
    package var authorityPath: String
    /// This end's certificate, and then those between it and its authority.
    package var certificatePath: String
    /// The private key of this end's certificate, not encrypted.
    package var keyPath: String

    package init(authorityPath: String, certificatePath: String, keyPath: String) {
        self.authorityPath = authorityPath
        self.certificatePath = certificatePath
        self.keyPath = keyPath
    }

    /// For the end that connects: the server's certificate must be signed by the authority and name
    /// the host that was asked for; our own certificate is shown.
    /// - Throws: see `load`.
    package func clientConfiguration() throws(FtvmError) -> TLSConfiguration {
        let loaded = try load()
        var configuration = TLSConfiguration.makeClientConfiguration()
        configuration.minimumTLSVersion = .tlsv12
        configuration.certificateVerification = .fullVerification
        configuration.trustRoots = .certificates(loaded.authority)
        configuration.certificateChain = loaded.chain.map { .certificate($0) }
        configuration.privateKey = .privateKey(loaded.key)
        return configuration
    }

    /// For the end that listens: who connects must show a certificate signed by the authority.
    /// - Throws: see `load`.
    package func serverConfiguration() throws(FtvmError) -> TLSConfiguration {
        let loaded = try load()
        var configuration = TLSConfiguration.makeServerConfiguration(
            certificateChain: loaded.chain.map { .certificate($0) },
            privateKey: .privateKey(loaded.key))
        configuration.minimumTLSVersion = .tlsv12
        // A client has no host name to check; a certificate and its chain are demanded and checked.
        configuration.certificateVerification = .noHostnameVerification
        configuration.trustRoots = .certificates(loaded.authority)
        configuration.sendCANameList = true
        return configuration
    }

    private struct Loaded {
        var authority: [NIOSSLCertificate]
        var chain: [NIOSSLCertificate]
        var key: NIOSSLPrivateKey
    }

    /// Reads and checks everything, so that what is wrong is said at the start and not with the
    /// first connection.
    /// - Throws: `notFound` or `permissionDenied` for a file that cannot be read;
    ///   `permissionDenied` for a key that others may read; `invalidArgument` for contents that are
    ///   not what they should be, a key of another certificate, or a certificate whose time is over.
    private func load() throws(FtvmError) -> Loaded {
        let authority = try Self.certificates(authorityPath, "certificate authority")
        let chain = try Self.certificates(certificatePath, "certificate")
        let key = try privateKey()
        // Validity is the one thing that is about the time of day by its nature.
        let now = time(nil)
        for (certificates, path) in [(authority, authorityPath), (chain, certificatePath)] {
            for certificate in certificates where certificate.notValidAfter < now {
                throw FtvmError(
                    .invalidArgument, "the certificate in \(path) has expired",
                    cause: "it was valid until \(Self.text(certificate.notValidAfter))",
                    advice: "renew it, then restart")
            }
            for certificate in certificates where certificate.notValidBefore > now {
                throw FtvmError(
                    .invalidArgument, "the certificate in \(path) is not valid yet",
                    cause: "it is valid from \(Self.text(certificate.notValidBefore))",
                    advice: "check this host's clock")
            }
        }
        do {
            // The TLS library compares key and certificate when it makes a context.
            _ = try NIOSSLContext(
                configuration: .makeServerConfiguration(
                    certificateChain: chain.map { .certificate($0) }, privateKey: .privateKey(key)))
        } catch {
            throw FtvmError(
                .invalidArgument,
                "the key \(keyPath) is not that of the certificate in \(certificatePath)",
                cause: "\(error)", advice: "configure the two files that were made together")
        }
        return Loaded(authority: authority, chain: chain, key: key)
    }

    private static func text(_ seconds: time_t) -> String {
        Date(timeIntervalSince1970: Double(seconds)).formatted(.iso8601)
    }

    private static func certificates(
        _ path: String, _ what: String
    ) throws(FtvmError) -> [NIOSSLCertificate] {
        let bytes = try read(path, what)
        let found: [NIOSSLCertificate]
        do {
            found = try NIOSSLCertificate.fromPEMBytes(bytes)
        } catch {
            throw FtvmError(
                .invalidArgument, "\(path) is not a \(what) in PEM form", cause: "\(error)",
                advice: "it must begin with -----BEGIN CERTIFICATE-----")
        }
        guard !found.isEmpty else {
            throw FtvmError(
                .invalidArgument, "\(path) contains no \(what)",
                advice: "it must begin with -----BEGIN CERTIFICATE-----")
        }
        return found
    }

    private func privateKey() throws(FtvmError) -> NIOSSLPrivateKey {
        var information = stat()
        if stat(keyPath, &information) == 0, information.st_mode & 0o007 != 0 {
            throw FtvmError(
                .permissionDenied, "the private key \(keyPath) can be read by everybody",
                cause: "its mode is \(String(information.st_mode & 0o7777, radix: 8))",
                advice: "chmod 600 \(keyPath)")
        }
        let bytes = try Self.read(keyPath, "private key")
        do {
            return try NIOSSLPrivateKey(bytes: bytes, format: .pem)
        } catch {
            throw FtvmError(
                .invalidArgument, "\(keyPath) is not a private key in PEM form", cause: "\(error)",
                advice: "it must not be encrypted with a passphrase")
        }
    }

    /// Far more than any chain needs, in bytes.
    private static let fileLimit = 1 << 20

    private static func read(_ path: String, _ what: String) throws(FtvmError) -> [UInt8] {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            let failure = errno
            throw FtvmError(
                failure == ENOENT ? .notFound : .permissionDenied,
                "the \(what) \(path) cannot be read", cause: String(cString: strerror(failure)),
                advice: "check the path in the configuration")
        }
        defer { close(descriptor) }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        while bytes.count <= fileLimit {
            let count = Glibc.read(descriptor, &buffer, buffer.count)
            if count < 0 && errno == EINTR { continue }
            guard count >= 0 else {
                throw FtvmError(
                    .invalidArgument, "the \(what) \(path) cannot be read",
                    cause: String(cString: strerror(errno)))
            }
            if count == 0 { return bytes }
            bytes += buffer[..<count]
        }
        throw FtvmError(.invalidArgument, "the \(what) \(path) is too large for what it should be")
    }
}
