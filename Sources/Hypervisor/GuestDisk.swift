import Model

/// A writable disk of a guest that the redo log protects: a file or block device, and what libvirt has made of it in
/// QEMU.
package struct GuestDisk: Hashable, Sendable {
    package enum Format: String, Sendable, Codable { case raw, qcow2 }

    /// The guest's name for it, `vda`: also its name in the log and as an NBD export.
    package let target: String
    package let format: Format
    /// The image's path on this host.
    package let path: String
    package let isDevice: Bool
    /// libvirt's number of the image, from which it makes the names of QEMU's block nodes; nil while the domain does
    /// not run.
    package let index: Int?
    /// Number of the backing image of a qcow2 overlay.
    let backingIndex: Int?
    /// As in `<driver>`.
    let cache: String?
    let io: String?
    let discard: String?
    let detectZeroes: String?

    /// QEMU's node of the image's format.
    package var formatNode: String { "libvirt-\(index ?? 0)-format" }
    /// QEMU's node of the file itself.
    package var storageNode: String { "libvirt-\(index ?? 0)-storage" }
    /// The node that takes the file's place while the disk is protected.
    package var serverNode: String { "ftvm-\(target)" }

    init?(_ element: XMLTree.Element) {
        let disk = DomainXML.Disk(element)
        guard disk.needsLog, let path = disk.source else { return nil }
        let driver = element.first("driver")
        target = disk.target
        format = Format(rawValue: driver?["type"] ?? "raw") ?? .raw
        self.path = path
        isDevice = disk.type == "block"
        index = element.first("source")?["index"].flatMap { Int($0) }
        backingIndex = element.first("backingStore")?.first("source")?["index"].flatMap { Int($0) }
        cache = driver?["cache"]
        io = driver?["io"]
        discard = driver?["discard"]
        detectZeroes = driver?["detect_zeroes"]
    }
}

extension DomainXML {
    /// The disks that the redo log protects, in the XML's order.
    package var guestDisks: [GuestDisk] {
        (root.first("devices")?.all("disk") ?? []).compactMap(GuestDisk.init)
    }
}

extension DomainXML.Disk {
    /// The guest writes to it, and something is in it.
    var needsLog: Bool { !isReadOnly && device == "disk" && ["file", "block"].contains(type) }
}

// MARK: - What can be protected

extension DomainXML {
    static func diskFindings(_ element: XMLTree.Element) -> [UnsupportedFinding] {
        let disk = Disk(element)
        let name = "\(disk.device) \(disk.target)"
        let refusal =
            placeRefusal(disk) ?? stateRefusal(disk, element)
            ?? (disk.needsLog ? logRefusal(disk, element) : nil)
        if let refusal { return [refuse(name, refusal.why, refusal.advice)] }
        guard let source = disk.source, disk.type != "network" else { return [] }
        return [
            warn(
                name, "\(source) must be there under the same name on every host",
                "keep it on shared storage")
        ]
    }

    private typealias Refusal = (why: String, advice: String)

    /// What is behind the disk is nothing that another host could go on with.
    private static func placeRefusal(_ disk: Disk) -> Refusal? {
        switch disk.type {
        case "vhostuser", "vhostvdpa":
            return (
                "type \(disk.type): its state is in another process or in hardware",
                "use a disk that QEMU serves itself"
            )
        case "nvme":
            return ("type nvme: a device of this host", "use storage that all hosts reach")
        default: break
        }
        if disk.device == "lun" {
            return ("SCSI commands go to a device of this host past QEMU", "use device='disk'")
        }
        guard !disk.isReadOnly, !["file", "block"].contains(disk.type) else { return nil }
        return (
            "type \(disk.type), writable: its writes cannot go through the disk log",
            "use an image file or a block device that all hosts reach"
        )
    }

    /// What the user does with it does not go together with being protected.
    private static func stateRefusal(_ disk: Disk, _ element: XMLTree.Element) -> Refusal? {
        if disk.hasBlockJob {
            return ("a block job is under way", "wait for it to end, or cancel it")
        }
        if disk.isTransient {
            return (
                "transient: its writes are in a file of this host that ends with the domain",
                "remove <transient/>"
            )
        }
        if disk.device == "floppy", !disk.isReadOnly {
            return ("a floppy that is written to", "make it read-only, or remove it")
        }
        if !disk.isReadOnly, element.first("shareable") != nil {
            return (
                "shareable: another guest may write to it past the disk log", "remove <shareable/>"
            )
        }
        return nil
    }

    /// What the log cannot stand below.
    private static func logRefusal(_ disk: Disk, _ element: XMLTree.Element) -> Refusal? {
        let driver = element.first("driver")
        let format = driver?["type"] ?? "raw"
        guard GuestDisk.Format(rawValue: format) != nil else {
            return ("format \(format)", "convert it to qcow2 or raw with qemu-img")
        }
        guard ["virtio", "scsi", "sata", "ide"].contains(disk.bus ?? "") else {
            return ("bus \(disk.bus ?? "?")", "use virtio or scsi")
        }
        if let policy = driver?["error_policy"], policy == "report" || policy == "ignore" {
            return (
                "error_policy \(policy): the guest would see an error where it has to wait while the "
                    + "disk log is full", "use enospace or stop"
            )
        }
        if driver?["iothread"] != nil || driver?.first("iothreads") != nil {
            return ("it has an iothread, which has not been tried", "remove iothread from <driver>")
        }
        if driver?["copy_on_read"] == "on" {
            return ("copy_on_read: QEMU copies blocks by itself", "remove copy_on_read")
        }
        if driver?.first("metadata_cache") != nil {
            return ("a qcow2 metadata cache of its own size", "remove <metadata_cache>")
        }
        let source = element.first("source")
        for part in ["encryption", "slices", "reservations", "dataStore"]
        where source?.first(part) != nil || element.first(part) != nil {
            return ("\(part) in <source>", "use an image without it")
        }
        guard LoggedDiskName.isUsable(disk.target) else {
            return ("its name cannot be one in the disk log", "use a name such as vda")
        }
        return nil
    }
}

/// Names that the disk log takes (`Documentation/Disks.md`).
enum LoggedDiskName {
    static func isUsable(_ name: String) -> Bool {
        (1...31).contains(name.utf8.count)
            && name.utf8.allSatisfy { byte in
                switch byte {
                case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                    UInt8(ascii: "0")...UInt8(ascii: "9"):
                    true
                default: false
                }
            }
    }
}
