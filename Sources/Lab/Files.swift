import CLinux
import Foundation
import Model

/// Small file operations whose errors name the path.
enum Files {
    static func makeDirectory(_ path: String) throws {
        do {
            try FileManager.default.createDirectory(
                atPath: path, withIntermediateDirectories: true,
                attributes: [.posixPermissions: 0o755])
        } catch {
            throw failure("cannot make directory \(path)", error)
        }
    }

    static func write(_ text: String, to path: String, executable: Bool = false) throws {
        do {
            try Data(text.utf8).write(to: URL(fileURLWithPath: path), options: .atomic)
            try FileManager.default.setAttributes(
                [.posixPermissions: executable ? 0o755 : 0o644], ofItemAtPath: path)
        } catch {
            throw failure("cannot write \(path)", error)
        }
    }

    static func read(_ path: String) throws -> String {
        do {
            return try String(contentsOfFile: path, encoding: .utf8)
        } catch {
            throw failure("cannot read \(path)", error)
        }
    }

    /// Writes to a file of the kernel (cgroup, sysctl), which must be opened in place.
    static func writeInPlace(_ text: String, to path: String) throws {
        let descriptor = open(path, O_WRONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw systemFailure("cannot open \(path)", errno) }
        defer { close(descriptor) }
        let bytes = Array(text.utf8)
        guard Glibc.write(descriptor, bytes, bytes.count) == bytes.count else {
            throw systemFailure("cannot write '\(text)' to \(path)", errno)
        }
    }

    static func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }

    static func list(_ path: String) -> [String] {
        (try? FileManager.default.contentsOfDirectory(atPath: path))?.sorted() ?? []
    }

    /// Removes a file or a whole directory; nothing there is fine.
    static func removeTree(_ path: String) throws {
        guard exists(path) else { return }
        do {
            try FileManager.default.removeItem(atPath: path)
        } catch {
            throw failure("cannot remove \(path)", error)
        }
    }

    /// The end of a log on one line, for an error's cause; nil when there is none.
    static func tail(of path: String, lines: Int = 6) -> String? {
        guard let text = try? read(path) else { return nil }
        let tail = text.split(separator: "\n").suffix(lines).joined(separator: " | ")
        return tail.isEmpty ? nil : tail
    }

    private static func failure(_ message: String, _ error: any Error) -> FtvmError {
        let reason = (error as NSError).userInfo[NSUnderlyingErrorKey] ?? error
        return FtvmError(.internalError, message, cause: "\(reason)")
    }
}

/// The error for a failed system call; `number` is a positive errno.
func systemFailure(_ message: String, _ number: Int32) -> FtvmError {
    let code: FtvmError.Code =
        switch number {
        case EPERM, EACCES: .permissionDenied
        case ENOENT, ESRCH: .notFound
        case ENOMEM, ENOSPC: .resourceExhausted
        default: .internalError
        }
    return FtvmError(code, message, cause: String(cString: strerror(number)))
}
