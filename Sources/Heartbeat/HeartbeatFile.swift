import CLinux
import Glibc
import Model

/// The layout of a pool's `heartbeats` file. Everything is in the machine's byte order (x86_64).
///
/// ```text
/// 0      header, 4096 bytes: magic (8), version (4), slot count (4), slot size (4), zeros
/// 4096   64 slots of 128 bytes
///        +0   counter, 8 bytes: 0 = not published; raised by one with every beat
///        +8   incarnation of the host's ftvmd, 8 bytes
///        +16  length of the host's name in bytes, 8 bytes
///        +24  zeros up to +64
///        +64  the host's name, UTF-8, at most 63 bytes, then zeros
/// ```
///
/// Locks (open file description, see ftvm_lock.h): byte 0 of the file while somebody makes the
/// header or claims a slot; byte 1 + i for as long as the ftvmd that beats in slot i lives. The
/// bytes locked have nothing to do with the bytes' contents.
enum HeartbeatLayout {
    /// "ftvmhbt1" read as a little-endian number.
    static let magic: UInt64 = 0x3174_6268_6d76_7466
    static let version: UInt32 = 1
    static let headerBytes = 4096
    static let slotCount = 64
    static let slotBytes = 128
    static let fileBytes = headerBytes + slotCount * slotBytes
    static let nameBytesMaximum = 63

    static let versionOffset = 8
    static let slotCountOffset = 12
    static let slotBytesOffset = 16

    static let counterOffset = 0
    static let incarnationOffset = 8
    static let nameLengthOffset = 16
    static let nameOffset = 64

    static let headerLockByte: Int64 = 0
    static func lockByte(_ slot: Int) -> Int64 { Int64(1 + slot) }
}

/// The `heartbeats` file, open and mapped. Descriptor and mapping live as long as this object.
final class HeartbeatFile {
    let path: String
    let descriptor: CInt
    private let base: UnsafeMutableRawPointer

    /// Opens the file, making it (mode 0600, space reserved) when it does not exist.
    init(path: String) throws(FtvmError) {
        let descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw HeartbeatFile.failure(path, "open", errno) }
        do throws(FtvmError) {
            // Whoever comes first makes the header; the magic is written last and is its valid
            // mark, so a crash in between leaves a file that the next one makes again.
            try HeartbeatFile.lockHeader(descriptor, path)
            defer { _ = ftvm_lock_clear(descriptor, HeartbeatLayout.headerLockByte, 1) }
            // Reserved, so that a full tmpfs is an error here and never a SIGBUS later.
            let reserved = posix_fallocate(descriptor, 0, off_t(HeartbeatLayout.fileBytes))
            guard reserved == 0 else {
                throw HeartbeatFile.failure(path, "fallocate", reserved)
            }
            let mapping = mmap(
                nil, HeartbeatLayout.fileBytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
            guard let mapping, mapping != MAP_FAILED else {
                throw HeartbeatFile.failure(path, "mmap", errno)
            }
            do throws(FtvmError) {
                try HeartbeatFile.makeHeader(mapping, path)
            } catch {
                munmap(mapping, HeartbeatLayout.fileBytes)
                throw error
            }
            self.path = path
            self.descriptor = descriptor
            self.base = mapping
        } catch {
            close(descriptor)
            throw error
        }
    }

    deinit {
        munmap(base, HeartbeatLayout.fileBytes)
        close(descriptor)
    }

    private static func makeHeader(
        _ base: UnsafeMutableRawPointer, _ path: String
    ) throws(FtvmError) {
        let magic = base.assumingMemoryBound(to: UInt64.self)
        if ftvm_atomic_load_u64(magic) == 0 {
            base.storeBytes(
                of: HeartbeatLayout.version, toByteOffset: HeartbeatLayout.versionOffset,
                as: UInt32.self)
            base.storeBytes(
                of: UInt32(HeartbeatLayout.slotCount),
                toByteOffset: HeartbeatLayout.slotCountOffset, as: UInt32.self)
            base.storeBytes(
                of: UInt32(HeartbeatLayout.slotBytes),
                toByteOffset: HeartbeatLayout.slotBytesOffset, as: UInt32.self)
            ftvm_atomic_store_u64(magic, HeartbeatLayout.magic)
            return
        }
        guard ftvm_atomic_load_u64(magic) == HeartbeatLayout.magic else {
            throw FtvmError(
                .dataCorrupted, "\(path) is not a heartbeat file", cause: "its magic is wrong",
                advice: "remove the file when no ftvmd runs; it is made again")
        }
        let version = base.load(fromByteOffset: HeartbeatLayout.versionOffset, as: UInt32.self)
        let count = base.load(fromByteOffset: HeartbeatLayout.slotCountOffset, as: UInt32.self)
        let size = base.load(fromByteOffset: HeartbeatLayout.slotBytesOffset, as: UInt32.self)
        guard version == HeartbeatLayout.version, count == HeartbeatLayout.slotCount,
            size == HeartbeatLayout.slotBytes
        else {
            throw FtvmError(
                .unsupported, "the heartbeat file \(path) was made by another version of ftvm",
                cause: "format version \(version), \(count) slots of \(size) bytes",
                advice: "run the same version of ftvm on every host")
        }
    }

    // MARK: Locks

