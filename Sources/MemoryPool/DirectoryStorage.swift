import CLinux
import Glibc
import Model

/// Segments as directories `<pool>/segments/<name>/` on tmpfs or hugetlbfs.
///
/// Names that begin with a dot are ours: `.creating-...` while a segment is made, with a lock that
/// its creator holds, and `.removing-...` while one is removed. A segment becomes visible, and
/// invisible again, by one rename.
struct DirectoryStorage: SegmentStorage {
    let pool: PoolName
    let segments: String
    private let directory: String
    /// The file system that the pool is on.
    private let device: dev_t

    static let creatingPrefix = ".creating-"
    static let removingPrefix = ".removing-"

    init(pool: PoolName, directory: String) throws {
        self.pool = pool
        self.directory = directory
        self.segments = directory + "/segments"
        var status = stat()
        guard stat(directory, &status) == 0 else {
            throw systemError(lastErrno(), "pool '\(pool)' has no directory '\(directory)'")
        }
        device = status.st_dev
    }

    /// What is not found under the directory is not in the pool: unless somebody unmounted it, and the directory is one
    /// of another file system now.
    private func requireMounted() throws {
        var status = stat()
        guard stat(directory, &status) == 0, status.st_dev == device else {
            throw FtvmError(
                .unavailable, "pool '\(pool)' is not mounted any more",
                cause: "'\(directory)' is not on the file system that it was on",
                advice: "if its segments are lost with it, mount a new one and restart ftvmd")
        }
    }

    func path(of file: SegmentFile, of name: String) -> String? {
        "\(segments)/\(name)/\(file.rawValue)"
    }

    func names() throws -> [String] {
        try entries().filter { !$0.hasPrefix(".") }.sorted()
    }

    /// Everything in `segments`; empty if nothing was ever made.
    private func entries() throws -> [String] {
        guard let directory = opendir(segments) else {
            if errno == ENOENT {
                try requireMounted()
                return []
            }
            throw systemError(lastErrno(), "cannot list the segments of pool '\(pool)'")
        }
        defer { closedir(directory) }
        var names: [String] = []
        while true {
            errno = 0
            guard let entry = readdir(directory) else {
                guard errno == 0 else {
                    throw systemError(lastErrno(), "cannot list the segments of pool '\(pool)'")
                }
                return names
            }
            let name = withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name != "." && name != ".." { names.append(name) }
        }
    }

    func open(_ file: SegmentFile, of name: String, writable: Bool) throws -> OwnedDescriptor {
        try SegmentSpecification.validateName(name)
        let result = ftvm_memory_open(
            AT_FDCWD, "\(segments)/\(name)/\(file.rawValue)", writable ? O_RDWR : O_RDONLY, 0)
        guard result >= 0 else {
            if result == -ENOENT { try requireMounted() }
            throw systemError(
                result, "cannot open segment '\(name)' of pool '\(pool)'",
                advice: result == -ENOENT ? "'ftvm pool show' lists the segments" : nil)
        }
        return OwnedDescriptor(result)
    }

    func beginCreation(of name: String) throws -> any SegmentCreation {
        try SegmentSpecification.validateName(name)
        guard mkdir(segments, 0o700) == 0 || errno == EEXIST else {
            throw systemError(lastErrno(), "cannot make a segment in pool '\(pool)'")
        }
        if access("\(segments)/\(name)", F_OK) == 0 { throw alreadyExists(name) }
        return try DirectoryCreation(storage: self, name: name)
    }

    func alreadyExists(_ name: String) -> FtvmError {
        FtvmError(
            .alreadyExists, "pool '\(pool)' already has a segment '\(name)'",
            advice: "remove it first if no pair needs it")
    }

    func remove(_ name: String) throws {
        try SegmentSpecification.validateName(name)
        let doomed = "\(segments)/\(DirectoryStorage.removingPrefix)\(name)-\(randomSuffix())"
        guard rename("\(segments)/\(name)", doomed) == 0 else {
            if errno == ENOENT { return }
            throw systemError(lastErrno(), "cannot remove segment '\(name)' of pool '\(pool)'")
        }
        FaultPoint.reached("segment.remove.renamed")
        try removeDirectory(doomed)
    }

    func removeLeftovers() throws -> [String] {
        var removed: [String] = []
        for entry in try entries() {
            let path = "\(segments)/\(entry)"
            if entry.hasPrefix(DirectoryStorage.removingPrefix) {
                try removeDirectory(path)
                removed.append(entry)
            } else if entry.hasPrefix(DirectoryStorage.creatingPrefix) {
                if try removeStaleCreation(path) { removed.append(entry) }
            }
        }
        return removed
    }

