import CLinux
import Glibc
import Model

/// How full a pool is.
package struct PoolUsage: Hashable, Sendable, Codable {
    /// What the pool can ever hold; of a tmpfs without a limit, and of memfds, the machine's RAM.
    package let totalBytes: UInt64
    /// What a new segment could get now.
    package let freeBytes: UInt64
    package let segmentCount: Int
    package let pageSizeBytes: UInt64
}

/// Memory that every host of the cluster can map, cut into segments. A value: the state is in the
/// pool itself, so any number of processes may use it at the same time.
package struct Pool: Sendable {
    package let configuration: PoolConfiguration
    /// The unit of everything in this pool: 4096, or the huge page size.
    package let pageSizeBytes: UInt64
    let storage: any SegmentStorage

    package var name: PoolName { configuration.name }

    /// Looks at the pool without changing anything.
    ///
    /// Throws `.notFound` if its directory does not exist, `.invalidArgument` if the directory is
    /// not on the kind of file system that the configuration says, `.unsupported` if its pages are
    /// larger than 2 MiB.
    package init(_ configuration: PoolConfiguration) throws {
        self.configuration = configuration
        let (name, path) = (configuration.name, configuration.path)
        var info = ftvm_memory_filesystem_info()
        let result = ftvm_memory_filesystem(path, &info)
        guard result == 0 else {
            throw systemError(
                result, "pool '\(name)' has no directory '\(path)'",
                advice: "make the directory, or correct the pool's path in ftvmd.toml")
        }
        let found =
            switch UInt32(info.kind) {
            case FTVM_MEMORY_FILESYSTEM_TMPFS.rawValue: "tmpfs"
            case FTVM_MEMORY_FILESYSTEM_HUGETLBFS.rawValue: "hugetlbfs"
            default: "a file system with the magic number 0x" + String(info.magic, radix: 16)
            }
        switch configuration.kind {
        case .tmpfs, .hugetlbfs:
            guard found == configuration.kind.rawValue else {
                throw FtvmError(
                    .invalidArgument, "pool '\(name)' is not on \(configuration.kind.rawValue)",
                    cause: "'\(path)' is on \(found)",
                    advice: "mount a \(configuration.kind.rawValue) there, or correct ftvmd.toml")
            }
            pageSizeBytes = configuration.kind == .tmpfs ? 4096 : info.block_bytes
            storage = try DirectoryStorage(pool: name, directory: path)
        case .memfd:
            let keeper = KeeperStorage(pool: name, directory: path)
            pageSizeBytes = try keeper.pageSizeBytes()
            storage = keeper
        }
        guard pageSizeBytes <= Self.largestPageBytes else {
            throw FtvmError(
                .unsupported, "pool '\(name)' has pages of \(pageSizeBytes >> 20) MiB",
                cause:
                    "the kernel tracks writes by whole pages: the first write to one in each epoch "
                    + "would copy all of it; nor does a running QEMU's memory lie on such boundaries",
                advice: "use pages of 2 MiB: mount the hugetlbfs with pagesize=2M")
        }
    }

    /// x86-64's huge pages; there are gigantic ones of 1 GiB, too.
    private static let largestPageBytes: UInt64 = 2 << 20

    var usesHugePages: Bool { pageSizeBytes != 4096 }

    /// Names of the pool's segments, sorted.
    package func segmentNames() throws -> [String] { try storage.names() }

    /// Opens a segment. Throws `.notFound`, `.dataCorrupted`, `.unsupported` (format version).
    package func openSegment(name: String, access: SegmentAccess) throws -> Segment {
        let writable = access == .write
        return try Segment(
            pool: self.name, name: name, access: access, storage: storage,
            ramFile: storage.open(.ram, of: name, writable: writable),
            controlFile: storage.open(.control, of: name, writable: writable))
    }

    /// Opens a segment to read; nil when the pool is there and the segment is not in it.
    /// Throws `.unavailable` when the pool itself is not there, and what `openSegment` throws.
    package func presentSegment(name: String) throws -> Segment? {
        do {
            return try openSegment(name: name, access: .read)
        } catch let error as FtvmError where error.code == .notFound {
            return nil
        }
    }

    /// Removes a segment and gives its memory back (once the last process has unmapped it); false
    /// if there is none. May be repeated.
    ///
    /// Throws `.failedPrecondition`, changing nothing, while anybody holds one of its locks: the
    /// primary's QEMU or its manager.
    @discardableResult
    package func removeSegment(name: String) throws -> Bool {
        let file: OwnedDescriptor
        do {
            file = try storage.open(.lock, of: name, writable: true)
        } catch let error as FtvmError where error.code == .notFound {
            return false
        }
        let title = "segment '\(name)' of pool '\(self.name)'"
        guard let lock = try OwnedLock.attempt(file, SegmentLockByte.all, title) else {
            let primary = ftvm_lock_query(file.number, SegmentLockByte.primary.offset, 1)
            throw FtvmError(
                .failedPrecondition, "\(title) is in use and stays",
                cause: primary == 1 ? "a QEMU runs as its primary" : "an ftvmd manages it",
                advice: "disable the pair, or end the domain, first")
        }
        defer { withExtendedLifetime(lock) {} }
        // Until the lock was ours somebody else may have removed it, and made one of the same name.
        do {
            let named = try storage.open(.lock, of: name, writable: true)
            guard try named.status(title).st_ino == file.status(title).st_ino else { return false }
        } catch let error as FtvmError where error.code == .notFound {
            return false
        }
        try storage.remove(name)
        return true
    }

    /// Removes what creations and removals left that were killed half-way; returns what it removed.
    /// Creations that are under way are not touched.
    @discardableResult
    package func removeStaleCreations() throws -> [String] { try storage.removeLeftovers() }
}
