import Crypto
import Foundation
import Glibc
import Model

/// The secret that the hosts of a cluster share: whoever has it can speak for any of them.
package struct ClusterKey: Sendable {
    package static let bytesMinimum = 32
    private static let bytesMaximum = 4_096

    let symmetric: SymmetricKey

    /// - Throws: `invalidArgument` for less than `bytesMinimum` bytes.
    package init(bytes: some Collection<UInt8>) throws(FtvmError) {
        guard bytes.count >= Self.bytesMinimum else {
            throw FtvmError(
                .invalidArgument, "the cluster's key is too short",
                cause: "it has \(bytes.count) bytes, at least \(Self.bytesMinimum) are needed",
                advice: "make one with: openssl rand -base64 48")
        }
        symmetric = SymmetricKey(data: Array(bytes))
    }

    /// Reads the key from a file: its bytes without white space at its ends.
    /// - Throws: `notFound` or `permissionDenied` when it cannot be read or others can read it.
    package init(path: String) throws(FtvmError) {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            let failure = errno
            throw FtvmError(
                failure == ENOENT ? .notFound : .permissionDenied,
                "the cluster's key \(path) cannot be read",
                cause: String(cString: strerror(failure)),
                advice: "copy the same file to every host")
        }
        defer { close(descriptor) }
        var information = stat()
        guard fstat(descriptor, &information) == 0, information.st_mode & 0o077 == 0 else {
            throw FtvmError(
                .permissionDenied, "the cluster's key \(path) can be read by others",
                cause: "its mode is \(String(information.st_mode & 0o7777, radix: 8))",
                advice: "chmod 600 \(path)")
        }
        var bytes = [UInt8](repeating: 0, count: Self.bytesMaximum + 1)
        let count = read(descriptor, &bytes, bytes.count)
        guard (0...Self.bytesMaximum).contains(count) else {
            throw FtvmError(
                .invalidArgument, "\(path) is not the cluster's key",
                cause: count < 0
                    ? String(cString: strerror(errno)) : "it has over \(Self.bytesMaximum) bytes")
        }
        let white = Set(" \t\r\n".utf8)
        let body = bytes[..<count].drop { white.contains($0) }
        let trailing = body.reversed().prefix { white.contains($0) }.count
        try self.init(bytes: body.dropLast(trailing))
    }
}
