import CLinux
import Foundation
import Model

/// The lab's mounts on the machine; a host's own are made by its boot script.
enum Mounts {
    static func mount(
        _ source: String, on target: String, type: String, options: String? = nil
    ) throws {
        try Files.makeDirectory(target)
        let result = ftvm_namespace_mount(
            source, target, type, UInt(MS_NOSUID | MS_NODEV), options)
        guard result == 0 else {
            throw systemFailure("cannot mount a \(type) on \(target)", -result)
        }
    }

    /// Everything mounted at or below a directory, innermost and latest first.
    static func below(_ directory: String) throws -> [String] {
        let lines = try Files.read("/proc/self/mountinfo").split(separator: "\n")
        let targets = lines.compactMap { line -> String? in
            let fields = line.split(separator: " ")
            guard fields.count > 4 else { return nil }
            let target = String(fields[4])
            return target == directory || target.hasPrefix(directory + "/") ? target : nil
        }
        return targets.reversed()
    }

    /// Unmounts everything at and below a directory. A file that a process outside the lab still
    /// has open does not keep the mount: it goes with its last user.
    static func unmountAll(below directory: String) throws {
        for target in try below(directory) {
            var result = ftvm_namespace_unmount(target, 0)
            if result == -EBUSY { result = ftvm_namespace_unmount(target, 1) }
            guard result == 0 || result == -EINVAL || result == -ENOENT else {
                throw systemFailure("cannot unmount \(target)", -result)
            }
        }
    }
}

/// The machine's supply of 2-MiB pages.
enum HugePages {
    private static let directory = "/sys/kernel/mm/hugepages/hugepages-2048kB"

    /// The number is the machine's: who reads it and then changes it keeps others away meanwhile, those too that use
    /// flock(1) on the file.
    static func alone<Value>(_ body: () throws -> Value) throws -> Value {
        let path = "/proc/sys/vm/nr_hugepages"
        let file = open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { throw systemFailure("cannot open \(path)", errno) }
        defer { close(file) }
        guard flock(file, LOCK_EX) == 0 else { throw systemFailure("cannot lock \(path)", errno) }
        return try body()
    }

    static func total() throws -> Int { try number("nr_hugepages") }
    static func free() throws -> Int { try number("free_hugepages") }

    /// Takes `count` pages more than `before`.
    /// - Throws: `FtvmError` `resourceExhausted` when memory is too scattered or too little; the
    ///   caller sets the old number again.
    static func add(_ count: Int, to before: Int) throws {
        try set(before + count)
        let got = try total() - before
        guard got >= count else {
            throw FtvmError(
                .resourceExhausted, "the machine gives \(max(got, 0)) of \(count) huge pages",
                cause: "too little unfragmented free memory",
                advice: "ask for fewer with --huge-pages, or free memory and try again")
        }
    }

    static func set(_ count: Int) throws {
        try Files.writeInPlace(String(count), to: "\(directory)/nr_hugepages")
    }

    private static func number(_ name: String) throws -> Int {
        let text = try Files.read("\(directory)/\(name)")
        guard let number = Int(text.trimmingCharacters(in: .whitespacesAndNewlines)) else {
            throw FtvmError(.internalError, "\(directory)/\(name) holds no number", cause: text)
        }
        return number
    }
}
