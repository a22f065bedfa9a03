import CLinux
import Foundation
import Model

/// A process as the machine sees it.
package struct LabProcess: Hashable, Sendable, Codable {
    package let pid: Int32
    /// The pid within the innermost pid namespace: 1 for a host's first process.
    package let innerPid: Int32
    /// The kernel's short name of it (15 bytes), such as `qemu-system-x86`.
    package let name: String
}

/// A process that stays the same even if its pid is given to another one.
final class ProcessHandle {
    private let descriptor: Int32

    /// nil when there is no such process.
    init?(_ pid: Int32) {
        descriptor = ftvm_pidfd_open(pid)
        guard descriptor >= 0 else { return nil }
    }

    deinit { if descriptor >= 0 { close(descriptor) } }

    /// Whether it has given up everything that it held; for the first process of a pid namespace,
    /// this means that every process in it has.
    var hasEnded: Bool { ftvm_socket_wait(descriptor, false, 0) == 1 }

    /// SIGKILL; fine if it has ended already.
    func end() throws {
        let result = ftvm_pidfd_send_signal(descriptor, SIGKILL)
        guard result == 0 || result == -ESRCH else {
            throw systemFailure("cannot end a process", -result)
        }
    }
}

/// A cgroup of version 2: how the lab knows what belongs to a host, stops all of it in one stroke
/// and is sure that nothing is left.
struct ControlGroup: Hashable, Sendable {
    let path: String

    /// Where cgroup2 is mounted: /sys/fs/cgroup on today's systems, below it on hybrid ones.
    static func root() throws -> String {
        for line in try Files.read("/proc/self/mounts").split(separator: "\n") {
            let fields = line.split(separator: " ")
            if fields.count > 2, fields[2] == "cgroup2" { return String(fields[1]) }
        }
        throw FtvmError(
            .unsupported, "a lab needs control groups of version 2",
            cause: "no cgroup2 file system is mounted",
            advice: "mount it: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    }

    var exists: Bool { Files.exists(path) }

    func make() throws {
        guard mkdir(path, 0o755) == 0 || errno == EEXIST else {
            throw systemFailure("cannot make control group \(path)", errno)
        }
    }

    /// A descriptor on the directory, for starting a process in it; the caller closes it.
    func openDirectory() throws -> Int32 {
        let descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw systemFailure("cannot open \(path)", errno) }
        return descriptor
    }

    /// The processes that are in the group now; those that end while we look are left out.
    func processes() -> [LabProcess] {
        let text = (try? Files.read("\(path)/cgroup.procs")) ?? ""
        return text.split(separator: "\n").compactMap { line in
            guard let pid = Int32(line), let status = try? Files.read("/proc/\(pid)/status") else {
                return nil
            }
            var name = ""
            var innerPid = pid
            for field in status.split(separator: "\n") {
                if field.hasPrefix("Name:\t") { name = String(field.dropFirst(6)) }
                if field.hasPrefix("NSpid:\t"), let last = field.split(separator: "\t").last {
                    innerPid = Int32(last) ?? pid
                }
            }
            return LabProcess(pid: pid, innerPid: innerPid, name: name)
        }
    }

    /// A flag of `cgroup.events`: `populated` or `frozen`. False when the group is not there.
    func event(_ name: String) -> Bool {
        let text = (try? Files.read("\(path)/cgroup.events")) ?? ""
        return text.split(separator: "\n").contains("\(name) 1")
    }

    /// Stops (or lets go on) every process, and waits until it is so.
    func setFrozen(_ frozen: Bool) async throws {
        try Files.writeInPlace(frozen ? "1" : "0", to: "\(path)/cgroup.freeze")
        try await waitFor(
            "\(path) \(frozen ? "freezes" : "thaws")", limit: .seconds(10),
            period: .milliseconds(1)
        ) {
            event("frozen") == frozen ? () : nil
        }
    }

    /// Ends every process at once, frozen or not, and removes the group with all groups in it.
    func remove() async throws {
        guard exists else { return }
        // A group counts as empty while its last processes are still giving up what they hold.
        let handles = allProcesses().compactMap { ProcessHandle($0.pid) }
        try Files.writeInPlace("1", to: "\(path)/cgroup.kill")
        try await waitFor("processes of \(path) end", limit: .seconds(20), period: pollPeriod) {
            !event("populated") && handles.allSatisfy(\.hasEnded) ? () : nil
        }
        try removeDirectories()
    }

    private var pollPeriod: Duration { .milliseconds(2) }

    private var children: [ControlGroup] {
        Files.list(path).compactMap { child in
            var information = stat()
            let childPath = "\(path)/\(child)"
            guard lstat(childPath, &information) == 0,
                information.st_mode & S_IFMT == S_IFDIR
            else { return nil }
            return ControlGroup(path: childPath)
        }
    }

    private func allProcesses() -> [LabProcess] {
        processes() + children.flatMap { $0.allProcesses() }
    }

    private func removeDirectories() throws {
        for child in children { try child.removeDirectories() }
        guard rmdir(path) == 0 || errno == ENOENT else {
            throw systemFailure("cannot remove control group \(path)", errno)
        }
    }
}
