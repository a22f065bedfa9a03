import Hypervisor
import Model
import Testing

@Suite struct DomainXMLTests {
    @Test func readsWhatTheDomainSays() throws {
        let entry = try #require(DomainCorpus.entries.first { $0.name == "many devices" })
        let domain = try DomainXML(entry.text)
        #expect(domain.name == "demo")
        #expect(domain.uuid == DomainCorpus.uuid)
        #expect(domain.virtualizationType == "qemu")
        #expect(domain.runningID == nil)
        #expect(domain.memoryBytes == 128 << 20)
        #expect(domain.currentMemoryBytes == 64 << 20)
        #expect(domain.vcpuCount == 2)
        #expect(domain.machineType == "q35")
        #expect(domain.architecture == "x86_64")
        #expect(domain.emulator == "/usr/bin/qemu-system-x86_64")
        #expect(!domain.hasNUMACells)
        #expect(domain.disks.map(\.target) == ["sda"])
        #expect(domain.disks.first?.isReadOnly == true)
        #expect(domain.disks.first?.source == nil)
        #expect(domain.memoryBacking == DomainXML.MemoryBacking(nil))
    }

    @Test(
        arguments: [
            ("", "1024", 1 << 20), ("unit='b'", "4096", 4096), ("unit='KB'", "3", 3_000),
            ("unit='k'", "3", 3 << 10), ("unit='MB'", "3", 3_000_000), ("unit='M'", "3", 3 << 20),
            ("unit='GiB'", "3", 3 << 30), ("unit='GB'", "3", 3_000_000_000),
            ("unit='TiB'", "1", 1 << 40),
        ] as [(String, String, UInt64)])
    func memoryUnits(_ unit: String, _ number: String, _ bytes: UInt64) throws {
        let text = "<domain><name>a</name><memory \(unit)>\(number)</memory></domain>"
        #expect(try DomainXML(text).memoryBytes == bytes)
        #expect(try DomainXML(text).currentMemoryBytes == bytes)
    }

    @Test(arguments: [
        "<memory unit='PiB'>1</memory>", "<memory>x</memory>", "<memory/>", "",
        "<memory unit='TiB'>99999999999</memory>",
    ])
    func memoryThatMakesNoSenseIsNone(_ memory: String) throws {
        #expect(try DomainXML("<domain><name>a</name>\(memory)</domain>").memoryBytes == nil)
    }

    @Test(arguments: [
        "<network><name>a</name></network>", "<domain/>", "<domain><name/></domain>", "x",
    ])
    func whatIsNoDomainIsRefused(_ text: String) {
        let error = #expect(throws: FtvmError.self) { try DomainXML(text) }
        #expect(error?.code == .invalidArgument)
    }

    @Test func uuidIsNormalised() throws {
        let text = "<domain><name>a</name><uuid> 6A3F1A529D5E4A0D9C7C0F0D3A6B1C11 </uuid></domain>"
        #expect(try DomainXML(text).uuid == DomainCorpus.uuid)
        #expect(try DomainXML("<domain><name>a</name></domain>").uuid == nil)
    }

    @Test func interfacesAndBackings() throws {
        let domain = try DomainXML(
            DomainCorpus.domain(
                devices: """
                    <interface type='network'><mac address='52:54:00:aa:bb:cc'/>
                    <source network='default'/><target dev='vnet3'/><model type='virtio'/>
                    <driver name='qemu'/></interface>
                    """,
                elements: """
                    <memoryBacking><hugepages/><source type='file'/><access mode='shared'/>
                    <locked/><allocation mode='immediate'/><nosharepages/></memoryBacking>
                    <cpu><numa><cell id='0'/></numa></cpu>
                    """))
        let interface = try #require(domain.interfaces.first)
        #expect(interface.type == "network")
        #expect(interface.source == "default")
        #expect(interface.hostDevice == "vnet3")
        #expect(interface.mac == "52:54:00:aa:bb:cc")
        #expect(interface.model == "virtio")
        #expect(interface.driver == "qemu")
        let backing = domain.memoryBacking
        #expect(backing.hugePages && backing.isLocked && backing.isPreallocated)
        #expect(backing.hasNoSharePages)
        #expect(backing.source == "file")
        #expect(backing.access == "shared")
        #expect(domain.hasNUMACells)
    }
}
