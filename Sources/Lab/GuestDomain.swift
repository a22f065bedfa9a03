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
    /// Pages of it that are rewritten per second.
    package var dirtyPagesPerSecond = 2000
    /// Where `Scripts/guest-image` put kernel and initrd.
    package var imageDirectory = "/var/cache/ftvm/guest"
    package var usesKVM = false

    package init() {}

    package var address: String { "10.77.0.\(number)" }

    /// The domain's XML.
    /// - Parameter template: the text of `Examples/demo.xml`.
    /// - Throws: `FtvmError` `invalidArgument` when the template is another one.
    package func xml(template: String) throws -> String {
        precondition((10...99).contains(number), "numbers up to 9 and over 100 are the lab's own")
        let settings =
            "ftvm.ip=\(address)/\(LabLayout.prefixLength) ftvm.check_mib=\(checkMiB) "
            + "ftvm.dirty_pages_per_second=\(dirtyPagesPerSecond) ftvm.vcpus=\(vcpus)"
        let changes = [
            ("<domain type='qemu'>", "<domain type='\(usesKVM ? "kvm" : "qemu")'>"),
            ("<name>demo</name>", "<name>\(name)</name>"),
            ("0a4d00000010</uuid>", "0a4d000000\(number)</uuid>"),
            ("<memory unit='MiB'>256<", "<memory unit='MiB'>\(memoryMiB)<"),
            ("<vcpu>1<", "<vcpu>\(vcpus)<"),
            (">/var/cache/ftvm/guest/vmlinuz<", ">\(imageDirectory)/vmlinuz<"),
            (">/var/cache/ftvm/guest/initrd<", ">\(imageDirectory)/initrd<"),
            ("ftvm.ip=10.77.0.10/24", settings),
            ("52:54:00:77:00:10", "52:54:00:77:00:\(number)"),
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
