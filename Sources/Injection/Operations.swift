import CLinux
import Glibc

/// What can be done to a QEMU in one session, in order. Written as a word each on `ftvm-inject`'s command
/// line (`description` and `init(word:)` are each other's inverse); descriptor numbers are the injector's own.
package enum InjectionOperation: Equatable, Sendable {
    /// Makes a userfaultfd from the open /dev/userfaultfd and leaves it open in the process.
    case userfaultfd(device: Int32)
    /// Maps the file over whatever is at `address` (MAP_SHARED | MAP_FIXED), read-only or read-write.
    case mapFile(descriptor: Int32, address: UInt64, length: UInt64, writable: Bool, offset: UInt64)
    /// Maps fresh private anonymous memory aligned to 2 MiB somewhere free.
    case mapAnonymous(length: UInt64)
    /// Moves a mapping onto another one, replacing it in one step (mremap(2), MREMAP_FIXED).
    case move(from: UInt64, to: UInt64, length: UInt64)
    case unmap(address: UInt64, length: UInt64)
    /// madvise(2); `advice` is the kernel's number.
    case advise(address: UInt64, length: UInt64, advice: Int32)
    /// Puts a descriptor into the process and leaves it open there.
    case install(descriptor: Int32)
    /// Closes one of the process's descriptors.
    case close(remote: Int32)
    /// Puts a descriptor into the process in place of one that it has (dup3(2)).
    case replace(remote: Int32, descriptor: Int32)
}

extension InjectionOperation: CustomStringConvertible {
    package var description: String {
        switch self {
        case .userfaultfd(let device): "userfaultfd=\(device)"
        case .mapFile(let descriptor, let address, let length, let writable, let offset):
            "map-file=\(descriptor),\(address),\(length),\(writable ? 1 : 0),\(offset)"
        case .mapAnonymous(let length): "map-anonymous=\(length)"
        case .move(let source, let target, let length): "move=\(source),\(target),\(length)"
        case .unmap(let address, let length): "unmap=\(address),\(length)"
        case .advise(let address, let length, let advice): "advise=\(address),\(length),\(advice)"
        case .install(let descriptor): "install=\(descriptor)"
        case .close(let remote): "close=\(remote)"
        case .replace(let remote, let descriptor): "replace=\(remote),\(descriptor)"
        }
    }

    package init?(word: String) {
        let halves = word.split(separator: "=", maxSplits: 1)
        guard halves.count == 2 else { return nil }
        let numbers = halves[1].split(separator: ",").compactMap { UInt64($0) }
        guard numbers.count == halves[1].split(separator: ",").count else { return nil }
        func small(_ index: Int) -> Int32? { Int32(exactly: numbers[index]) }
        switch (String(halves[0]), numbers.count) {
        case ("userfaultfd", 1):
            guard let device = small(0) else { return nil }
            self = .userfaultfd(device: device)
        case ("map-file", 5):
            guard let descriptor = small(0), numbers[3] < 2 else { return nil }
            self = .mapFile(
                descriptor: descriptor, address: numbers[1], length: numbers[2],
                writable: numbers[3] == 1, offset: numbers[4])
        case ("map-anonymous", 1): self = .mapAnonymous(length: numbers[0])
        case ("move", 3): self = .move(from: numbers[0], to: numbers[1], length: numbers[2])
        case ("unmap", 2): self = .unmap(address: numbers[0], length: numbers[1])
        case ("advise", 3):
            guard let advice = small(2) else { return nil }
            self = .advise(address: numbers[0], length: numbers[1], advice: advice)
        case ("install", 1):
            guard let descriptor = small(0) else { return nil }
            self = .install(descriptor: descriptor)
        case ("close", 1):
            guard let remote = small(0) else { return nil }
            self = .close(remote: remote)
        case ("replace", 2):
            guard let remote = small(0), let descriptor = small(1) else { return nil }
            self = .replace(remote: remote, descriptor: descriptor)
        default: return nil
        }
    }
}

