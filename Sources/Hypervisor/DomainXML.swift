import Model

/// A libvirt domain's XML. Nothing is lost: what no function here changes comes back byte for byte.
/// The forms that ftvm makes of it are in `DomainXML+Forms.swift`, what cannot be protected in
/// `DomainXML+Unsupported.swift`. Format: https://libvirt.org/formatdomain.html
package struct DomainXML: Hashable, Sendable {
    package var tree: XMLTree

    /// Parses a `<domain>` document.
    /// - Throws: `FtvmError(.invalidArgument)` when it is not well-formed, is no domain, or has no
    ///   name.
    package init(_ text: String) throws {
        self.tree = try XMLTree(parsing: text)
        guard tree.root.name == "domain" else {
            throw FtvmError(
                .invalidArgument, "XML document is not a domain",
                cause: "its root element is <\(tree.root.name)>")
        }
        guard let name = tree.root.first("name")?.text, !name.isEmpty else {
            throw FtvmError(.invalidArgument, "domain XML has no name")
        }
        self.name = name
    }

    package let name: String
    package var text: String { tree.text }
    package var root: XMLTree.Element { tree.root }

    /// Lower case with dashes; nil in XML that libvirt has not seen yet.
    package var uuid: String? {
        guard let text = root.first("uuid")?.text.lowercased(), !text.isEmpty else { return nil }
        let digits = text.filter { $0 != "-" }
        guard digits.utf8.count == 32 else { return text }
        var result = ""
        for (index, digit) in digits.enumerated() {
            if [8, 12, 16, 20].contains(index) { result.append("-") }
            result.append(digit)
        }
        return result
    }

    /// The `type` of the domain: kvm, qemu, ...
    package var virtualizationType: String { root["type"] ?? "" }
    /// The id of the running domain; nil in an inactive form.
    package var runningID: Int? { root["id"].flatMap { Int($0) } }
    /// Bytes of guest memory at boot, memory devices included.
    package var memoryBytes: UInt64? { Self.bytes(of: root.first("memory")) }
    /// Bytes that the balloon leaves to the guest; equals `memoryBytes` when the XML does not say.
    package var currentMemoryBytes: UInt64? {
        Self.bytes(of: root.first("currentMemory")) ?? memoryBytes
    }
    /// The largest number of virtual CPUs.
    package var vcpuCount: Int {
        root.first("vcpu").flatMap { Int($0.text) } ?? 1
    }
    package var machineType: String? { root.descend("os", "type")?["machine"] }
    package var architecture: String? { root.descend("os", "type")?["arch"] }
    /// Path of the QEMU program.
    package var emulator: String? { root.descend("devices", "emulator")?.text }
    package var hasNUMACells: Bool {
        !(root.descend("cpu", "numa")?.all("cell").isEmpty ?? true)
    }
    package var memoryBacking: MemoryBacking {
        MemoryBacking(root.first("memoryBacking"))
    }
    package var disks: [Disk] {
        (root.first("devices")?.all("disk") ?? []).map(Disk.init)
    }
    package var interfaces: [Interface] {
        (root.first("devices")?.all("interface") ?? []).map(Interface.init)
    }

    /// Room that the saved device state may need, in bytes. A virtio-gpu keeps its pictures there.
    package var deviceStateBytes: UInt64 {
        let videos = root.first("devices")?.all("video") ?? []
        let hasGPU = videos.contains { $0.first("model")?["type"] == "virtio" }
        return hasGPU ? 64 << 20 : 4 << 20
    }

    /// The number of bytes that an element such as `<memory unit='KiB'>` names.
    /// Units: https://libvirt.org/formatdomain.html#memory-allocation (KiB when not given).
    static func bytes(of element: XMLTree.Element?) -> UInt64? {
        guard let element, let number = UInt64(element.text) else { return nil }
        let factor: UInt64
        switch element["unit"] ?? "KiB" {
        case "b", "bytes": factor = 1
        case "KB": factor = 1_000
        case "k", "KiB": factor = 1 << 10
        case "MB": factor = 1_000_000
        case "M", "MiB": factor = 1 << 20
        case "GB": factor = 1_000_000_000
        case "G", "GiB": factor = 1 << 30
        case "TB": factor = 1_000_000_000_000
        case "T", "TiB": factor = 1 << 40
        default: return nil
        }
        let (product, overflow) = number.multipliedReportingOverflow(by: factor)
        return overflow ? nil : product
    }
}

// MARK: - Parts of a domain

extension DomainXML {
    /// How QEMU is to get the guest's memory.
    package struct MemoryBacking: Hashable, Sendable {
        package var hugePages: Bool
        /// anonymous, file, memfd; nil when not said.
        package var source: String?
        /// shared, private; nil when not said.
        package var access: String?
        package var isLocked: Bool
        package var isPreallocated: Bool
        package var hasNoSharePages: Bool

        package init(_ element: XMLTree.Element?) {
            hugePages = element?.first("hugepages") != nil
            source = element?.first("source")?["type"]
            access = element?.first("access")?["mode"]
            isLocked = element?.first("locked") != nil
            isPreallocated = element?.first("allocation")?["mode"] == "immediate"
            hasNoSharePages = element?.first("nosharepages") != nil
        }
    }

    package struct Disk: Hashable, Sendable {
        /// file, block, network, volume, nvme, vhostuser, dir, ...
        package var type: String
        /// disk, cdrom, floppy, lun.
        package var device: String
        /// The guest's name for it: vda, sda, ...
        package var target: String
        package var bus: String?
        /// The file, device, or name of what stands behind it; nil for an empty drive.
        package var source: String?
        package var isReadOnly: Bool
        package var isTransient: Bool
        /// A block job (mirror, commit) is under way.
        package var hasBlockJob: Bool

        init(_ element: XMLTree.Element) {
            type = element["type"] ?? "file"
            device = element["device"] ?? "disk"
            target = element.first("target")?["dev"] ?? "?"
            bus = element.first("target")?["bus"]
            let origin = element.first("source")
            source =
                origin.flatMap {
                    $0["file"] ?? $0["dev"] ?? $0["name"] ?? $0["volume"] ?? $0["dir"] ?? $0["path"]
                }
            isReadOnly = device == "cdrom" || element.first("readonly") != nil
            isTransient = element.first("transient") != nil
            hasBlockJob = element.first("mirror") != nil
        }
    }

    package struct Interface: Hashable, Sendable {
        /// bridge, network, direct, user, hostdev, vdpa, vhostuser, ...
        package var type: String
        /// The bridge, network or host device it hangs on.
        package var source: String?
        /// The host's device in a running domain (`vnet0`).
        package var hostDevice: String?
        package var mac: String?
        /// virtio, e1000, ...
        package var model: String?
        /// vhost, qemu; nil when libvirt decides.
        package var driver: String?
        /// The mode of a `direct` interface.
        package var mode: String?

        init(_ element: XMLTree.Element) {
            type = element["type"] ?? "?"
            let origin = element.first("source")
            source = origin.flatMap {
                $0["bridge"] ?? $0["network"] ?? $0["dev"] ?? $0["path"] ?? $0["name"]
            }
            mode = origin?["mode"]
            hostDevice = element.first("target")?["dev"]
            mac = element.first("mac")?["address"]
            model = element.first("model")?["type"]
            driver = element.first("driver")?["name"]
        }
    }
}
