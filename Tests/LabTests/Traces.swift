import Foundation
import Lab
import Model

/// Everything on this machine that shows that a lab is or was there.
struct Traces: Equatable, CustomStringConvertible {
    var mounts: [String]
    var directories: [String]
    var processes: [String]
    var links: [String]
    /// Descriptors of this process on anything of the lab.
    var descriptors: [String]

    static func now(_ layout: LabLayout) -> Traces {
        let mounts = text("/proc/self/mountinfo").split(separator: "\n").map(String.init)
        var processes: [String] = []
        for pid in list("/proc") where Int(pid) != nil {
            if !isZombie(pid), text("/proc/\(pid)/cgroup").contains("/\(layout.name)") {
                processes.append(pid + " " + text("/proc/\(pid)/comm"))
            }
        }
        let places = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/run"]
        return Traces(
            mounts: mounts.filter { $0.contains(layout.name) },
            directories: places.map { "\($0)/\(layout.name)" }.filter {
                FileManager.default.fileExists(atPath: $0)
            },
            processes: processes, links: list("/sys/class/net"),
            descriptors: list("/proc/self/fd").compactMap {
                try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/fd/\($0)")
            }.filter { $0.contains(layout.name) || $0.hasPrefix("net:") })
    }

    /// The namespaces that any process of the machine is in, as `net:[4026531833]`.
    static func namespaces() -> Set<String> {
        var found: Set<String> = []
        for pid in list("/proc") where Int(pid) != nil && !isZombie(pid) {
            found.formUnion(namespaces(of: pid))
        }
        return found
    }

    /// A zombie is only waiting for the machine's init to take note.
    private static func isZombie(_ pid: String) -> Bool {
        text("/proc/\(pid)/status").contains("State:\tZ")
    }

    static func namespaces(of pid: String) -> [String] {
        ["mnt", "pid", "net", "uts", "ipc"].compactMap {
            try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(pid)/ns/\($0)")
        }
    }

    var description: String {
        """
        mounts \(mounts), directories \(directories), processes \(processes), links \(links), \
        descriptors \(descriptors)
        """
    }

    private static func text(_ path: String) -> String {
        (try? String(contentsOfFile: path, encoding: .utf8)) ?? ""
    }

    private static func list(_ path: String) -> [String] {
        (try? FileManager.default.contentsOfDirectory(atPath: path))?.sorted() ?? []
    }
}