/// Carries out operations in one process; the results are numbers, one for each operation: the remote
/// descriptor, the address, or 0.
package struct Injector {
    private let session: InjectionSession
    private let pid: pid_t
    /// A page of the process's memory for the arguments of its calls.
    private let scratch: UInt64
    private static let scratchLength: UInt64 = 4096
    /// Our end, and the process's end, of the socket pair that descriptors travel over.
    private let ourSocket: Int32
    private let theirSocket: Int32
    /// The file that was mapped last: a guest's blocks are mapped from one file, one after the other.
    private var file: (descriptor: Int32, remote: UInt64)?

    package init(pid: pid_t) throws(InjectionError) {
        self.pid = pid
        session = try InjectionSession(pid: pid)
        scratch = try session.call(
            .mmap, 0, Injector.scratchLength, UInt64(PROT_READ | PROT_WRITE),
            UInt64(MAP_PRIVATE | MAP_ANONYMOUS), UInt64.max, 0)
        // The process makes the pair and we take one end of it: no path, no permission is involved.
        try session.call(
            .socketpair, UInt64(AF_UNIX), UInt64(SOCK_SEQPACKET.rawValue) | UInt64(O_CLOEXEC),
            0, scratch)
        var ends: [Int32] = [-1, -1]
        let length = MemoryLayout<Int32>.size * 2
        let got = ftvm_process_vm_read(pid, &ends, scratch, length)
        guard got == length else { throw InjectionError("read of process \(pid)", EFAULT) }
        let pidfd = try check(ftvm_pidfd_open(pid), "pidfd_open(\(pid))")
        defer { Glibc.close(pidfd) }
        ourSocket = try check(ftvm_pidfd_getfd(pidfd, ends[1]), "pidfd_getfd(\(pid))")
        theirSocket = ends[0]
        try session.call(.close, UInt64(ends[1]))
    }

    /// Leaves nothing behind in the process but what the operations were to leave.
    package func finish() {
        if let file { _ = try? session.call(.close, file.remote) }
        _ = try? session.call(.close, UInt64(theirSocket))
        _ = try? session.call(.munmap, scratch, Injector.scratchLength)
        session.finish()
        Glibc.close(ourSocket)
    }

    package mutating func perform(_ operation: InjectionOperation) throws(InjectionError) -> UInt64
    {
        switch operation {
        case .userfaultfd(let device): return try makeUserfaultfd(device: device)
        case .mapFile(let descriptor, let address, let length, let writable, let offset):
            let remote = try kept(descriptor)
            let protection = writable ? PROT_READ | PROT_WRITE : PROT_READ
            return try session.call(
                .mmap, address, length, UInt64(protection),
                UInt64(MAP_SHARED | MAP_FIXED), remote, offset)
        case .mapAnonymous(let length): return try mapAnonymous(length)
        case .move(let source, let target, let length):
            return try session.call(
                .mremap, source, length, length,
                remapFixed, target)
        case .unmap(let address, let length):
            return try session.call(.munmap, address, length)
        case .advise(let address, let length, let advice):
            // Advice that this kernel does not know changes nothing that anyone relies on.
            return (try? session.call(.madvise, address, length, UInt64(advice))) ?? 0
        case .install(let descriptor): return try install(descriptor)
        case .close(let remote):
            return try session.call(.close, UInt64(remote))
        case .replace(let remote, let descriptor):
            let installed = try install(descriptor)
            defer { _ = try? session.call(.close, installed) }
            try session.call(.dup3, installed, UInt64(remote), UInt64(O_CLOEXEC))
            return 0
        }
    }

    private mutating func kept(_ descriptor: Int32) throws(InjectionError) -> UInt64 {
        if let file, file.descriptor == descriptor { return file.remote }
        if let file { try session.call(.close, file.remote) }
        file = nil
        let remote = try install(descriptor)
        file = (descriptor, remote)
        return remote
    }

    private func makeUserfaultfd(device: Int32) throws(InjectionError) -> UInt64 {
        let remote = try install(device)
        defer { _ = try? session.call(.close, remote) }
        return try session.call(
            .ioctl, remote, ftvm_uffd_new_request(),
            UInt64(O_CLOEXEC | O_NONBLOCK))
    }

    /// Fresh memory aligned to 2 MiB, so that huge pages can take its place: mapped too large, ends cut off.
    private func mapAnonymous(_ length: UInt64) throws(InjectionError) -> UInt64 {
        let alignment: UInt64 = 2 << 20
        let start = try session.call(
            .mmap, 0, length + alignment, UInt64(PROT_READ | PROT_WRITE),
            UInt64(MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE), UInt64.max, 0)
        let aligned = (start + alignment - 1) / alignment * alignment
        if aligned > start {
            try session.call(.munmap, start, aligned - start)
        }
        try session.call(
            .munmap, aligned + length, start + alignment - aligned)
        return aligned
    }

    /// Sends the descriptor over the pair and lets the process receive it; gives its number there.
    private func install(_ descriptor: Int32) throws(InjectionError) -> UInt64 {
        try check(ftvm_process_send_descriptor(ourSocket, descriptor), "sendmsg(SCM_RIGHTS)")
        // In the scratch page: msghdr at 0, iovec at 64, one byte of data at 128, control buffer at 256.
        var page = [UInt8](repeating: 0, count: 512)
        page.withUnsafeMutableBytes { bytes in
            var message = msghdr()
            message.msg_iov = UnsafeMutablePointer(bitPattern: UInt(scratch + 64))
            message.msg_iovlen = 1
            message.msg_control = UnsafeMutableRawPointer(bitPattern: UInt(scratch + 256))
            message.msg_controllen = 64
            bytes.storeBytes(of: message, as: msghdr.self)
            let vector = iovec(
                iov_base: UnsafeMutableRawPointer(bitPattern: UInt(scratch + 128)), iov_len: 1)
            bytes.storeBytes(of: vector, toByteOffset: 64, as: iovec.self)
        }
        guard ftvm_process_vm_write(pid, page, scratch, page.count) == page.count else {
            throw InjectionError("write to process \(pid)", EFAULT)
        }
        try session.call(
            .recvmsg, UInt64(theirSocket), scratch, receiveCloseOnExec)
        guard ftvm_process_vm_read(pid, &page, scratch, page.count) == page.count else {
            throw InjectionError("read of process \(pid)", EFAULT)
        }
        // struct cmsghdr: length (8 bytes), level, type (4 bytes each), then the descriptor.
        return page.withUnsafeBytes { bytes in
            UInt64(UInt32(bitPattern: bytes.load(fromByteOffset: 256 + 16, as: Int32.self)))
        }
    }
}

/// Constants of <sys/socket.h> and <sys/mman.h> that Swift does not import.
private let receiveCloseOnExec: UInt64 = 0x4000_0000  // MSG_CMSG_CLOEXEC
private let remapFixed: UInt64 = 1 | 2  // MREMAP_MAYMOVE | MREMAP_FIXED
