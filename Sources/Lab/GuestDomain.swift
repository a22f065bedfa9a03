import Foundation
import Model

/// A demo guest as a libvirt domain: `Examples/demo.xml` with other values.
package struct GuestDomain: Hashable, Sendable {
    package var name = "demo"
    /// The guest's number on the lab's network, 10...99: its address is 10.77.0.NUMBER.
    package var number = 10
    package var memoryMiB = 256
    package var vcpus = 1
    /// Size of the region that checks itself, in MiB; leave 100 MiB of memory to the guest's
    /// kernel.
    package var checkMiB = 32
    /// CPUs that can be plugged in while it runs, with `vcpus`; nil: no more.
    package var pluggableCPUs: Int?
    /// Pages of it that are rewritten per second.
    package var dirtyPagesPerSecond = 2000
    /// Where `Scripts/guest-image` put kernel and initrd.
    package var imageDirectory = "/var/cache/ftvm/guest"
    package var usesKVM = false
    /// With Debian's redis-server, which answers on its usual port.
    package var hasRedis = false
    /// With a second network card, on the same switch but in a network of its own, 10.78.0.0/24.
    package var hasSecondCard = false
    /// `pc` or `q35`.
    package var machine = "pc"
    /// With UEFI firmware (OVMF) and variables of its own.
    package var usesUEFI = false
    /// The model of its screen; nil: none.
    package var video: String?
    /// What is in its `<memoryBacking>`; nil: it has none.
    package var memoryBacking: String?
    /// With what most guests have: USB tablet, balloon, a second console, the agent's channel, panic device.
    package var hasUsualDevices = false
    /// Images that it is given as disks, which nothing in it uses.
    package var disks: [Disk] = []
    /// Its memory and CPUs are divided between so many NUMA cells; nil: there are none.
    package var numaCells: Int?

    package struct Disk: Hashable, Sendable {
        package var path: String
        /// `raw` or `qcow2`.
        package var format: String
        /// `virtio` or `scsi`.
        package var bus: String

        package init(path: String, format: String, bus: String) {
            self.path = path
            self.format = format
            self.bus = bus
        }
    }

    package init() {}

    package var address: String { "10.77.0.\(number)" }
    package var macAddress: String { "52:54:00:77:00:\(number)" }
    /// Of the second card, if there is one.
    package var secondAddress: String { "10.78.0.\(number)" }
    package var secondMACAddress: String { "52:54:00:78:00:\(number)" }
    private static let secondInterface = """
        <interface type='bridge'>
              <mac address='%'/>
              <source bridge='br0'/>
              <model type='virtio'/>
              <driver name='qemu'/>
            </interface>
            <serial type='file'>
        """

    private static let usualDevices = """
        <console type='pty'><target type='virtio'/></console>
            <channel type='unix'>
              <target type='virtio' name='org.qemu.guest_agent.0'/>
            </channel>
            <input type='tablet' bus='usb'/>
            <panic model='isa'/>
            <controller type='usb' model='qemu-xhci'/>
            <memballoon model='virtio'/>
        """

    /// What makes it another machine than the template's.
    private var variants: [(String, String)] {
        var changes = [("machine='pc'>", "machine='\(machine)'>")]
        if usesUEFI { changes.append(("<os>", "<os firmware='efi'>")) }
        if let memoryBacking {
            changes.append(
                ("</memory>", "</memory>\n  <memoryBacking>\(memoryBacking)</memoryBacking>"))
        }
        if let numaCells {
            precondition(vcpus >= numaCells && memoryMiB % numaCells == 0, "each cell has its part")
            let cells = (0..<numaCells).map { cell in
                let cpus = stride(from: cell, to: vcpus, by: numaCells).map(String.init)
                return "<cell id='\(cell)' cpus='\(cpus.joined(separator: ","))' "
                    + "memory='\(memoryMiB / numaCells)' unit='MiB'/>"
            }
            changes.append(
                ("</features>", "</features>\n  <cpu><numa>\(cells.joined())</numa></cpu>"))
        }
        if !disks.isEmpty {
            let letters = Array("abcdefgh")
            var elements = disks.enumerated().map { index, disk in
                "<disk type='file' device='disk'><driver name='qemu' type='\(disk.format)'/>"
                    + "<source file='\(disk.path)'/><target dev='"
                    + "\(disk.bus == "scsi" ? "sd" : "vd")\(letters[index])' bus='\(disk.bus)'/></disk>"
            }
            if disks.contains(where: { $0.bus == "scsi" }) {
                elements.append("<controller type='scsi' model='virtio-scsi'/>")
            }
            changes.append(("<devices>", "<devices>\n    " + elements.joined()))
        }
        if let video {
            changes.append(
                (
                    "<model type='none'/>\n    </video>",
                    "<model type='\(video)'/>\n    </video>\n    <graphics type='vnc' autoport='yes'/>"
                ))
        }
        if hasUsualDevices {
            changes.append(
                (
                    "<controller type='usb' model='none'/>\n    <memballoon model='none'/>",
                    Self.usualDevices
                ))
        }
        return changes
    }

    /// The domain's XML.
    /// - Parameter template: the text of `Examples/demo.xml`.
    /// - Throws: `FtvmError` `invalidArgument` when the template is another one.
    package func xml(template: String) throws -> String {
        precondition((10...99).contains(number), "numbers up to 9 and over 100 are the lab's own")
        var settings =
            "ftvm.ip=\(address)/\(LabLayout.prefixLength) ftvm.check_mib=\(checkMiB) "
            + "ftvm.dirty_pages_per_second=\(dirtyPagesPerSecond) ftvm.vcpus=\(vcpus)"
        if hasSecondCard { settings += " ftvm.ip2=\(secondAddress)/\(LabLayout.prefixLength)" }
        let devices =
            hasSecondCard
            ? Self.secondInterface.replacingOccurrences(of: "%", with: secondMACAddress)
            : "<serial type='file'>"
        let changes =
            variants + [
                ("<domain type='qemu'>", "<domain type='\(usesKVM ? "kvm" : "qemu")'>"),
                ("<name>demo</name>", "<name>\(name)</name>"),
                ("0a4d00000010</uuid>", "0a4d000000\(number)</uuid>"),
                ("<memory unit='MiB'>256<", "<memory unit='MiB'>\(memoryMiB)<"),
                (
                    "<vcpu>1<",
                    pluggableCPUs.map { "<vcpu current='\(vcpus)'>\($0)<" } ?? "<vcpu>\(vcpus)<"
                ),
                (">/var/cache/ftvm/guest/vmlinuz<", ">\(imageDirectory)/vmlinuz<"),
                (
                    ">/var/cache/ftvm/guest/initrd<",
                    ">\(imageDirectory)/\(hasRedis ? "initrd-redis" : "initrd")<"
                ),
                ("ftvm.ip=10.77.0.10/24", settings),
                ("52:54:00:77:00:10", macAddress), ("<serial type='file'>", devices),
                ("demo-console.log", "\(name)-console.log"),
            ]
        return try changes.reduce(template) { text, change in
            guard text.components(separatedBy: change.0).count == 2 else {
                throw FtvmError(
                    .invalidArgument, "this is not Examples/demo.xml",
                    cause: "'\(change.0)' must be in it once")
            }
            return text.replacingOccurrences(of: change.0, with: change.1)
        }
    }
}

extension Lab {
    /// Runs `virsh` on a host's libvirt, from outside the host; gives what it prints.
    /// - Throws: `FtvmError` `internalError` with what virsh said.
    @discardableResult
    package func virsh(_ host: HostName, _ arguments: [String]) async throws -> String {
        try await Tool.run(["virsh", "--connect", layout.libvirtURI(of: host)] + arguments)
    }

    /// Defines a domain on a host.
    package func define(_ xml: String, on host: HostName) async throws {
        let path = "\(layout.directory(of: host))/define.xml"
        try Files.write(xml, to: path)
        try await virsh(host, ["define", path])
        try Files.removeTree(path)
    }
}
