import CLinux
import Glibc
import Model

/// A disk's image as the log uses it. All functions return 0 or a negative errno.
package protocol DiskImage: AnyObject, Sendable {
    /// What is behind the image's end reads as zeroes.
    func read(into target: UnsafeMutableRawBufferPointer, at offset: UInt64) -> Int32
    /// Writes pieces that follow one another.
    func write(_ pieces: UnsafeMutableBufferPointer<iovec>, at offset: UInt64) -> Int32
    /// Makes a range read as zeroes; `punch` gives its storage back.
    func zero(at offset: UInt64, bytes: UInt64, punch: Bool) -> Int32
    /// Has the storage begin with what was written. Promises nothing: only `synchronize` does.
    func beginWriteback()
    /// Brings everything that was written onto stable storage.
    func synchronize() -> Int32
    /// Forgets what may be cached of another host's writes.
    func forgetCache()
    /// Whether `offset` is in a hole, and where that hole or the data ends (`.max`: nowhere).
    func extent(at offset: UInt64) -> (isHole: Bool, end: UInt64)
    /// Whether trims give storage back here.
    var canTrim: Bool { get }
    /// From here on QEMU's own locks keep others from using the image: it lacks what is in the log.
    func claim() -> Int32
    func giveUpClaim()
}

extension DiskImage {
    package func claim() -> Int32 { 0 }
    package func giveUpClaim() {}
}

/// A raw file or block device; of a qcow2 image the file as it is.
package final class FileImage: DiskImage {
    package let path: String
    package let isDevice: Bool
    package let canTrim: Bool
    private let descriptor: Int32

    /// - Throws: `.notFound`, `.permissionDenied`, `.invalidArgument` (no file or block device).
    package init(path: String) throws {
        // Not O_NOFOLLOW: images and devices are ordinarily reached through links.
        let opened = open(path, O_RDWR | O_CLOEXEC)
        guard opened >= 0 else {
            throw diskError(
                -errno, "cannot open the disk image '\(path)'",
                advice: "see that this host reaches the storage")
        }
        var device = false
        let bytes = ftvm_disk_bytes(opened, &device)
        guard bytes >= 0 else {
            close(opened)
            throw diskError(
                Int32(bytes), "'\(path)' cannot be a disk image",
                advice: "it must be a regular file or a block device")
        }
        self.path = path
        descriptor = opened
        isDevice = device
        canTrim = FileImage.probeTrim(opened, bytes: UInt64(bytes), device: device)
    }

    deinit { close(descriptor) }

    /// Behind the end of a file a hole can be punched without changing anything; a device is not
    /// touched to find out.
    private static func probeTrim(_ descriptor: Int32, bytes: UInt64, device: Bool) -> Bool {
        if device { return false }
        return ftvm_disk_punch(descriptor, (bytes / 4096 + 1) * 4096, 4096) == 0
    }

    package func read(into target: UnsafeMutableRawBufferPointer, at offset: UInt64) -> Int32 {
        guard let start = target.baseAddress else { return 0 }
        var done = 0
        while done < target.count {
            let got = ftvm_disk_read(
                descriptor, start + done, target.count - done, offset + UInt64(done))
            if got < 0 { return Int32(got) }
            if got == 0 {
                memset(start + done, 0, target.count - done)
                return 0
            }
            done += got
        }
        return 0
    }

    package func write(_ pieces: UnsafeMutableBufferPointer<iovec>, at offset: UInt64) -> Int32 {
        var (first, position) = (0, offset)
        while first < pieces.count {
            let count = min(pieces.count - first, 1024)
            var written = ftvm_disk_write(
                descriptor, pieces.baseAddress.map { $0 + first }, Int32(count), position)
            if written < 0 { return Int32(written) }
            if written == 0 { return -EIO }
            position += UInt64(written)
            while written > 0 {
                if written >= pieces[first].iov_len {
                    written -= pieces[first].iov_len
                    first += 1
                } else {
                    pieces[first].iov_base = pieces[first].iov_base.map { $0 + written }
                    pieces[first].iov_len -= written
                    written = 0
                }
            }
        }
        return 0
    }

    package func zero(at offset: UInt64, bytes: UInt64, punch: Bool) -> Int32 {
        let result =
            punch
            ? ftvm_disk_punch(descriptor, offset, bytes)
            : ftvm_disk_zero(descriptor, offset, bytes)
        guard
            result == -EOPNOTSUPP || result == -ENOSYS || result == -ENODEV
                || result == -EINVAL
        else { return result }
        // Storage that cannot make zeroes by itself gets them written.
        return withUnsafeTemporaryAllocation(byteCount: 1 << 16, alignment: 4096) { buffer in
            buffer.initializeMemory(as: UInt8.self, repeating: 0)
            var done: UInt64 = 0
            while done < bytes {
                var piece = iovec(
                    iov_base: buffer.baseAddress,
                    iov_len: Int(min(UInt64(buffer.count), bytes - done)))
                let length = UInt64(piece.iov_len)
                let result = withUnsafeMutablePointer(to: &piece) {
                    write(UnsafeMutableBufferPointer(start: $0, count: 1), at: offset + done)
                }
                if result != 0 { return result }
                done += length
            }
            return 0
        }
    }

    /// An error of it is one that `synchronize` reports.
    package func beginWriteback() { _ = ftvm_disk_begin_writeback(descriptor) }

    package func synchronize() -> Int32 { ftvm_disk_synchronize(descriptor) }

    /// The bytes that stand for "writes", and for "nobody else may write", in QEMU's image locks (QEMU:
    /// block/file-posix.c, RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE, plus the number of BLK_PERM_WRITE).
    private static let writerLocks: [Int64] = [101, 201]

    package func claim() -> Int32 {
        for place in Self.writerLocks {
            let result = ftvm_lock_set(descriptor, place, 1, false)
            // Storage without locks: QEMU has none there either.
            if result == -ENOLCK || result == -EOPNOTSUPP || result == -EINVAL { return 0 }
            if result != 0 { return result }
        }
        return 0
    }

    /// A QEMU, or another server, has it open for writing.
    package var isWrittenByOthers: Bool {
        ftvm_lock_query(descriptor, Self.writerLocks[0], 1) == 1
    }

    package func giveUpClaim() {
        for place in Self.writerLocks { _ = ftvm_lock_clear(descriptor, place, 1) }
    }

    package func forgetCache() { _ = ftvm_disk_forget_cache(descriptor) }

    package func extent(at offset: UInt64) -> (isHole: Bool, end: UInt64) {
        if isDevice { return (false, .max) }
        var (hole, end) = (false, UInt64.max)
        // An answer that is not to be had is "data", which is always right.
        guard ftvm_disk_extent(descriptor, offset, &hole, &end) == 0, end > offset else {
            return (false, .max)
        }
        return (hole, end)
    }
}
