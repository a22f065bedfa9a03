import Hypervisor
import Model
import Testing

@Suite struct UnsupportedTests {
    struct Case: Sendable, CustomTestStringConvertible {
        var devices = ""
        var elements = ""
        /// How the device is named; nil: nothing is found.
        let named: String?
        /// A part of the reason.
        var why = ""
        var severity = UnsupportedFinding.Severity.error
        var testDescription: String { devices + elements }
    }

    static let cases: [Case] = [
        Case(devices: "<video><model type='none'/></video>", named: nil),
        Case(devices: "<video><model type='qxl'/></video>", named: "video qxl", why: "viewer"),
        Case(devices: "<video><model type='vga' vram='16384'/></video>", named: nil),
        Case(devices: "<video><model type='bochs'/></video>", named: nil),
        Case(
            devices: "<video><model type='virtio'/></video>", named: "video virtio",
            why: "each commit", severity: .warning),
        Case(
            devices: "<video><model type='virtio'><acceleration accel3d='yes'/></model></video>",
            named: "video virtio", why: "graphics processor"),
        Case(
            devices: """
                <hostdev mode='subsystem' type='pci' managed='yes'>
                  <source><address domain='0x0000' bus='0x03' slot='0x00' function='0x1'/></source>
                </hostdev>
                """, named: "hostdev 0000:03:00.1", why: "past the page tracker"),
        Case(
            devices: """
                <hostdev mode='subsystem' type='usb'>
                  <source><vendor id='0x1234'/><product id='0xbeef'/></source>
                </hostdev>
                """, named: "hostdev usb 0x1234:0xbeef"),
        Case(
            devices: "<hostdev mode='subsystem' type='mdev'><source><address uuid='x'/></source>"
                + "<alias name='hostdev0'/></hostdev>", named: "hostdev hostdev0"),
        Case(
            devices: "<interface type='hostdev'><mac address='52:54:00:00:00:01'/></interface>",
            named: "interface 52:54:00:00:00:01 type hostdev"),
        Case(
            devices: "<interface type='vdpa'><mac address='52:54:00:00:00:01'/></interface>",
            named: "interface 52:54:00:00:00:01 type vdpa"),
        Case(
            devices: "<interface type='vhostuser'><mac address='52:54:00:00:00:01'/></interface>",
            named: "interface 52:54:00:00:00:01 type vhostuser"),
        Case(
            devices: "<interface type='direct'><mac address='52:54:00:00:00:01'/>"
                + "<source dev='eth0' mode='passthrough'/></interface>",
            named: "interface 52:54:00:00:00:01 type direct", why: "eth0"),
        Case(
            devices: "<interface type='direct'><mac address='52:54:00:00:00:01'/>"
                + "<source dev='eth0' mode='bridge'/></interface>",
            named: "interface 52:54:00:00:00:01 type direct", severity: .warning),
        Case(
            devices: "<interface type='bridge'><mac address='52:54:00:00:00:01'/>"
                + "<source bridge='br0'/><model type='virtio'/><driver name='vhost'/></interface>",
            named: "interface 52:54:00:00:00:01 type bridge", why: "vhost", severity: .warning),
        Case(
            devices: "<interface type='bridge'><mac address='52:54:00:00:00:01'/>"
                + "<source bridge='br0'/><model type='virtio'/></interface>",
            named: "interface 52:54:00:00:00:01 type bridge", why: "vhost", severity: .warning),
        Case(
            devices: "<interface type='bridge'><source bridge='br0'/><model type='virtio'/>"
                + "<driver name='qemu'/></interface>", named: nil),
        Case(
            devices: "<interface type='bridge'><mac address='52:54:00:00:00:01'/>"
                + "<source bridge='br0'/><model type='virtio'/><driver name='qemu' queues='4'/>"
                + "</interface>",
            named: "interface 52:54:00:00:00:01 type bridge", why: "4 queues"),
        Case(
            devices: "<interface type='user'><mac address='52:54:00:00:00:01'/></interface>",
            named: "interface 52:54:00:00:00:01 type user", why: "cannot be held back"),
        Case(
            devices: "<interface type='udp'><mac address='52:54:00:00:00:01'/></interface>",
            named: "interface 52:54:00:00:00:01 type udp", why: "cannot be held back"),
        Case(devices: "<interface type='null'/>", named: nil),
        Case(
            devices:
                "<interface type='bridge'><source bridge='br0'/><model type='e1000'/></interface>",
            named: nil),
        Case(
            devices: "<filesystem type='mount'><driver type='virtiofs'/><source dir='/a'/>"
                + "<target dir='share'/></filesystem>", named: "filesystem share", why: "virtiofsd"),
        Case(
            devices:
                "<filesystem type='mount'><source dir='/a'/><target dir='share'/></filesystem>",
            named: "filesystem share", why: "open files"),
        Case(
            devices: "<disk type='vhostuser' device='disk'><target dev='vda'/></disk>",
            named: "disk vda", why: "vhostuser"),
        Case(
            devices:
                "<disk type='file' device='disk'><source file='/a'/>"
                + "<target dev='vda' bus='virtio'/></disk>",
            named: "disk vda", why: "/a must be there", severity: .warning),
        Case(
            devices:
                "<disk type='block' device='disk'><driver type='qcow2'/><source dev='/dev/x'/>"
                + "<target dev='sda' bus='scsi'/></disk>",
            named: "disk sda", why: "/dev/x must be there", severity: .warning),
        Case(
            devices:
                "<disk type='file' device='disk'><source file='/a'/>"
                + "<target dev='sda' bus='usb'/></disk>",
            named: "disk sda", why: "bus usb"),
        Case(
            devices:
                "<disk type='file' device='disk'><driver type='vmdk'/><source file='/a'/>"
                + "<target dev='vda' bus='virtio'/></disk>",
            named: "disk vda", why: "format vmdk"),
        Case(
            devices:
                "<disk type='file' device='disk'><driver type='raw' error_policy='report'/>"
                + "<source file='/a'/><target dev='vda' bus='virtio'/></disk>",
            named: "disk vda", why: "error_policy report"),
        Case(
            devices:
                "<disk type='file' device='disk'><driver type='raw' iothread='1'/>"
                + "<source file='/a'/><target dev='vda' bus='virtio'/></disk>",
            named: "disk vda", why: "iothread"),
        Case(
            devices:
                "<disk type='file' device='disk'><source file='/a'><encryption format='luks'/>"
                + "</source><target dev='vda' bus='virtio'/></disk>",
            named: "disk vda", why: "encryption"),
        Case(
            devices: "<disk type='file' device='disk'><source file='/a'/>"
                + "<target dev='vda' bus='virtio'/><shareable/></disk>",
            named: "disk vda", why: "shareable"),
        Case(
            devices: "<disk type='network' device='disk'><source protocol='rbd' name='a'/>"
                + "<target dev='vda' bus='virtio'/></disk>",
            named: "disk vda", why: "type network"),
        Case(
            devices:
                "<disk type='file' device='floppy'><source file='/a'/><target dev='fda'/></disk>",
            named: "floppy fda", why: "floppy"),
        Case(
            devices:
                "<disk type='block' device='lun'><source dev='/dev/sdx'/><target dev='sda'/></disk>",
            named: "lun sda"),
        Case(
            devices: "<disk type='nvme' device='disk'><target dev='vda'/><readonly/></disk>",
            named: "disk vda", why: "nvme"),
        Case(
            devices: "<disk type='file' device='disk'><source file='/a'/><target dev='vda'/>"
                + "<readonly/><transient/></disk>", named: "disk vda"),
        Case(
            devices: "<disk type='file' device='disk'><source file='/a'/><target dev='vda'/>"
                + "<mirror type='file' job='copy'/></disk>", named: "disk vda", why: "block job"),
        Case(
            devices: "<disk type='file' device='disk'><source file='/images/a.raw'/>"
                + "<target dev='vda'/><readonly/></disk>",
            named: "disk vda", why: "/images/a.raw", severity: .warning),
        Case(devices: "<disk type='file' device='cdrom'><target dev='sda'/></disk>", named: nil),
        Case(
            devices: "<tpm model='tpm-crb'><backend type='emulator'/></tpm>", named: "tpm tpm-crb",
            why: "emulator"),
        Case(devices: "<shmem name='shared0'/>", named: "shmem shared0"),
        Case(devices: "<memory model='dimm'><target/></memory>", named: "memory dimm"),
        Case(
            devices: "<redirdev bus='usb' type='spicevmc'><alias name='redir0'/></redirdev>",
            named: "redirdev redir0"),
        Case(devices: "<vsock model='virtio'/>", named: "vsock virtio"),
        Case(devices: "<crypto model='virtio' type='qemu'/>", named: "crypto virtio"),
        Case(devices: "<smartcard mode='host'/>", named: "smartcard"),
        Case(
            devices:
                "<input type='passthrough' bus='virtio'><source evdev='/dev/input/event1'/></input>",
            named: "input passthrough /dev/input/event1"),
        Case(devices: "<input type='tablet' bus='usb'/>", named: nil),
        Case(
            devices: "<serial type='dev'><source path='/dev/ttyS0'/><target port='0'/></serial>",
            named: "serial 0", why: "/dev/ttyS0"),
        Case(devices: "<serial type='pty'/>", named: nil),
        Case(
            devices: "<serial type='tcp'><source mode='bind' host='::' service='1'/></serial>",
            named: nil),
        Case(
            devices:
                "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>",
            named: "channel com.redhat.spice.0", severity: .warning),
        Case(devices: "<graphics type='vnc'/>", named: nil),
        Case(
            devices: "<graphics type='spice'><gl enable='yes'/></graphics>", named: "graphics spice"
        ),
        Case(devices: "<iommu model='intel'/>", named: "iommu intel", severity: .warning),
        Case(devices: "<quantumlink model='q1'/>", named: "quantumlink q1", why: "does not know"),
        Case(
            devices: "<memballoon model='virtio' freePageReporting='on'/>",
            named: "memballoon virtio freePageReporting", severity: .warning),
        Case(elements: "<genid/>", named: "genid"),
        Case(elements: "<maxMemory slots='4'>1048576</maxMemory>", named: "maxMemory"),
        Case(elements: "<cpu><numa><cell id='0' memory='1'/></numa></cpu>", named: nil),
        Case(
            elements: "<cpu><numa><cell id='0' memory='1' memAccess='shared'/></numa></cpu>",
            named: "numa cells", why: "another process"),
        Case(
            elements: "<cpu mode='host-passthrough'/>", named: "cpu mode host-passthrough",
            severity: .warning),
        Case(elements: "<cpu mode='host-model'/>", named: nil),
        Case(elements: "<launchSecurity type='sev'/>", named: "launchSecurity sev"),
        Case(
            elements: "<memoryBacking><hugepages/></memoryBacking>",
            named: "memoryBacking hugepages", why: "pool"),
        Case(
            elements: "<memoryBacking><source type='memfd'/></memoryBacking>",
            named: "memoryBacking source memfd"),
        Case(
            elements:
                "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>",
            named: "memoryBacking access shared", severity: .warning),
        Case(elements: "<memoryBacking><locked/></memoryBacking>", named: "memoryBacking locked"),
        Case(
            elements: "<memoryBacking><nosharepages/></memoryBacking>",
            named: "memoryBacking nosharepages", severity: .warning),
        Case(
            elements: "<memoryBacking><allocation mode='immediate'/></memoryBacking>",
            named: "memoryBacking allocation immediate", severity: .warning),
        Case(elements: "<on_crash>destroy</on_crash>", named: nil),
        Case(
            elements:
                "<q:commandline xmlns:q='\(DomainCorpus.qemuURI)'><q:arg value='-s'/></q:commandline>",
            named: "q:commandline", severity: .warning),
    ]

