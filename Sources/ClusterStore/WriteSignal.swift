import Foundation
import Glibc

/// Wakes a thread when somebody has written to a SQLite database's `-wal` file, or when told to.
///
/// inotify sees writes of every process of the same kernel, through any mount; where it is not to
/// be had (too many instances, an odd file system) only the telling works, and `seesWrites` is
/// false.
final class WriteSignal: Sendable {
    enum Wake: Sendable {
        /// The time has passed.
        case timeout
        /// `nudge` was called.
        case nudged
        /// The `-wal` file was written to. The write may not be committed yet.
        case written
    }

    private let inotify: CInt
    private let waiting: CInt
    private let nudging: CInt
    private let fileName: String
    var seesWrites: Bool { inotify >= 0 }

    /// - Parameter path: the database's main file.
    /// - Throws: a POSIX error when not even a socket is to be had.
    init(path: String) throws {
        var sockets: [CInt] = [-1, -1]
        let kind = CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
        guard socketpair(AF_UNIX, kind, 0, &sockets) == 0 else {
            throw POSIXError(POSIXErrorCode(rawValue: errno) ?? .EMFILE)
        }
        waiting = sockets[0]
        nudging = sockets[1]
        let file = path as NSString
        fileName = file.lastPathComponent + "-wal"
        let directory = file.deletingLastPathComponent
        // The directory and not the file, which comes and goes.
        let descriptor = inotify_init1(CInt(IN_NONBLOCK | IN_CLOEXEC))
        if descriptor >= 0,
            inotify_add_watch(
                descriptor, directory.isEmpty ? "." : directory, UInt32(IN_MODIFY | IN_CREATE)) < 0
        {
            close(descriptor)
            inotify = -1
        } else {
            inotify = descriptor
        }
    }

    deinit {
        close(waiting)
        close(nudging)
        if inotify >= 0 { close(inotify) }
    }

    /// Ends a `wait`, or the next one if there is none.
    func nudge() {
        var byte: UInt8 = 1
        // A full socket is a nudge already.
        _ = write(nudging, &byte, 1)
    }

    /// Waits; without a time, for a nudge only.
    func wait(milliseconds: Int?) -> Wake {
        var descriptors = [pollfd(fd: waiting, events: Int16(POLLIN), revents: 0)]
        if let milliseconds {
            descriptors.append(pollfd(fd: inotify, events: Int16(POLLIN), revents: 0))
            let until = DispatchTime.now().uptimeNanoseconds + UInt64(milliseconds) * 1_000_000
            while true {
                let now = DispatchTime.now().uptimeNanoseconds
                // Rounded up: a wait must not end before its time and spin.
                let left = now < until ? (until - now + 999_999) / 1_000_000 : 0
                // An interrupted poll looks like one whose time has passed: one more look, no harm.
                let count = poll(
                    &descriptors, nfds_t(descriptors.count), CInt(clamping: left))
                if count <= 0 { return .timeout }
                if descriptors[0].revents != 0 {
                    drainNudges()
                    return .nudged
                }
                if wasWritten() { return .written }
            }
        }
        _ = poll(&descriptors, 1, -1)
        drainNudges()
        return .nudged
    }

    private func drainNudges() {
        var bytes = [UInt8](repeating: 0, count: 64)
        while read(waiting, &bytes, bytes.count) > 0 {}
    }

    /// Takes all events; true when one is about the `-wal` file (or some were lost).
    private func wasWritten() -> Bool {
        var result = false
        withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 8) { buffer in
            while true {
                let count = read(inotify, buffer.baseAddress, buffer.count)
                guard count > 0 else { return }
                var offset = 0
                // struct inotify_event: wd, mask, cookie, length of the name, the name with zeros.
                while offset + 16 <= count {
                    let mask = buffer.load(fromByteOffset: offset + 4, as: UInt32.self)
                    let length = Int(buffer.load(fromByteOffset: offset + 12, as: UInt32.self))
                    guard offset + 16 + length <= count else { return }
                    let bytes = buffer[(offset + 16)..<(offset + 16 + length)].prefix { $0 != 0 }
                    if String(decoding: bytes, as: UTF8.self) == fileName
                        || mask & UInt32(IN_Q_OVERFLOW) != 0
                    {
                        result = true
                    }
                    offset += 16 + length
                }
            }
        }
        return result
    }
}
