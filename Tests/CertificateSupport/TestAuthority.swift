import Foundation
import TransportSecurity

/// A certificate authority made with openssl for one test, in a directory of its own.
package final class TestAuthority: Sendable {
    package struct Failure: Error, CustomStringConvertible {
        package let description: String
    }

    package let directory: String
    package let path: String
    private let keyPath: String

    package init() throws {
        directory = "/dev/shm/ftvm-test-\(UUID().uuidString)"
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: false)
        path = directory + "/ca.pem"
        keyPath = directory + "/ca.key"
        try Self.openssl(
            ["req", "-x509", "-days", "2", "-subj", "/CN=test authority", "-out", path]
                + Self.newKey(keyPath))
    }

    deinit { try? FileManager.default.removeItem(atPath: directory) }

    private static func newKey(_ path: String) -> [String] {
        ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path]
    }

    /// A certificate for 127.0.0.1, ::1 and localhost, for servers and clients.
    /// - Parameters:
    ///   - days: validity from now; negative: it has expired.
    ///   - trusts: the authority that its holder trusts; nil: this one.
    package func issue(
        _ name: String, days: Int = 2, addresses: String = "IP:127.0.0.1,IP:::1,DNS:localhost",
        trusts: TestAuthority? = nil
    ) throws -> TLSFiles {
        let base = "\(directory)/\(name)"
        try Self.openssl(
            ["req", "-subj", "/CN=\(name)", "-out", base + ".csr"] + Self.newKey(base + ".key"))
        try FileManager.default.setAttributes(
            [.posixPermissions: 0o600], ofItemAtPath: base + ".key")
        let extensions = """
            subjectAltName=\(addresses)
            extendedKeyUsage=serverAuth,clientAuth
            """
        try Data(extensions.utf8).write(to: URL(fileURLWithPath: base + ".ext"))
        try Self.openssl([
            "x509", "-req", "-in", base + ".csr", "-CA", path, "-CAkey", keyPath, "-CAcreateserial",
            "-days", "\(days)", "-out", base + ".pem", "-extfile", base + ".ext",
        ])
        return TLSFiles(
            authorityPath: (trusts ?? self).path, certificatePath: base + ".pem",
            keyPath: base + ".key")
    }

    private static func openssl(_ arguments: [String]) throws {
        let process = Process()
        let errors = Pipe()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/openssl")
        process.arguments = arguments
        process.standardOutput = FileHandle.nullDevice
        process.standardError = errors
        process.standardInput = FileHandle.nullDevice
        try process.run()
        let text = String(
            decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        guard process.terminationStatus == 0 else {
            throw Failure(description: "openssl \(arguments.joined(separator: " ")): \(text)")
        }
    }
}
