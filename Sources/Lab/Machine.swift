import Foundation
import Model

/// What the lab needs of the machine that it runs on.
enum Machine {
    private static let tools = [
        "bash", "ip", "libvirtd", "mount", "nsenter", "qemu-system-x86_64", "umount", "virsh",
    ]
    /// The hosts mount their own directories over these.
    private static let directories = [
        "/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt",
    ]
    private static let advice = "install the lab's packages with Scripts/install-dependencies"

    /// - Throws: `FtvmError` that names the first thing missing; nothing was touched.
    static func check(_ specification: LabSpecification) throws {
        for tool in tools where path(of: tool) == nil {
            throw FtvmError(.unsupported, "the lab needs '\(tool)'", advice: advice)
        }
        for directory in directories where !Files.exists(directory) {
            throw FtvmError(
                .unsupported, "the lab needs \(directory)", cause: "libvirt is not installed",
                advice: advice)
        }
        _ = try qemuDriver()
        guard getpwnam(specification.qemuUser) != nil, getgrnam(specification.qemuUser) != nil
        else {
            throw FtvmError(
                .invalidArgument,
                "there is no user and group '\(specification.qemuUser)' for QEMU",
                advice: "give another one with --qemu-user, for example root")
        }
        if let daemon = specification.daemonPath, access(daemon, X_OK) != 0 {
            throw FtvmError(
                .notFound, "there is no ftvmd at \(daemon)",
                advice: "build it with Scripts/build, or give --no-daemon")
        }
    }

    /// - Throws: `FtvmError` `notFound` when there is no QEMU below that directory.
    static func checkQEMU(root: String) throws {
        guard root.hasPrefix("/"), access("\(root)/usr/bin/qemu-system-x86_64", X_OK) == 0 else {
            throw FtvmError(
                .notFound, "there is no usr/bin/qemu-system-x86_64 in '\(root)'",
                advice: "give the absolute path that Scripts/newer-qemu prints")
        }
    }

    /// libvirt's QEMU driver.
    static func qemuDriver() throws -> String {
        let name = "libvirt/connection-driver/libvirt_driver_qemu.so"
        var places = ["/usr/lib64", "/usr/lib"]
        places += Files.list("/usr/lib").map { "/usr/lib/\($0)" }
        for place in places where Files.exists("\(place)/\(name)") { return "\(place)/\(name)" }
        throw FtvmError(.unsupported, "libvirt's QEMU driver is not installed", advice: advice)
    }

    /// What QEMU can do, as libvirt found out earlier: probing takes seconds, and libvirt itself
    /// throws away what does not fit the present QEMU any more.
    static let capabilitiesCache = "/var/cache/ftvm/lab-capabilities"

    static func copyCapabilities(from source: String, to target: String) throws {
        for name in Files.list(source) where name.hasSuffix(".xml") {
            try Files.makeDirectory(target)
            let text = try Files.read("\(source)/\(name)")
            try Files.write(text, to: "\(target)/\(name)")
        }
    }

    private static func path(of tool: String) -> String? {
        let search = ProcessInfo.processInfo.environment["PATH"] ?? ""
        for directory in search.split(separator: ":") + ["/usr/sbin", "/usr/bin"] {
            let path = "\(directory)/\(tool)"
            if access(path, X_OK) == 0 { return path }
        }
        return nil
    }
}
