import Foundation
import Glibc
import Model

extension PrimaryLock {
    /// Whether process `pid` has a descriptor that holds the primary lock of the file at
    /// `lockPath`: tells "our own QEMU holds it" from "somebody else does", also after a restart of
    /// `ftvmd`.
    ///
    /// Reads /proc/PID/fd and the `lock:` lines of /proc/PID/fdinfo (proc(5), Linux 4.1 and later).
    /// The file is known by device and inode, since the path in another mount namespace may differ.
    /// - Throws: `notFound` when the process or the file is gone; `permissionDenied` when not root.
    package static func isHeld(by pid: pid_t, lockPath: String) throws(FtvmError) -> Bool {
        var file = stat()
        guard stat(lockPath, &file) == 0 else {
            let failure = errno
            throw FtvmError(
                failure == ENOENT ? .notFound : .unavailable,
                "the primary lock \(lockPath) cannot be looked at", cause: errnoText(failure),
                advice: "check that the pool is mounted on this host")
        }
        let directory = "/proc/\(pid)/fd"
        guard let stream = opendir(directory) else {
            let failure = errno
            throw FtvmError(
                failure == ENOENT || failure == ESRCH ? .notFound : .permissionDenied,
                "the descriptors of process \(pid) cannot be listed", cause: errnoText(failure),
                advice: "ftvmd must run as root; the process may have ended")
        }
        defer { closedir(stream) }
        while let entry = readdir(stream) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            guard Int(name) != nil else { continue }
            var open = stat()
            // A descriptor may be closed between the listing and this look: then it holds nothing.
            guard stat("\(directory)/\(name)", &open) == 0, open.st_dev == file.st_dev,
                open.st_ino == file.st_ino
            else { continue }
            let path = "/proc/\(pid)/fdinfo/\(name)"
            guard let information = try? String(contentsOfFile: path, encoding: .utf8) else {
                continue
            }
            if holdsExclusiveLock(fdinfo: information) { return true }
        }
        return false
    }

    /// Whether an fdinfo text has a line like `lock:	1: OFDLCK ADVISORY  WRITE -1 00:1d:123 0 EOF`.
    static func holdsExclusiveLock(fdinfo: String) -> Bool {
        fdinfo.split(separator: "\n").contains { line in
            guard line.hasPrefix("lock:") else { return false }
            let words = line.split(whereSeparator: { $0 == " " || $0 == "\t" })
            return words.contains("OFDLCK") && words.contains("WRITE")
        }
    }
}
