/// Domains of many shapes, as people and tools write them.
enum DomainCorpus {
    struct Entry: Sendable, CustomStringConvertible {
        let name: String
        let text: String
        /// Whether libvirt (with QEMU under TCG) accepts it.
        var isForLibvirt = true
        var description: String { name }
    }

    static let uuid = "6a3f1a52-9d5e-4a0d-9c7c-0f0d3a6b1c11"
    static let qemuURI = "http://libvirt.org/schemas/domain/qemu/1.0"

    private static let head = """
        <name>demo</name>
          <uuid>\(uuid)</uuid>
        """
    private static let body = """
        <memory unit='MiB'>64</memory>
          <vcpu>1</vcpu>
          <os><type arch='x86_64' machine='pc'>hvm</type></os>
          <devices>
            <emulator>/usr/bin/qemu-system-x86_64</emulator>
            <serial type='pty'/>
            <video><model type='none'/></video>
          </devices>
        """

    static let minimal = Entry(
        name: "minimal", text: "<domain type='qemu'>\n  \(head)\n  \(body)\n</domain>\n")

    static let entries: [Entry] = [
        minimal,
        Entry(
            name: "no white space at all",
            text: "<domain type='qemu'><name>demo</name><uuid>\(uuid)</uuid><memory>65536</memory>"
                + "<vcpu>1</vcpu><os><type>hvm</type></os></domain>"),
        Entry(
            name: "declaration, comments, instruction",
            text: """
                <?xml version='1.0' encoding='utf-8'?>
                <!-- made by hand -->
                <domain type="qemu"><!-- first -->
                  <!-- name --> \(head) <!-- after -->
                  <?editor fold?>
                  \(body)
                  <!-- last -->
                </domain>
                <!-- the end -->
                """),
        Entry(
            name: "foreign metadata",
            text: """
                <domain type='qemu'>
                  \(head)
                  <metadata>
                    <!-- whose? -->
                    <libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
                      <libosinfo:os id="http://debian.org/debian/12"/>
                    </libosinfo:libosinfo>
                    <app xmlns="urn:app"><pair role='none'/>text</app>
                  </metadata>
                  \(body)
                </domain>
                """),
        Entry(
            name: "empty metadata",
            text: "<domain type='qemu'>\n  \(head)\n  <metadata></metadata>\n  \(body)\n</domain>"),
        Entry(
            name: "self-closed metadata",
            text: "<domain type='qemu'>\n  \(head)\n  <metadata/>\n  \(body)\n</domain>"),
        Entry(
            name: "metadata with only a comment",
            text:
                "<domain type='qemu'>\n \(head)\n <metadata> <!-- x --> </metadata>\n \(body)\n</domain>"
        ),
        Entry(
            name: "own qemu command line",
            text: """
                <domain type='qemu' xmlns:qemu='\(qemuURI)'>
                  \(head)
                  \(body)
                  <qemu:commandline>
                    <qemu:arg value='-global'/>
                    <qemu:arg value='migration.x-rdma-chunk-size=1'/>
                    <!-- mine -->
                    <qemu:env name='A' value='B &amp; C'/>
                  </qemu:commandline>
                </domain>
                """),
        Entry(
            name: "command line under another prefix",
            text: """
                <domain type='qemu' xmlns:q='\(qemuURI)'>
                  \(head)
                  \(body)
                  <q:commandline>
                    <q:arg value='-nodefaults'/>
                  </q:commandline>
                </domain>
                """),
        Entry(
            name: "command line with its own declaration",
            text: """
                <domain type='qemu'>
                  \(head)
                  \(body)
                  <commandline xmlns='\(qemuURI)'><arg value='-nodefaults'/></commandline>
                </domain>
                """),
        Entry(
            name: "declared but unused qemu namespace",
            text: "<domain xmlns:qemu=\"\(qemuURI)\" type='qemu'>\n  \(head)\n  \(body)\n</domain>"),
        Entry(
            name: "prefix qemu means something else",
            text: """
                <domain type='qemu' xmlns:qemu='urn:not-qemu'>
                  \(head)
                  <metadata><qemu:note>mine</qemu:note></metadata>
                  \(body)
                </domain>
                """),
        Entry(
            name: "CDATA and references",
            text: """
                <domain type='qemu'>
                  \(head)
                  <title>A &amp; B &lt;&#65;&gt;</title>
                  <description><![CDATA[<not> & markup]]> &quot;quoted&quot; é 漢</description>
                  \(body)
                </domain>
                """),
        Entry(
            name: "entity of a document type",
            text: """
                <!DOCTYPE domain [<!ENTITY firm "Example">]>
                <domain type='qemu'>
                  \(head)
                  <title>&firm; server</title>
                  \(body)
                </domain>
                """, isForLibvirt: false),
        Entry(
            name: "unknown elements",
            text: """
                <domain type='qemu' future='yes'>
                  \(head)
                  <newfangled xmlns:n='urn:n' n:a='1'><n:deep/></newfangled>
                  \(body)
                  <other/>
                </domain>
                """),
        Entry(
            name: "odd layout and quotes",
            text:
                "<domain\n\ttype = \"qemu\"\n>\r\n\t\(head)\r\n\(body)<on_crash  >restart</on_crash\n></domain>"
        ),
        Entry(
            name: "title and description before metadata",
            text: """
                <domain type='qemu'>
                  \(head)
                  <title>t</title>
                  <description>several
                  lines</description>
                  \(body)
                </domain>
                """),
        Entry(
            name: "many devices",
            text: """
                <domain type='qemu'>
                  \(head)
                  <memory unit='KiB'>131072</memory>
                  <currentMemory unit='KiB'>65536</currentMemory>
                  <vcpu placement='static'>2</vcpu>
                  <os><type arch='x86_64' machine='q35'>hvm</type><boot dev='cdrom'/></os>
                  <features><acpi/><apic/></features>
                  <devices>
                    <emulator>/usr/bin/qemu-system-x86_64</emulator>
                    <disk type='file' device='cdrom'>
                      <driver name='qemu' type='raw'/>
                      <target dev='sda' bus='sata'/>
                      <readonly/>
                    </disk>
                    <channel type='unix'>
                      <target type='virtio' name='org.qemu.guest_agent.0'/>
                      <alias name='ua-agent'/>
                    </channel>
                    <serial type='file'><source path='/dev/null'/></serial>
                    <graphics type='vnc' autoport='yes' passwd='secret'/>
                    <input type='tablet' bus='usb'/>
                    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
                    <watchdog model='i6300esb' action='reset'/>
                    <panic model='isa'/>
                    <video><model type='none'/></video>
                  </devices>
                </domain>
                """),
    ]

    /// The minimal domain with other text in place of its video device, and elements of the domain.
    static func domain(devices: String = "", elements: String = "", type: String = "qemu") -> String
    {
        """
        <domain type='\(type)'>
          \(head)
          \(elements)
          <memory unit='MiB'>64</memory>
          <vcpu>1</vcpu>
          <os><type arch='x86_64' machine='pc'>hvm</type></os>
          <devices>
            <emulator>/usr/bin/qemu-system-x86_64</emulator>
            \(devices)
          </devices>
        </domain>
        """
    }
}