    @Test(arguments: cases)
    func everyDeviceIsJudged(_ test: Case) throws {
        let domain = try DomainXML(
            DomainCorpus.domain(devices: test.devices, elements: test.elements))
        let findings = domain.unsupportedDevices()
        #expect(findings.map(\.device) == (test.named.map { [$0] } ?? []))
        for finding in findings {
            #expect(finding.severity == test.severity)
            #expect(test.why.isEmpty || finding.why.contains(test.why), "\(finding)")
            #expect(!finding.advice.isEmpty && !finding.why.isEmpty)
        }
        if test.named != nil && test.severity == .error {
            let error = #expect(throws: FtvmError.self) { try domain.requireProtectable() }
            #expect(error?.code == .unsupported)
            #expect(error?.cause?.contains(test.named ?? "") == true)
            #expect(error?.advice?.isEmpty == false)
        } else {
            try domain.requireProtectable()
        }
    }

    @Test func theMachineIsJudged() throws {
        let uefi = DomainCorpus.minimal.text.replacing("<os>", with: "<os firmware='efi'>")
        #expect(try DomainXML(uefi).unsupportedDevices().isEmpty)
        let pflash = DomainCorpus.minimal.text.replacing(
            "</os>", with: "<loader type='pflash'>/x</loader><nvram>/y</nvram></os>")
        #expect(try DomainXML(pflash).unsupportedDevices().isEmpty)
        let remote = pflash.replacing("<nvram>", with: "<nvram type='network'>")
        #expect(try DomainXML(remote).unsupportedDevices().map(\.device) == ["UEFI firmware"])
        let arm = DomainCorpus.minimal.text.replacing("x86_64'", with: "aarch64'")
        #expect(try DomainXML(arm).unsupportedDevices().map(\.device) == ["architecture aarch64"])
        let xen = DomainCorpus.domain(type: "xen")
        #expect(try DomainXML(xen).unsupportedDevices().map(\.device) == ["domain type xen"])
    }

    @Test func everythingIsNamedAtOnce() throws {
        let domain = try DomainXML(
            DomainCorpus.domain(
                devices: "<tpm model='tpm-tis'/><vsock/><video><model type='qxl'/></video>",
                elements: "<genid/>"))
        let error = #expect(throws: FtvmError.self) { try domain.requireProtectable() }
        for name in ["genid", "tpm tpm-tis", "vsock", "video qxl"] {
            #expect(error?.cause?.contains(name) == true)
            #expect(error?.advice?.contains(name) == true)
        }
    }

    /// What ftvm itself put on the command line is no reason to warn.
    @Test func ourOwnArgumentsAreNotFound() throws {
        let protected = try DomainXML(DomainCorpus.minimal.text).protectedForm(
            qmpSocketPath: "/a", facts: DomainFormsTests.facts)
        #expect(protected.unsupportedDevices().isEmpty)
    }
}
