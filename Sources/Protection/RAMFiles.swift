import CLinux
import Glibc
import Hypervisor
import Injection
import MemoryPool
import Model

/// The files that a segment's RAM is in: the memory object that was adopted, if there is one, then the segment's own.
/// The descriptors are others'.
struct RAMFiles {
    let ram: Int32
    let object: Int32?
    let objectBytes: UInt64

    /// With the segment's own access.
    init(_ segment: Segment) {
        self.init(
            ram: segment.ramDescriptor, object: segment.objectDescriptor,
            objectBytes: segment.objectBytes)
    }

    init(ram: Int32, object: Int32?, objectBytes: UInt64) {
        precondition((object == nil) == (objectBytes == 0), "an object has a size")
        self.ram = ram
        self.object = object
        self.objectBytes = objectBytes
    }

    /// Calls `body` with files that can only be read: whoever maps them cannot get write access.
    static func withReadOnly<Result>(
        _ segment: Segment, _ body: (RAMFiles) throws -> Result
    ) throws -> Result {
        let ram = try segment.openRAMReadOnly()
        defer { close(ram) }
        let object = try segment.openObjectReadOnly()
        defer { if let object { close(object) } }
        return try body(
            RAMFiles(ram: ram, object: object, objectBytes: segment.objectBytes))
    }

    /// Where a block is.
    func place(of block: GuestMemory.Block) -> (descriptor: Int32, offset: UInt64) {
        guard let object, block.offset < objectBytes else {
            return (ram, block.offset - objectBytes)
        }
        precondition(block.end <= objectBytes, "a block is in one file")
        return (object, block.offset)
    }

    /// Where in the segment's RAM a mapping begins; nil: it is of none of these files.
    func ramOffset(of region: ProcessMaps.Region) throws -> UInt64? {
        let file = FileIdentity(device: region.device, inode: region.inode)
        if try file == FileIdentity(descriptor: ram) { return region.offset + objectBytes }
        if let object, try file == FileIdentity(descriptor: object) { return region.offset }
        return nil
    }
}

/// A file in which a running QEMU has its main memory, shared: a memfd, or one on tmpfs or hugetlbfs.
package final class MemoryObject: Sendable {
    /// For reading and writing, with an open file description of its own.
    package let descriptor: Int32
    package let bytes: UInt64
    package let pageSizeBytes: UInt64

    private init(descriptor: Int32, bytes: UInt64, pageSizeBytes: UInt64) {
        self.descriptor = descriptor
        self.bytes = bytes
        self.pageSizeBytes = pageSizeBytes
    }

    deinit { close(descriptor) }

    /// What is behind a RAM block; nil when that is private memory.
    /// - Throws: `.unsupported` when it is a file whose pages the kernel cannot track, or only a part of one.
    package static func behind(_ block: RAMBlock, of process: QEMUProcess) throws -> MemoryObject? {
        guard let start = block.hostAddress else { return nil }
        let end = start + block.usedBytes
        let regions = try process.memoryMap().regions(in: start..<end)
        guard let region = regions.first(where: { $0.shared }) else { return nil }
        func refused(_ cause: String) -> FtvmError {
            FtvmError(
                .unsupported, "the guest's shared memory cannot be protected", cause: cause,
                advice: "use <source type='memfd'/>, or a memory_backing_dir on tmpfs; or remove "
                    + "<access mode='shared'/>")
        }
        guard regions.count == 1, region.start == start, region.end == end, region.offset == 0,
            region.inode != 0
        else { throw refused("\(block.name) is mapped in \(regions.count) pieces") }
        // The link leads to the file itself, whether it has a name or not (proc(5), map_files).
        let name = String(start, radix: 16) + "-" + String(end, radix: 16)
        let opened = open(
            "/proc/\(process.processID)/map_files/\(name)", O_RDWR | O_CLOEXEC)
        guard opened >= 0 else {
            throw refused("\(region.path) cannot be opened: " + String(cString: strerror(errno)))
        }
        var info = ftvm_memory_filesystem_info()
        let result = ftvm_memory_file_info(opened, &info)
        let kind = UInt32(info.kind)
        guard result == 0, kind != FTVM_MEMORY_FILESYSTEM_OTHER.rawValue else {
            close(opened)
            throw refused("\(region.path) is neither a memfd nor on tmpfs or hugetlbfs")
        }
        let isHuge = kind == FTVM_MEMORY_FILESYSTEM_HUGETLBFS.rawValue
        return MemoryObject(
            descriptor: opened, bytes: block.usedBytes,
            pageSizeBytes: isHuge ? info.block_bytes : 4096)
    }

    /// - Throws: `.unsupported` when its pages cannot be tracked one by one while they are moved.
    package func requireMovable(into pool: Pool) throws {
        guard pageSizeBytes != 4096, pageSizeBytes != pool.pageSizeBytes else { return }
        throw FtvmError(
            .unsupported, "the guest's shared memory does not fit pool \(pool.name)",
            cause: "it has pages of \(pageSizeBytes) bytes, the pool of \(pool.pageSizeBytes)",
            advice: "choose a pool with pages of the same size")
    }

    /// Its contents are elsewhere now: the memory goes back.
    func discard() { _ = ftvm_memory_discard(descriptor, bytes) }
}

/// While a segment has a QEMU's own memory object, that QEMU's descriptor of it is set aside. For what its balloon gives back
/// QEMU makes holes in the object through that descriptor (QEMU: system/physmem.c, ram_block_discard_range), past the
/// page tracker: the pages' old content would be lost to a rollback. In its place is an empty file, of which anything may be
/// taken away.
enum SetAside {
    private static let name = "ftvm-set-aside"

    /// - Returns: operations for the injector, and the empty file, the caller's to close.
    static func operations(
        _ process: QEMUProcess, _ segment: Segment
    ) throws -> (operations: [InjectionOperation], file: Int32)? {
        guard let object = segment.objectDescriptor else { return nil }
        let remotes = process.descriptors(ofSameFileAs: object)
        guard !remotes.isEmpty else { return nil }
        let file = ftvm_memory_file(name)
        guard file >= 0, ftruncate(file, off_t(segment.objectBytes)) == 0 else {
            if file >= 0 { close(file) }
            throw FtvmError(
                .resourceExhausted, "cannot make a memory file",
                cause: String(cString: strerror(errno)))
        }
        return (remotes.map { .replace(remote: $0, descriptor: file) }, file)
    }

    /// The QEMU has its own again.
    static func undo(
        _ process: QEMUProcess, _ segment: Segment
    ) -> [InjectionOperation] {
        guard let object = segment.objectDescriptor else { return [] }
        return process.descriptors(linkedTo: "/memfd:\(name)").map {
            .replace(remote: $0, descriptor: object)
        }
    }
}
