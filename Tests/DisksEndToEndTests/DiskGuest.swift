import ControlAPI
import EndToEndSupport
import Foundation
import Lab
import Model
import Testing

/// The guest of `Scripts/disk-guest-image`: its root file system, with a database on it, is a disk.
struct DiskGuest: Sendable {
    struct Disk: Sendable {
        let target: String
        var bus = "virtio"
        var format = "raw"
        let path: String
        /// A loop device, with `path` its own.
        var isDevice = false
        /// The file behind a loop device.
        var backing: String?
        /// `error_policy` in its XML.
        var policy: String?

        var xml: String {
            let kind = isDevice ? ("block", "dev") : ("file", "file")
            let error = policy.map { " error_policy='\($0)'" } ?? ""
            return "<disk type='\(kind.0)' device='disk'><driver name='qemu' type='\(format)' "
                + "discard='unmap'\(error)/><source \(kind.1)='\(path)'/>"
                + "<target dev='\(target)' bus='\(bus)'/></disk>"
        }
    }

    static let name = "demo-disk"
    let lab: TestLab
    /// On storage that all hosts of a lab reach.
    let directory: String
    var disks: [Disk]
    let images: String
    private var unlogged = ""
    private var domain = GuestDomain()
    var address: String { domain.address }

    /// A new guest that has not been started, its images fresh.
    /// - Parameter more: disks besides the root disk `vda`, with their sizes in MiB.
    static func make(
        _ lab: TestLab, rootFormat: String = "raw",
        more: [(target: String, bus: String, format: String, mebibytes: Int)] = []
    ) async throws -> DiskGuest {
        let images = try await Command.succeed(
            [Settings.repository("Scripts/disk-guest-image")], seconds: 120
        ).trimmingCharacters(in: .whitespacesAndNewlines)
        let directory = "/var/tmp/ftvm-disks-\(lab.layout.name)"
        try await detachLeftLoops(directory)
        try? FileManager.default.removeItem(atPath: directory)
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: true)
        chmod(directory, 0o755)
        var guest = DiskGuest(lab: lab, directory: directory, disks: [], images: images)
        let root = Disk(
            target: "vda", format: rootFormat, path: "\(directory)/vda.\(rootFormat)")
        _ = try await Command.succeed([
            "qemu-img", "convert", "-q", "-f", "raw", "-O", rootFormat, "\(images)/root.img",
            root.path,
        ])
        guest.disks.append(root)
        for disk in more where disk.format == "device" {
            guest.disks.append(
                try await loopDisk(
                    disk.target, disk.bus, "\(directory)/\(disk.target).loop",
                    mebibytes: disk.mebibytes))
        }
        for disk in more where disk.format != "device" {
            let path = "\(directory)/\(disk.target).\(disk.format)"
            _ = try await Command.succeed([
                "qemu-img", "create", "-q", "-f", disk.format, path, "\(disk.mebibytes)M",
            ])
            guest.disks.append(
                Disk(target: disk.target, bus: disk.bus, format: disk.format, path: path))
        }
        return guest
    }

    /// A loop device as a disk, over a file that is made.
    static func loopDisk(
        _ target: String, _ bus: String, _ file: String, mebibytes: Int
    ) async throws -> Disk {
        _ = try await Command.succeed(["truncate", "-s", "\(mebibytes)M", file])
        let device = try await Command.succeed(["losetup", "--find", "--show", file])
        return Disk(
            target: target, bus: bus,
            path: device.trimmingCharacters(in: .whitespacesAndNewlines), isDevice: true,
            backing: file)
    }

    private init(lab: TestLab, directory: String, disks: [Disk], images: String) {
        self.lab = lab
        self.directory = directory
        self.disks = disks
        self.images = images
        domain.name = Self.name
        domain.number = 20
        domain.memoryMiB = 192
        domain.checkMiB = 8
        domain.imageDirectory = images
    }

    /// - Parameter name: of the domain, and with it another UUID.
    func xml(name: String = DiskGuest.name, number: Int = 20) throws -> String {
        var domain = domain
        domain.name = name
        domain.number = number
        let template = try String(
            contentsOfFile: Settings.repository("Examples/demo.xml"), encoding: .utf8)
        let hasSCSI = disks.contains { $0.bus == "scsi" }
        let controller = hasSCSI ? "<controller type='scsi' model='virtio-scsi'/>" : ""
        return try domain.xml(template: template).replacingOccurrences(
            of: "<devices>",
            with: "<devices>" + disks.map(\.xml).joined() + controller + unlogged)
    }

    /// Disks that nobody writes to: a read-only one that begins with `number`, a CD-ROM, and an empty drive.
    mutating func addReadOnly(number: UInt64) throws {
        var bytes = Data(count: 1 << 20)
        bytes.withUnsafeMutableBytes { $0.storeBytes(of: number.littleEndian, as: UInt64.self) }
        for name in ["readonly.raw", "medium.iso"] {
            try bytes.write(to: URL(fileURLWithPath: "\(directory)/\(name)"))
        }
        unlogged =
            "<disk type='file' device='disk'><driver name='qemu' type='raw'/>"
            + "<source file='\(directory)/readonly.raw'/><target dev='vdd' bus='virtio'/>"
            + "<readonly/></disk>"
            + "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>"
            + "<source file='\(directory)/medium.iso'/><target dev='sdy' bus='scsi'/><readonly/></disk>"
            + "<disk type='file' device='cdrom'><target dev='sdz' bus='scsi'/><readonly/></disk>"
    }

    func start(on host: HostName) async throws {
        _ = try await lab.define(xml: try xml(), on: host, name: Self.name)
        _ = try await lab.virsh(host, "start", Self.name)
        _ = try await connect(seconds: 90)
    }

    /// - Returns: once it is protected.
    func enable(_ options: String...) async throws -> PairView {
        let outcome = try await lab.attempt(["enable", Self.name] + options)
        try #require(outcome.status == 0, "\(outcome.errorOutput)")
        return try await lab.protected(of: Self.name)
    }

    func protected(
        _ what: String, where isWanted: (PairView) -> Bool = { _ in true }
    ) async throws -> PairView {
        try await lab.protected(what, of: Self.name, where: isWanted)
    }

    /// A connection to the database.
    func connect(seconds: Int = 30) async throws -> GuestClient {
        try await Self.connect(lab, address, seconds: seconds)
    }

    static func connect(_ lab: TestLab, _ address: String, seconds: Int = 30) async throws
        -> GuestClient
    {
        try await eventually("the guest's database answers", seconds: seconds) {
            do {
                _ = try GuestClient(
                    lab.layout, address: address, port: 7790, timeout: .seconds(3)
                ).ask("count")
                return try GuestClient(
                    lab.layout, address: address, port: 7790, timeout: .seconds(60))
            } catch let error as FtvmError where error.code == .unavailable {
                return nil
            }
        }
    }

    /// The disks are images again, whose guest runs.
    func disable() async throws { try await lab.disable(Self.name) }

    func shutDown(on host: HostName) async throws {
        try await lab.shutDown(Self.name, on: host)
    }

    /// What a guest that has ended wrote last is in its images: the journal goes after that.
    func expectSettled() async throws {
        try await eventually("the disks are settled") { () async throws -> Void? in
            FileManager.default.fileExists(atPath: disks[0].path + ".ftvm-journal") ? nil : ()
        }
    }

    func remove() async throws {
        try await lab.removeDemo(Self.name)
        #expect(try nbdkits() == [], "disk servers that nobody needs")
        let left = try FileManager.default.contentsOfDirectory(atPath: directory)
        #expect(left.filter { $0.hasSuffix("journal") } == [])
        try await detachLoops()
        try FileManager.default.removeItem(atPath: directory)
    }

    /// Of a test that has failed.
    private static func detachLeftLoops(_ directory: String) async throws {
        let list = try await Command.succeed([
            "losetup", "--list", "--noheadings", "--raw", "--output", "NAME,BACK-FILE",
        ])
        for line in list.split(separator: "\n") {
            let words = line.split(separator: " ", maxSplits: 1)
            guard words.count == 2, words[1].hasPrefix(directory + "/") else { continue }
            _ = try await Command.succeed(["losetup", "--detach", String(words[0])])
        }
    }

    func detachLoops() async throws {
        for disk in disks where disk.isDevice {
            _ = try await Command.succeed(["losetup", "--detach", disk.path])
        }
    }

    /// The lab's processes that serve disks.
    func nbdkits() throws -> [Int32] {
        try FileManager.default.contentsOfDirectory(atPath: "/proc").compactMap { Int32($0) }
            .filter { pid in
                let arguments = ProcessView(pid: pid).arguments
                return arguments.first?.hasSuffix("/nbdkit") ?? false
                    && arguments.contains { $0.hasPrefix("/run/\(lab.layout.name)/") }
            }
    }

    /// A copy of the root disk as raw, taken while the guest, if it runs, stands still.
    func copyOfRoot(_ host: HostName? = nil) async throws -> String {
        if let host { _ = try await lab.virsh(host, "suspend", Self.name) }
        let copy = "\(directory)/copy.raw"
        _ = try await Command.succeed([
            "qemu-img", "convert", "-q", "-U", "-f", disks[0].format, "-O", "raw", disks[0].path,
            copy,
        ])
        if let host { _ = try await lab.virsh(host, "resume", Self.name) }
        return copy
    }

    /// A file system that needs no more than its journal: what a mount does by itself.
    func expectCleanFileSystem(_ copy: String) async throws {
        _ = try await Command.attempt(["e2fsck", "-E", "journal_only", "-y", copy])
        let checked = try await Command.attempt(["e2fsck", "-fn", copy])
        #expect(checked.status == 0, "\(checked.output)\(checked.errorOutput)")
    }
}