    func withHeaderLock<Value>(
        _ body: () throws(FtvmError) -> Value
    ) throws(FtvmError) -> Value {
        try HeartbeatFile.lockHeader(descriptor, path)
        defer { _ = ftvm_lock_clear(descriptor, HeartbeatLayout.headerLockByte, 1) }
        return try body()
    }

    /// Held for microseconds only, and dropped by the kernel if its holder dies; but a holder may
    /// be stopped, so waiting has an end.
    private static func lockHeader(_ descriptor: CInt, _ path: String) throws(FtvmError) {
        let waitMicroseconds: UInt32 = 1_000
        for _ in 0..<5_000 {
            let result = ftvm_lock_set(descriptor, HeartbeatLayout.headerLockByte, 1, true)
            if result == 0 { return }
            guard result == -EAGAIN else { throw failure(path, "F_OFD_SETLK", -result) }
            usleep(waitMicroseconds)
        }
        throw FtvmError(
            .timedOut, "the heartbeat file \(path) stays locked",
            cause: "another ftvmd has held its header for 5 s",
            advice: "look for a stopped ftvmd")
    }

    /// Takes slot `index` for this object's open file description; false when another holds it.
    func lock(slot index: Int) throws(FtvmError) -> Bool {
        let result = ftvm_lock_set(descriptor, HeartbeatLayout.lockByte(index), 1, true)
        if result == 0 { return true }
        guard result == -EAGAIN else { throw HeartbeatFile.failure(path, "F_OFD_SETLK", -result) }
        return false
    }

    func unlock(slot index: Int) {
        _ = ftvm_lock_clear(descriptor, HeartbeatLayout.lockByte(index), 1)
    }

    /// Whether another open file description holds slot `index`.
    func isHeldElsewhere(slot index: Int) throws(FtvmError) -> Bool {
        let result = ftvm_lock_query(descriptor, HeartbeatLayout.lockByte(index), 1)
        guard result >= 0 else { throw HeartbeatFile.failure(path, "F_OFD_GETLK", -result) }
        return result == 1
    }

    // MARK: Slots

    func counter(_ index: Int) -> UnsafeMutablePointer<UInt64> {
        word(index, HeartbeatLayout.counterOffset)
    }

    private func word(_ index: Int, _ offset: Int) -> UnsafeMutablePointer<UInt64> {
        precondition((0..<HeartbeatLayout.slotCount).contains(index))
        let start = HeartbeatLayout.headerBytes + index * HeartbeatLayout.slotBytes
        return (base + start + offset).assumingMemoryBound(to: UInt64.self)
    }

    /// What slot `index` says; nil when it is not published or just being written.
    func read(slot index: Int) -> (host: HostName, incarnation: UInt64, counter: UInt64)? {
        let incarnationWord = word(index, HeartbeatLayout.incarnationOffset)
        let counter = ftvm_atomic_load_u64(self.counter(index))
        let incarnation = ftvm_atomic_load_u64(incarnationWord)
        guard counter != 0, incarnation != 0 else { return nil }
        let length = ftvm_atomic_load_u64(word(index, HeartbeatLayout.nameLengthOffset))
        guard (1...UInt64(HeartbeatLayout.nameBytesMaximum)).contains(length) else { return nil }
        let name = UnsafeRawBufferPointer(
            start: UnsafeRawPointer(self.counter(index)) + HeartbeatLayout.nameOffset,
            count: Int(length))
        let bytes = Array(name)
        // A writer sets the incarnation to 0 before it touches the name: torn names are seen here.
        guard ftvm_atomic_load_u64(incarnationWord) == incarnation,
            let text = String(validating: bytes, as: UTF8.self)
        else { return nil }
        return (HostName(text), incarnation, counter)
    }

    /// Writes and publishes slot `index`; the caller holds its lock. Killed anywhere in here, the
    /// slot is either not published or whole.
    func publish(slot index: Int, host: HostName, incarnation: UInt64) {
        withdraw(slot: index)
        let start = UnsafeMutableRawPointer(counter(index)) + HeartbeatLayout.nameOffset
        let bytes = Array(host.text.utf8)
        start.initializeMemory(
            as: UInt8.self, repeating: 0, count: HeartbeatLayout.nameBytesMaximum + 1)
        start.copyMemory(from: bytes, byteCount: bytes.count)
        ftvm_atomic_store_u64(word(index, HeartbeatLayout.nameLengthOffset), UInt64(bytes.count))
        ftvm_atomic_store_u64(word(index, HeartbeatLayout.incarnationOffset), incarnation)
        ftvm_atomic_store_u64(counter(index), 1)
    }

    /// Takes slot `index` out of sight.
    func withdraw(slot index: Int) {
        ftvm_atomic_store_u64(counter(index), 0)
        ftvm_atomic_store_u64(word(index, HeartbeatLayout.incarnationOffset), 0)
    }

    static func failure(_ path: String, _ call: String, _ number: CInt) -> FtvmError {
        let code: FtvmError.Code =
            switch number {
            case ENOSPC: .resourceExhausted
            case EACCES, EPERM, EROFS: .permissionDenied
            default: .unavailable
            }
        return FtvmError(
            code, "the heartbeat file \(path) cannot be used",
            cause: "\(call): \(String(cString: strerror(number)))",
            advice: "check that the pool's directory is mounted and has room")
    }
}
