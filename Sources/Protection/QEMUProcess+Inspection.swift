import CLinux
import Glibc
import Hypervisor
import Injection
import MemoryPool
import Model

/// A running QEMU seen from outside: its descriptors, its memory map, and what has been put into it.
extension QEMUProcess {
    /// Sends SIGKILL and waits until the process is gone.
    /// - Throws: `.timedOut` when it is still there after `milliseconds`.
    package func kill(waitingMilliseconds milliseconds: Int = 5_000) throws {
        Glibc.kill(processID, SIGKILL)
        let deadline = MonotonicClock.nowNanoseconds() + UInt64(milliseconds) * 1_000_000
        while isRunning {
            guard MonotonicClock.nowNanoseconds() < deadline else {
                throw FtvmError(
                    .timedOut, "QEMU (process \(processID)) did not end after SIGKILL",
                    cause: "it is still there after \(milliseconds) ms",
                    advice: "look for a blocked device or file system on this host")
            }
            usleep(1_000)
        }
    }

    /// The process's descriptors whose /proc link starts with `prefix`.
    package func descriptors(linkedTo prefix: String) -> [Int32] {
        guard let directory = opendir("/proc/\(processID)/fd") else { return [] }
        defer { closedir(directory) }
        var found: [Int32] = []
        while let entry = readdir(directory) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            guard let number = Int32(name) else { continue }
            if descriptorLink(number)?.hasPrefix(prefix) == true { found.append(number) }
        }
        return found.sorted()
    }

    /// The process's descriptors of the file that our descriptor is of, by device and inode.
    package func descriptors(ofSameFileAs descriptor: Int32) -> [Int32] {
        var wanted = stat()
        guard fstat(descriptor, &wanted) == 0 else { return [] }
        return descriptors(linkedTo: "").filter { number in
            var found = stat()
            return stat("/proc/\(processID)/fd/\(number)", &found) == 0
                && found.st_dev == wanted.st_dev && found.st_ino == wanted.st_ino
        }
    }

    /// How many descriptors it has open (the size of /proc/PID/fd, since Linux 6.2); costs 2 us.
    package var descriptorCount: Int {
        var status = stat()
        return stat("/proc/\(processID)/fd", &status) == 0 ? Int(status.st_size) : 0
    }

    func descriptorLink(_ number: Int32) -> String? {
        var buffer = [CChar](repeating: 0, count: 512)
        let length = readlink("/proc/\(processID)/fd/\(number)", &buffer, buffer.count - 1)
        guard length > 0 else { return nil }
        return String(decoding: buffer[..<length].map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    /// What its descriptors are links to.
    package func descriptorLinks() -> [String] {
        descriptors(linkedTo: "").compactMap { descriptorLink($0) }
    }

    /// Our own duplicate of one of the process's descriptors.
    package func duplicate(descriptor: Int32) throws -> Int32 {
        let pidfd = ftvm_pidfd_open(processID)
        guard pidfd >= 0 else { throw gone(-pidfd) }
        defer { close(pidfd) }
        let duplicate = ftvm_pidfd_getfd(pidfd, descriptor)
        guard duplicate >= 0 else {
            throw FtvmError(
                .unavailable, "cannot take descriptor \(descriptor) of QEMU (process \(processID))",
                cause: String(cString: strerror(-duplicate)),
                advice: "ftvmd must run as root with CAP_SYS_PTRACE")
        }
        return duplicate
    }

    private func gone(_ number: Int32) -> FtvmError {
        FtvmError(
            .unavailable, "QEMU (process \(processID)) cannot be reached",
            cause: String(cString: strerror(number)))
    }

    /// Where the segment's RAM is mapped for writing, block by block.
    func blocks(mappedFrom segment: Segment) throws -> [GuestMemory.Block] {
        let files = RAMFiles(segment)
        let regions = try memoryMap().regions.filter { $0.shared && $0.writable }
        let placed = try regions.compactMap { region in
            try files.ramOffset(of: region).map {
                (start: region.start, end: region.end, offset: $0)
            }
        }
        var blocks: [GuestMemory.Block] = []
        for region in placed.sorted(by: { $0.offset < $1.offset }) {
            let length = region.end - region.start
            // One block may be several mappings: those that follow each other in both are one again.
            if let last = blocks.last, last.hostEnd == region.start, last.end == region.offset {
                blocks[blocks.count - 1] = GuestMemory.Block(
                    hostAddress: last.hostAddress, offset: last.offset,
                    lengthBytes: last.lengthBytes + length)
            } else {
                blocks.append(
                    GuestMemory.Block(
                        hostAddress: region.start, offset: region.offset, lengthBytes: length))
            }
        }
        return blocks
    }

    /// Whether anything of the segment's RAM is mapped for writing.
    package func usesMemory(of segment: Segment) throws -> Bool {
        try !blocks(mappedFrom: segment).isEmpty
    }

    /// Where the segment's RAM is mapped for writing; nil when the main memory is not. In a segment with a commit all of it was
    /// mapped once: other blocks that are missing went with a device.
    /// - Parameter layout: nil for a segment that holds the main memory and nothing else.
    func memory(
        mappedFrom segment: Segment, layout: RAMLayout?
    ) throws -> GuestMemory? {
        let mapped = try blocks(mappedFrom: segment)
        guard let layout else {
            guard mapped.count == 1, mapped[0].offset == 0, mapped[0].end == segment.memoryBytes
            else { return nil }
            return GuestMemory(blocks: mapped)
        }
        // Of each place all or nothing.
        var blocks: [GuestMemory.Block] = []
        for place in layout.places where !place.isCopied {
            let end = place.offset + place.bytes
            guard
                let around = mapped.first(where: { $0.offset <= place.offset && $0.end >= end })
            else {
                guard place.offset > 0,
                    !mapped.contains(where: { $0.offset < end && $0.end > place.offset })
                else { return nil }
                continue
            }
            blocks.append(
                GuestMemory.Block(
                    hostAddress: around.hostAddress + (place.offset - around.offset),
                    offset: place.offset, lengthBytes: place.bytes))
        }
        return GuestMemory(blocks: blocks, lengthBytes: layout.mappedBytes)
    }

    /// Takes all memory off every userfaultfd in the process, without a word to it: whoever waits for a tracker that is
    /// gone runs on.
    package func releaseFaults() throws {
        let uffds = descriptors(linkedTo: Preparation.uffdLink)
        guard !uffds.isEmpty else { return }
        let ranges = ranges(flagged: "uw")
        for remote in uffds {
            let uffd = try duplicate(descriptor: remote)
            defer { close(uffd) }
            for range in ranges {
                _ = ftvm_uffd_unregister(uffd, range.lowerBound, UInt64(range.count))
            }
            // Unregistering wakes only who waits for a missing page (fs/userfaultfd.c, userfaultfd_unregister), not who
            // waits for leave to write.
            _ = ftvm_uffd_wake_all(uffd)
        }
    }

    /// Ranges of the memory map that have a flag in /proc/PID/smaps (proc(5), VmFlags): `uw` write-protected by a
    /// userfaultfd, `nr` no swap space reserved.
    func ranges(flagged flag: String) -> [Range<UInt64>] {
        guard let file = fopen("/proc/\(processID)/smaps", "re") else { return [] }
        defer { fclose(file) }
        var ranges: [Range<UInt64>] = []
        var current: Range<UInt64>?
        var line: UnsafeMutablePointer<CChar>?
        var capacity = 0
        defer { free(line) }
        while getline(&line, &capacity, file) > 0 {
            guard let line else { continue }
            let words = String(cString: line).split(whereSeparator: \.isWhitespace)
            if let bounds = words.first?.split(separator: "-"), bounds.count == 2,
                let start = UInt64(bounds[0], radix: 16), let end = UInt64(bounds[1], radix: 16),
                start < end
            {
                current = start..<end
            } else if words.first == "VmFlags:", words.contains(Substring(flag)), let current {
                ranges.append(current)
            }
        }
        return ranges
    }

    func memoryMap() throws -> ProcessMaps {
        do { return try ProcessMaps(pid: processID) } catch {
            throw FtvmError(
                .unavailable, "cannot read the memory map of QEMU (process \(processID))",
                cause: "\(error)")
        }
    }

    /// Whether a block is mapped from its place in the segment, with just this access.
    func isMapped(
        _ block: GuestMemory.Block, from files: RAMFiles, writable: Bool
    ) throws -> Bool {
        let regions = try memoryMap().regions(in: block.hostAddress..<block.hostEnd)
        guard let first = regions.first, regions.count == 1, first.shared,
            first.writable == writable, first.start <= block.hostAddress,
            first.end >= block.hostEnd, let offset = try files.ramOffset(of: first)
        else { return false }
        return offset + (block.hostAddress - first.start) == block.offset
    }

    /// Whether any of this QEMU's memory is mapped from the segment.
    package func hasMapped(_ segment: Segment) throws -> Bool {
        let files = RAMFiles(segment)
        return try memoryMap().regions(in: 0..<UInt64.max).contains {
            try files.ramOffset(of: $0) != nil
        }
    }

    /// Whether all blocks are.
    func isMapped(_ memory: GuestMemory, from segment: Segment, writable: Bool) throws -> Bool {
        let files = RAMFiles(segment)
        return try memory.blocks.allSatisfy {
            try isMapped($0, from: files, writable: writable)
        }
    }

    /// Our own descriptor of the file in which this QEMU would have a block of shared memory, where that file is empty,
    /// since the block was moved out of it; nil: it has none. The caller closes it.
    func emptyObject(of block: GuestMemory.Block) throws -> Int32? {
        let prefixes = ["/memfd:ftvm", "/dev/", "anon_inode:", "socket:", "pipe:"]
        var found: [Int32] = []
        for number in descriptors(linkedTo: "/") {
            guard let link = descriptorLink(number),
                !prefixes.contains(where: { link.hasPrefix($0) }),
                let descriptor = try? duplicate(descriptor: number)
            else { continue }
            var status = stat()
            var info = ftvm_memory_filesystem_info()
            let isMemory =
                fstat(descriptor, &status) == 0 && UInt64(status.st_size) == block.lengthBytes
                && ftvm_memory_file_info(descriptor, &info) == 0
                && UInt32(info.kind) != FTVM_MEMORY_FILESYSTEM_OTHER.rawValue
                && status.st_blocks == 0
            if isMemory { found.append(descriptor) } else { close(descriptor) }
        }
        if found.count == 1 { return found[0] }
        for descriptor in found { close(descriptor) }
        return nil
    }
}

/// A file as /proc/PID/maps names it.
package struct FileIdentity: Sendable, Hashable {
    /// `major:minor` in hexadecimal.
    let device: String
    let inode: UInt64

    init(device: String, inode: UInt64) {
        self.device = device
        self.inode = inode
    }

    package init(descriptor: Int32) throws {
        var status = stat()
        guard fstat(descriptor, &status) == 0 else {
            throw FtvmError(
                .internalError, "cannot look at a file of the segment",
                cause: String(cString: strerror(errno)))
        }
        func hexadecimal(_ number: UInt32) -> String {
            let text = String(number, radix: 16)
            return text.count < 2 ? "0" + text : text
        }
        device =
            hexadecimal(ftvm_device_major(status.st_dev)) + ":"
            + hexadecimal(ftvm_device_minor(status.st_dev))
        inode = UInt64(status.st_ino)
    }
}

/// The monotonic clock; no decision of ftvm uses another.
package enum MonotonicClock {
    package static func nowNanoseconds() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }
}

/// The text of a file of /proc; nil when it cannot be read.
func readSmallFile(_ path: String) -> String? {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    var buffer = [UInt8](repeating: 0, count: 4096)
    let length = read(descriptor, &buffer, buffer.count)
    guard length > 0 else { return nil }
    return String(decoding: buffer[..<length], as: UTF8.self)
}
