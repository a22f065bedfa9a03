import CLinux
import Glibc
import Model

/// An error of the operating system as one of ours. `result` is the negative errno of a shim.
func systemError(_ result: Int, _ message: String, advice: String? = nil) -> FtvmError {
    let number = Int32(truncatingIfNeeded: -result)
    let code: FtvmError.Code =
        switch number {
        case ENOENT, ENOTDIR: .notFound
        case EACCES, EPERM, EROFS: .permissionDenied
        case ENOSPC, ENOMEM, EMFILE, ENFILE, EDQUOT: .resourceExhausted
        case EEXIST, ENOTEMPTY: .alreadyExists
        case ECONNREFUSED, ECONNRESET, EPIPE: .unavailable
        case EAGAIN, EBUSY: .failedPrecondition
        case EINVAL, ENAMETOOLONG: .invalidArgument
        default: .internalError
        }
    return FtvmError(code, message, cause: String(cString: strerror(number)), advice: advice)
}

func systemError(_ result: Int32, _ message: String, advice: String? = nil) -> FtvmError {
    systemError(Int(result), message, advice: advice)
}

/// The negative errno of the call that just failed.
func lastErrno() -> Int32 { -errno }

/// A descriptor that is closed with its owner.
final class OwnedDescriptor: Sendable {
    let number: Int32
    init(_ number: Int32) {
        precondition(number >= 0, "not a descriptor")
        self.number = number
    }
    deinit { close(number) }

    /// Size of the file in bytes.
    func fileBytes(_ what: String) throws -> UInt64 {
        try UInt64(status(what).st_size)
    }

    func status(_ what: String) throws -> stat {
        var status = stat()
        guard fstat(number, &status) == 0 else {
            throw systemError(lastErrno(), "cannot look at \(what)")
        }
        return status
    }

    /// A second open file description of the same file, which may differ in access and in locks.
    func reopened(writable: Bool, _ what: String) throws -> OwnedDescriptor {
        // O_NOFOLLOW, which the shim adds, would refuse the link in /proc.
        let path = "/proc/self/fd/\(number)"
        let opened = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC)
        guard opened >= 0 else {
            throw systemError(
                lastErrno(), "cannot open \(what) once more",
                advice: "/proc must be mounted and the process needs the rights of the file's owner"
            )
        }
        return OwnedDescriptor(opened)
    }
}

/// A lock of an open file description on bytes of a file, given up with its owner.
///
/// Closing the descriptor would not do: a child process that another thread has just forked and
/// that has not come to its exec yet holds a copy, and with it the lock, for some milliseconds
/// more.
final class OwnedLock: Sendable {
    let file: OwnedDescriptor
    private let start: Int64
    private let bytes: Int64

    private init(_ file: OwnedDescriptor, _ start: Int64, _ bytes: Int64) {
        (self.file, self.start, self.bytes) = (file, start, bytes)
    }

    deinit { _ = ftvm_lock_clear(file.number, start, bytes) }

    /// nil if somebody else has a part of it.
    static func attempt(
        _ file: OwnedDescriptor, _ bytes: Range<Int64>, _ what: String
    ) throws -> OwnedLock? {
        let count = bytes.upperBound - bytes.lowerBound
        let result = ftvm_lock_set(file.number, bytes.lowerBound, count, true)
        if result == -EAGAIN { return nil }
        guard result == 0 else { throw systemError(result, "cannot lock \(what)") }
        return OwnedLock(file, bytes.lowerBound, count)
    }
}

/// A shared mapping of a whole file, unmapped with its owner.
final class Mapping: @unchecked Sendable {
    let address: UnsafeMutableRawPointer
    let bytes: Int

    /// - Parameter reserve: false for a mapping that only carries a NUMA policy, never touched.
    init(
        _ descriptor: OwnedDescriptor, bytes: UInt64, writable: Bool, reserve: Bool = true,
        _ what: String
    ) throws {
        guard let length = Int(exactly: bytes), length > 0 else {
            throw FtvmError(.dataCorrupted, "\(what) cannot be \(bytes) bytes long")
        }
        var mapped: UnsafeMutableRawPointer?
        let result = ftvm_memory_map(descriptor.number, length, writable, reserve, &mapped)
        guard result == 0, let mapped else { throw systemError(result, "cannot map \(what)") }
        self.address = mapped
        self.bytes = length
    }

    /// Two files behind each other.
    /// - Parameter alignment: of the address, a power of two.
    init(
        _ first: OwnedDescriptor, bytes firstBytes: UInt64, then second: OwnedDescriptor,
        bytes secondBytes: UInt64, alignment: UInt64, writable: Bool, _ what: String
    ) throws {
        guard let one = Int(exactly: firstBytes), let two = Int(exactly: secondBytes), one > 0,
            two > 0
        else {
            throw FtvmError(
                .dataCorrupted, "\(what) cannot be \(firstBytes) and \(secondBytes) bytes long")
        }
        var mapped: UnsafeMutableRawPointer?
        let result = ftvm_memory_map_joined(
            first.number, one, second.number, two, Int(alignment), writable, &mapped)
        guard result == 0, let mapped else { throw systemError(result, "cannot map \(what)") }
        address = mapped
        bytes = one + two
    }

    deinit { _ = ftvm_memory_unmap(address, bytes) }

    /// Fills the page tables, so that no access has to fault later; see `Segment.populate`.
    func populate(writable: Bool, _ what: String) throws {
        let result = ftvm_memory_populate(address, bytes, writable)
        guard result == 0 else { throw systemError(result, "cannot populate \(what)") }
    }
}

/// The text of a small file such as those in /proc and /sys; nil if it cannot be read.
func smallFile(_ path: String) -> String? {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    var bytes = [UInt8](repeating: 0, count: 16384)
    var filled = 0
    while filled < bytes.count {
        let got = bytes.withUnsafeMutableBytes { buffer in
            read(descriptor, buffer.baseAddress?.advanced(by: filled), buffer.count - filled)
        }
        if got < 0 && errno == EINTR { continue }
        guard got > 0 else { break }
        filled += got
    }
    return String(decoding: bytes[..<filled], as: UTF8.self)
}

/// Bytes as a person reads them: `1536 MiB`, `4 KiB`, `17 bytes`.
func readable(_ bytes: UInt64) -> String {
    if bytes >= 1 << 20 && bytes % (1 << 20) == 0 || bytes >= 1 << 27 {
        return "\(bytes >> 20) MiB"
    }
    if bytes >= 1 << 10 { return "\(bytes >> 10) KiB" }
    return "\(bytes) bytes"
}

func roundUp(_ value: UInt64, to unit: UInt64) -> UInt64 { (value + unit - 1) / unit * unit }
