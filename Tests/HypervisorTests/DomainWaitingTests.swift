import Hypervisor
import Model
import Testing

@Suite struct DomainWaitingTests {
    /// As libvirt 9.0 shows a running domain.
    static let live = """
        <domain type='qemu' id='3' xmlns:qemu='\(DomainCorpus.qemuURI)'>
          <name>demo</name>
          <uuid>\(DomainCorpus.uuid)</uuid>
          <metadata>
            <app:x xmlns:app="urn:app"/>
            <ftvm:pair xmlns:ftvm='https://ftvm.dev/xmlns/domain/1' role='primary' generation='1' \
        pool='main' segment='demo-1' primary='h1' added='commandline namespace'/>
          </metadata>
          <memory unit='KiB'>65536</memory>
          <memoryBacking>
            <nosharepages/>
            <allocation mode='immediate'/>
          </memoryBacking>
          <resource>
            <partition>/machine</partition>
          </resource>
          <os>
            <type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type>
          </os>
          <devices>
            <disk type='file' device='disk'>
              <source file='/a.qcow2' index='2'/>
              <backingStore type='file' index='3'>
                <format type='raw'/>
                <source file='/b.raw'/>
                <backingStore/>
              </backingStore>
              <target dev='vda' bus='virtio'/>
              <readonly/>
              <alias name='virtio-disk0'/>
              <address type='pci' domain='0x0000' bus='0x00' slot='0x05' function='0x0'/>
            </disk>
            <interface type='bridge'>
              <mac address='52:54:00:aa:bb:cc'/>
              <source network='lab' portid='1c8e' bridge='br0'/>
              <target dev='vnet3'/>
              <model type='virtio'/>
              <alias name='ua-front'/>
            </interface>
            <interface type='bridge'>
              <mac address='52:54:00:aa:bb:cd'/>
              <source bridge='br1'/>
              <target dev='mytap'/>
              <alias name='net1'/>
            </interface>
            <serial type='file'>
              <source path='/var/log/demo.log' append='on'/>
              <target type='isa-serial' port='0'/>
              <alias name='serial0'/>
            </serial>
            <console type='pty' tty='/dev/pts/5'>
              <source path='/dev/pts/5'/>
              <target type='virtio' port='1'/>
            </console>
            <channel type='unix'>
              <source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-3-demo/org.qemu.guest_agent.0'/>
              <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
              <alias name='channel0'/>
            </channel>
            <channel type='unix'>
              <source mode='connect' path='/srv/domain-x/own.sock'/>
              <target type='virtio' name='own'/>
            </channel>
            <graphics type='vnc' port='5903' autoport='yes' listen='127.0.0.1' passwd='secret'>
              <listen type='address' address='127.0.0.1'/>
            </graphics>
            <graphics type='spice' port='5904' autoport='no' listen='10.0.0.1'>
              <listen type='network' network='lab' address='10.0.0.1'/>
            </graphics>
            <graphics type='vnc' socket='/var/lib/libvirt/qemu/domain-3-demo/vnc.sock'>
              <listen type='socket' socket='/var/lib/libvirt/qemu/domain-3-demo/vnc.sock' fromConfig='1'/>
            </graphics>
            <video>
              <model type='none'/>
            </video>
          </devices>
          <seclabel type='dynamic' model='apparmor' relabel='yes'>
            <label>libvirt-6a3f</label>
          </seclabel>
          <seclabel type='dynamic' model='dac' relabel='yes'>
            <label>+64055:+64055</label>
          </seclabel>
          <qemu:commandline>
            <qemu:arg value='-chardev'/>
            <qemu:arg value='socket,id=ftvm-qmp,path=/run/h1.sock,server=on,wait=off'/>
            <qemu:arg value='-mon'/>
            <qemu:arg value='chardev=ftvm-qmp,mode=control'/>
            <qemu:arg value='-incoming'/>
            <qemu:arg value='defer'/>
          </qemu:commandline>
        </domain>
        """

    private func waiting(
        user elements: String = "", live: String = DomainWaitingTests.live
    ) throws -> DomainXML {
        let user = try DomainXML(DomainCorpus.domain(elements: elements))
        var facts = DomainFormsTests.facts
        facts.role = .secondary
        let form = try user.waitingForm(
            liveXML: live, qmpSocketPath: "/run/h2.sock", facts: facts)
        return try DomainXML(form.text)
    }

    @Test func runtimeValuesAreGone() throws {
        let text = try waiting().text
        for gone in [
            " id='3'", "vnet3", "/dev/pts", "domain-3-demo", "state='connected'", "5903",
            "apparmor",
            "<resource>", "portid", "index=", "virtio-disk0", "name='net1'", "<allocation",
            "fromConfig", "h1.sock", "role='primary'",
        ] {
            #expect(!text.contains(gone), "\(gone)")
        }
    }