    /// Removes the directory of a creation whose creator is dead; says whether it did.
    private func removeStaleCreation(_ path: String) throws -> Bool {
        let result = ftvm_memory_open(AT_FDCWD, path + "/lock", O_RDWR, 0)
        if result == -ENOENT {
            // The creator makes the directory, then the lock. Only an empty directory goes away
            // here, and a creator that finds its own gone begins again.
            return rmdir(path) == 0
        }
        guard result >= 0 else { throw systemError(result, "cannot open \(path)/lock") }
        let file = OwnedDescriptor(result)
        guard
            let lock = try OwnedLock.attempt(
                file, SegmentLockByte.creation.range, path + "/lock")
        else { return false }
        defer { withExtendedLifetime(lock) {} }
        // Between opening and locking the creator may have finished: then the name is gone.
        var named = stat()
        guard stat(path + "/lock", &named) == 0, named.st_ino == (try file.status(path).st_ino)
        else { return false }
        try removeDirectory(path)
        return true
    }

    /// Removes a directory of ours with its files. What is gone already is no error.
    fileprivate func removeDirectory(_ path: String) throws {
        // The lock goes last: while it is there a creator's leftovers are recognised by it.
        for file in [SegmentFile.ram, .object, .control, .disk, .lock] {
            guard unlink("\(path)/\(file.rawValue)") == 0 || errno == ENOENT else {
                throw systemError(lastErrno(), "cannot remove \(path)/\(file.rawValue)")
            }
        }
        guard rmdir(path) == 0 || errno == ENOENT else {
            throw systemError(
                lastErrno(), "cannot remove \(path)",
                advice: "it holds files that ftvm did not make")
        }
    }
}

/// Enough randomness that two processes never choose the same name.
func randomSuffix() -> String { String(UInt64.random(in: .min ... .max), radix: 36) }

private final class DirectoryCreation: SegmentCreation {
    private let storage: DirectoryStorage
    private let name: String
    private let directory: String
    private var lock: OwnedLock?
    private var finished = false

    /// Attempts until somebody who removes leftovers no longer took the still empty directory away.
    private static let attempts = 16

    init(storage: DirectoryStorage, name: String) throws {
        self.storage = storage
        self.name = name
        for _ in 0..<DirectoryCreation.attempts {
            let path =
                "\(storage.segments)/\(DirectoryStorage.creatingPrefix)\(name)-\(randomSuffix())"
            guard mkdir(path, 0o700) == 0 else {
                throw systemError(
                    lastErrno(), "cannot make a segment in pool '\(storage.pool)'")
            }
            FaultPoint.reached("segment.create.directory-made")
            if let lock = try DirectoryCreation.makeLock(path) {
                self.directory = path
                self.lock = lock
                FaultPoint.reached("segment.create.locked")
                return
            }
        }
        throw FtvmError(
            .internalError, "cannot make a segment in pool '\(storage.pool)'",
            cause: "its directory was removed \(DirectoryCreation.attempts) times in a row")
    }

    deinit { abandon() }

    /// Makes and locks the lock file; nil if the directory was removed meanwhile.
    private static func makeLock(_ path: String) throws -> OwnedLock? {
        let result = ftvm_memory_open(AT_FDCWD, path + "/lock", O_RDWR | O_CREAT | O_EXCL, 0o600)
        if result == -ENOENT { return nil }
        guard result >= 0 else {
            rmdir(path)
            throw systemError(result, "cannot make \(path)/lock")
        }
        let file = OwnedDescriptor(result)
        // Somebody who removes leftovers was faster: the directory is theirs, and about to go.
        guard
            let lock = try OwnedLock.attempt(
                file, SegmentLockByte.creation.range, path + "/lock")
        else { return nil }
        var named = stat()
        guard stat(path + "/lock", &named) == 0, named.st_ino == (try file.status(path).st_ino)
        else { return nil }
        return lock
    }

    func makeFile(_ file: SegmentFile) throws -> OwnedDescriptor {
        if file == .lock, let lock { return lock.file }
        let result = ftvm_memory_open(
            AT_FDCWD, "\(directory)/\(file.rawValue)", O_RDWR | O_CREAT | O_EXCL, 0o600)
        guard result >= 0 else {
            throw systemError(result, "cannot make \(directory)/\(file.rawValue)")
        }
        return OwnedDescriptor(result)
    }

    func take(_ object: OwnedDescriptor) throws -> Bool {
        let path = "\(directory)/\(SegmentFile.object.rawValue)"
        let result = ftvm_memory_link(object.number, path)
        // On another mount, or without a name (a memfd): nothing can give it one here.
        if [-EXDEV, -ENOENT, -EPERM].contains(result) { return false }
        guard result == 0 else { throw systemError(result, "cannot make \(path)") }
        return true
    }

    func complete() throws {
        precondition(!finished, "a segment is completed once")
        // The target is never an empty directory, so rename refuses to replace one that exists.
        guard rename(directory, "\(storage.segments)/\(name)") == 0 else {
            if errno == EEXIST || errno == ENOTEMPTY { throw storage.alreadyExists(name) }
            throw systemError(
                lastErrno(), "cannot complete segment '\(name)' of pool '\(storage.pool)'")
        }
        finished = true
        lock = nil
        FaultPoint.reached("segment.create.renamed")
    }

    func abandon() {
        guard !finished, lock != nil else { return }
        finished = true
        // A leftover that cannot be removed now is one for `removeLeftovers`.
        try? storage.removeDirectory(directory)
        lock = nil
    }
}
