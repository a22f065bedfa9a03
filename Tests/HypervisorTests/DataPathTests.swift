import Hypervisor
import Model
import Testing

/// NICs under protection: QEMU's own data path instead of vhost's, and the way back.
@Suite struct DataPathTests {
    private static let text = """
        <domain type='kvm'>
          <name>demo</name>
          <uuid>0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0</uuid>
          <devices>
            <interface type='bridge'>
              <mac address='52:54:00:00:00:01'/>
              <source bridge='br0'/>
              <model type='virtio'/>
            </interface>
            <interface type='network'>
              <mac address='52:54:00:00:00:02'/>
              <source network='default'/>
              <model type='virtio-non-transitional'/>
              <driver iommu='on'  ats='off'><host mrg_rxbuf='off'/></driver>
            </interface>
            <interface type='direct'>
              <mac address='52:54:00:00:00:03'/>
              <source dev='eth0' mode='bridge'/>
              <model type='virtio'/>
              <driver name="vhost" txmode='iothread'/>
            </interface>
            <interface type='bridge'>
              <source bridge='br1'/>
              <model type='virtio'/>
            </interface>
            <interface type='bridge'>
              <mac address='52:54:00:00:00:05'/>
              <source bridge='br0'/>
              <model type='virtio'/>
              <driver name='qemu'/>
            </interface>
            <interface type='bridge'>
              <mac address='52:54:00:00:00:06'/>
              <source bridge='br0'/>
              <model type='e1000'/>
            </interface>
          </devices>
        </domain>
        """

    private func protected(_ text: String = DataPathTests.text) throws -> DomainXML {
        try DomainXML(
            DomainXML(text).protectedForm(
                qmpSocketPath: "/a", facts: DomainFormsTests.facts
            ).text)
    }

    private func drivers(_ domain: DomainXML) -> [XMLTree.Element?] {
        (domain.root.first("devices")?.all("interface") ?? []).map { $0.first("driver") }
    }

    @Test func virtioNICsAreQEMUsWhileProtected() throws {
        let domain = try protected()
        let drivers = drivers(domain)
        #expect(drivers.map { $0?["name"] } == ["qemu", "qemu", "qemu", "qemu", "qemu", nil])
        #expect(drivers[1]?["iommu"] == "on")
        #expect(drivers[1]?.first("host")?["mrg_rxbuf"] == "off")
        #expect(drivers[2]?["txmode"] == "iothread")
        #expect(drivers[5] == nil)
        #expect(
            domain.pairFacts?.dataPaths == [
                "52:54:00:00:00:01": DomainXML.DataPath.none, "52:54:00:00:00:02": .unnamed,
                "52:54:00:00:00:03": .vhost, "#3": DomainXML.DataPath.none,
            ])
    }

    @Test func theUsersXMLComesBackExactly() throws {
        #expect(try protected().originalForm().text == Self.text)
        // Also after libvirt has rewritten it, and when it is done twice.
        #expect(try protected(protected().text).originalForm().text == Self.text)
    }

    @Test func whatTheUserChangedMeanwhileStays() throws {
        let changed = try protected().text
            .replacing("<driver name='qemu'/>", with: "<driver name='qemu' rx_queue_size='512'/>")
            .replacing("<driver name=\"qemu\" txmode='iothread'/>", with: "<driver name='vhost'/>")
        let back = drivers(try DomainXML(changed).originalForm())
        #expect(back[0]?["name"] == nil && back[0]?["rx_queue_size"] == "512")
        #expect(back[2]?["name"] == "vhost" && back[2]?["txmode"] == nil)
    }

    @Test func theWaitingFormIsQEMUsToo() throws {
        let live = try protected().text.replacing("type='kvm'", with: "type='kvm' id='3'")
        let waiting = try DomainXML(Self.text).waitingForm(
            liveXML: live, qmpSocketPath: "/b", facts: DomainFormsTests.facts)
        #expect(drivers(waiting).compactMap { $0?["name"] } == Array(repeating: "qemu", count: 5))
        #expect(drivers(try DomainXML(waiting.text).originalForm())[2]?["name"] == "vhost")
    }

    // MARK: - Running domains

    private static let live = """
        <domain type='kvm' id='3'><name>demo</name><devices>
        <interface type='bridge'><mac address='52:54:00:00:00:0A'/><source bridge='br0'/>
        <target dev='vnet0'/><model type='virtio'/><alias name='net0'/></interface>
        <interface type='null'><mac address='52:54:00:00:00:0b'/><alias name='net1'/></interface>
        <interface type='direct'><mac address='52:54:00:00:00:0c'/><source dev='eth0'/>
        <target dev='macvtap0'/><model type='e1000'/><alias name='ua-x'/></interface>
        </devices></domain>
        """

    @Test func nicsAreReadFromTheLiveXML() throws {
        let nics = try DomainXML(Self.live).guestNICs()
        #expect(nics.map(\.index) == [0, 2])
        #expect(nics.map(\.netdev) == ["hostnet0", "hostua-x"])
        #expect(nics.map(\.hostDevice) == ["vnet0", "macvtap0"])
        #expect(nics.map(\.macText) == ["52:54:00:00:00:0a", "52:54:00:00:00:0c"])
        #expect(nics.map(\.usesHeader) == [true, false])
        #expect(nics.map(\.mayUseVHost) == [true, false])
        let error = #expect(throws: FtvmError.self) {
            try DomainXML(Self.live.replacing("<target dev='vnet0'/>", with: "")).guestNICs()
        }
        #expect(error?.code == .unsupported)
        #expect(error?.message.contains("52:54:00:00:00:0A") == true)
    }

    /// As /proc/PID/fd has it; there is no vhost-net on every machine that runs this.
    @Test func aRunningGuestWithVHostIsRefused() throws {
        let nics = try DomainXML(Self.live).guestNICs()
        let links = ["/dev/null", "socket:[1]", "/dev/net/tun", "anon_inode:[eventfd]"]
        try GuestNIC.requireNoVHost(nics, descriptorLinks: links, domain: "demo")
        let error = #expect(throws: FtvmError.self) {
            try GuestNIC.requireNoVHost(
                nics, descriptorLinks: links + ["/dev/vhost-net"], domain: "demo")
        }
        #expect(error?.code == .unsupported)
        #expect(error?.cause?.contains("52:54:00:00:00:0a (vnet0)") == true)
        #expect(error?.cause?.contains("macvtap0") == false)
        #expect(error?.advice?.contains("ftvm enable") == true)
    }
}