    @Test func whatTheGuestSeesIsKept() throws {
        let text = try waiting().text
        for kept in [
            "machine='pc-i440fx-7.2'", "slot='0x05'", "mytap", "ua-front", "/var/log/demo.log",
            "/srv/domain-x/own.sock", "passwd='secret'", "port='5904'", "<nosharepages/>",
            "<app:x xmlns:app=\"urn:app\"/>", "<source network='lab'/>", "<source bridge='br1'/>",
            "address='127.0.0.1'", "port='-1' autoport='yes'", "52:54:00:aa:bb:cc",
        ] {
            #expect(text.contains(kept), "\(kept)")
        }
        let form = try waiting()
        #expect(form.interfaces.map(\.type) == ["network", "bridge"])
        #expect(form.pairFacts?.role == .secondary)
    }

    @Test func theArgumentsMakeItWait() throws {
        #expect(
            try DomainFormsTests.arguments(waiting()) == [
                "-chardev", "socket,id=ftvm-qmp,path=/run/h2.sock,server=on,wait=off",
                "-mon", "chardev=ftvm-qmp,mode=control", "-incoming", "defer",
            ])
        #expect(try DomainFormsTests.arguments(waiting().originalForm()).isEmpty)
    }

    @Test func labelsAndResourcesAreTheUsers() throws {
        let form = try waiting(
            user: "<resource><partition>/mine</partition></resource>"
                + "<seclabel type='none'/><seclabel type='static' model='dac'><label>a</label></seclabel>"
        )
        #expect(form.root.all("resource").map { $0.first("partition")?.text } == ["/mine"])
        #expect(form.root.all("seclabel").map { $0["type"] } == ["none", "static"])
    }

    /// Its libvirt would take them from the QEMU that another host starts.
    @Test func ownersOfImagesAreLeftAlone() throws {
        func live(_ label: String = "") -> String {
            Self.live.replacing(
                "<video>",
                with: """
                    <disk type='file' device='disk'>
                      <source file='/w.raw' index='4'>\(label)</source>
                      <target dev='vdb' bus='virtio'/>
                    </disk>
                    <disk type='block' device='disk'>
                      <source dev='/dev/w' index='5'/>
                      <target dev='vdc' bus='virtio'/>
                    </disk>
                    <video>
                    """)
        }
        let form = try waiting(live: live())
        #expect(form.imagesLeftAlone == ["/w.raw"])
        #expect(form.text.ranges(of: "relabel='no'").count == 1)
        // The next one is made of its live XML.
        let next = try waiting(live: form.text)
        #expect(next.imagesLeftAlone == ["/w.raw"])
        #expect(next.text.ranges(of: "relabel='no'").count == 1)
        // What the user has said about owners holds.
        let labelled = try waiting(
            live: live("<seclabel model='dac' relabel='yes'><label>+1:+1</label></seclabel>"))
        #expect(labelled.imagesLeftAlone.isEmpty && labelled.text.contains("+1:+1"))
        let without = try waiting(
            user: "<seclabel type='none' model='dac'/>", live: live())
        #expect(without.imagesLeftAlone.isEmpty)
    }

    @Test func whoQEMUIsIsInTheCapabilities() throws {
        let owner = try FileOwner(
            capabilities: """
                <capabilities>
                  <host>
                    <uuid>\(DomainCorpus.uuid)</uuid>
                    <secmodel><model>apparmor</model><doi>0</doi></secmodel>
                    <secmodel>
                      <model>dac</model>
                      <doi>0</doi>
                      <baselabel type='kvm'>+64055:+108</baselabel>
                      <baselabel type='qemu'>+64055:+108</baselabel>
                    </secmodel>
                  </host>
                </capabilities>
                """)
        #expect(owner == FileOwner(user: 64_055, group: 108))
        let unprivileged = try FileOwner(capabilities: "<capabilities><host/></capabilities>")
        #expect(unprivileged == nil)
    }

    @Test func anotherDomainIsRefused() throws {
        let user = try DomainXML(DomainCorpus.minimal.text)
        for other in [
            Self.live.replacing("<name>demo<", with: "<name>other<"),
            Self.live.replacing(DomainCorpus.uuid, with: "11111111-2222-3333-4444-555555555555"),
            "<domain", "",
        ] {
            let error = #expect(throws: FtvmError.self) {
                try user.waitingForm(
                    liveXML: other, qmpSocketPath: "/a", facts: DomainFormsTests.facts)
            }
            #expect(error?.code == .invalidArgument)
        }
    }
}
