import CLibvirt
import Foundation
import Hypervisor
import Logging
import Model
import Testing

@Suite(.serialized) struct LibvirtHostTests {
    let host = EmbeddedLibvirt.shared.host()
    private let demo = DomainIdentifier.name("demo")

    /// A domain that starts quickly, with what a live XML fills in.
    private var domainText: String {
        DomainCorpus.domain(
            devices: """
                <serial type='pty'/>
                <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
                <graphics type='vnc' autoport='yes' passwd='secret'/>
                <video><model type='none'/></video>
                """, elements: "<metadata><a:b xmlns:a='urn:a'/></metadata>")
    }

    private func clean() async throws {
        if let status = try await host.find(demo) {
            if status.isActive { try await host.destroy(demo) }
            if status.isPersistent { try await host.undefine(demo) }
        }
        #expect(try await host.find(demo) == nil)
    }

    @Test func definitionsComeAndGo() async throws {
        try await clean()
        let defined = try await host.define(xml: domainText)
        #expect(defined.name == "demo")
        #expect(defined.uuid == DomainCorpus.uuid)
        #expect(defined.state == .shutOff)
        #expect(defined.isPersistent && !defined.isActive)
        #expect(
            try await host.listDomains()
                == [DomainSummary(name: "demo", uuid: DomainCorpus.uuid, state: "shut off")])
        #expect(try await host.status(.uuid(DomainCorpus.uuid)) == defined)
        let xml = try await host.inactiveXML(demo)
        #expect(xml.contains("passwd='secret'"))
        #expect(try DomainXML(xml).memoryBytes == 64 << 20)
        #expect(try await host.liveXML(demo) == xml)
        try await host.undefine(demo)
        #expect(try await host.listDomains().isEmpty)
    }

    /// What libvirt makes of a definition.
    private func normalised(_ text: String) async throws -> String {
        _ = try await host.define(xml: text)
        let result = try await host.inactiveXML(demo)
        try await host.undefine(demo)
        return result
    }

    /// libvirt's idea of the domain is the same before and after, for every kind of domain.
    @Test func formsSurviveLibvirt() async throws {
        try await clean()
        for entry in DomainCorpus.entries where entry.isForLibvirt {
            // Twice: libvirt sorts the controllers that it added itself only the second time.
            let once = try await normalised(entry.text)
            let before = try await normalised(once)

            let protected = try DomainXML(before).protectedForm(
                qmpSocketPath: "/run/a.sock", facts: DomainFormsTests.facts)
            let dumped = try DomainXML(await normalised(protected.text))
            #expect(dumped.pairFacts?.generation == Generation(7), "\(entry)")
            #expect(
                DomainFormsTests.arguments(dumped).contains("chardev=ftvm-qmp,mode=control"),
                "\(entry)")
            // libvirt writes <metadata/>, but what it has written with content keeps its line.
            let back = dumped.originalForm().text
            let expected = before.replacing("<metadata/>", with: "<metadata>\n  </metadata>")
            #expect(back == expected, "\(entry)")
            #expect(try await normalised(back) == before, "\(entry)")

            // From what the user wrote, too.
            let direct = try DomainXML(entry.text).protectedForm(
                qmpSocketPath: "/run/a.sock", facts: DomainFormsTests.facts)
            let other = try DomainXML(await normalised(direct.text)).originalForm().text
            let twice = try await normalised(other)
            #expect(
                try Canonical.list(twice, ignoringLayout: true)
                    == Canonical.list(before, ignoringLayout: true), "\(entry)")
        }
    }

    @Test func lifeIsReported() async throws {
        try await clean()
        let reader = EventReader(host)
        try await host.connect()
        let created = try await host.create(xml: domainText, paused: true)
        #expect(created.state == .paused)
        #expect(created.isActive && !created.isPersistent)
        try await host.resume(demo)
        #expect(try await host.status(demo).state == .running)
        try await host.suspend(demo)
        #expect(try await host.status(demo).reason == "user")
        try await host.destroy(demo)
        let kinds = await reader.kinds(of: "demo") { $0 == .stopped(.destroyed) }
        #expect(
            kinds == [
                .started(.booted), .suspended(.paused), .resumed(.unpaused), .suspended(.paused),
                .shutdown(.byHost), .stopped(.destroyed),
            ])
        // That it is gone already is what was wanted.
        let gone = await #expect(throws: FtvmError.self) { try await host.destroy(demo) }
        #expect(gone?.code == .notFound)
    }

    @Test func aKilledQEMUIsReported() async throws {
        try await clean()
        let reader = EventReader(host)
        _ = try await host.define(xml: domainText)
        try await host.start(demo)
        let process = try await host.process(demo)
        #expect(process.isRunning)
        kill(process.processID, SIGKILL)
        let kinds = await reader.kinds(of: "demo") { if case .stopped = $0 { true } else { false } }
        #expect(kinds.first == .defined)
        #expect(kinds.last == .stopped(.failed) || kinds.last == .stopped(.crashed))
        #expect(!process.isRunning)
        let status = try await host.status(demo)
        #expect(status.state == .shutOff)
        #expect(["crashed", "failed"].contains(status.reason))
        let none = await #expect(throws: FtvmError.self) { try await host.process(demo) }
        #expect(none?.code == .notFound)
        try await host.destroy(demo)
        try await clean()
    }

    @Test func monitorThroughLibvirt() async throws {
        try await clean()
        _ = try await host.create(xml: domainText, paused: true)
        let monitor = try await host.monitor(demo)
        #expect(monitor.label == "demo")
        // Nothing of the async pool waits here: the monitor has a queue of its own.
        #expect(try monitor.status() == QEMURunState(status: "prelaunch", running: false))
        try monitor.cont()
        #expect(try monitor.status().running)
        try monitor.stop()
        let main = try monitor.ramBlocksWithAddresses().first { $0.name == "pc.ram" }
        #expect(main?.totalBytes == 64 << 20)
        #expect(main?.hostAddress != nil)
        let refused = #expect(throws: FtvmError.self) { try monitor.execute("no-such-command") }
        #expect(refused?.code == .unsupported)
        let path = "\(EmbeddedLibvirt.shared.root)/state"
        let file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0o600)
        _ = try monitor.addDescriptor(file, toSet: 7)
        close(file)
        try monitor.saveDeviceState(path: "/dev/fdset/7")
        let size = try FileManager.default.attributesOfItem(atPath: path)[.size] as? Int ?? 0
        #expect(size > 4096)
        #expect(
            try await host.monitorCommand(demo, "query-name").json.contains("\"demo\""))
        try await host.destroy(demo)
        let gone = #expect(throws: FtvmError.self) { try monitor.stop() }
        #expect(gone?.code == .unavailable)
        monitor.interrupt()
        let given = #expect(throws: FtvmError.self) { try monitor.stop() }
        #expect(given?.message.contains("given up") == true)
    }

    @Test func aFrozenQEMUTimesOutThroughLibvirtToo() async throws {
        try await clean()
        _ = try await host.create(xml: domainText)
        let monitor = try await host.monitor(demo)
        let process = try await host.process(demo)
        kill(process.processID, SIGSTOP)
        let late = #expect(throws: FtvmError.self) { try monitor.stop(timeoutMilliseconds: 100) }
        #expect(late?.code == .timedOut)
        let thread = Thread {
            // Wakes the call below out of its wait.
            monitor.interrupt()
        }
        thread.start()
        let given = #expect(throws: FtvmError.self) {
            try monitor.cont(timeoutMilliseconds: 60_000)
        }
        #expect(given?.code == .unavailable)
        kill(process.processID, SIGCONT)
        try await clean()
    }

    /// libvirt waits 5 s for a guest to let a card go, which one that is stopped cannot, and keeps the domain meanwhile.
    @Test func aDomainThatLibvirtKeepsIsNoHang() async throws {
        try await clean()
        let card = """
            <interface type='user'>
              <mac address='52:54:00:79:00:10'/><model type='virtio'/></interface>
            """
        _ = try await host.create(
            xml: domainText.replacing("</devices>", with: card + "</devices>")
                .replacing("<devices>", with: "<features><acpi/></features><devices>"),
            paused: true)
        let monitor = try await host.monitor(demo)
        let connection = try #require(virConnectOpen(EmbeddedLibvirt.shared.uri))
        defer { virConnectClose(connection) }
        nonisolated(unsafe) let domain = try #require(virDomainLookupByName(connection, "demo"))
        defer { virDomainFree(domain) }
        let detaching = DispatchSemaphore(value: 0)
        let detach = Thread {
            virDomainDetachDeviceFlags(domain, card, VIR_DOMAIN_AFFECT_LIVE.rawValue)
            detaching.signal()
        }
        detach.start()
        var control = virDomainControlInfo()
        while control.state != VIR_DOMAIN_CONTROL_ERROR.rawValue {
            try #require(virDomainGetControlInfo(domain, &control, 0) == 0)
            try #require(detaching.wait(timeout: .now() + .milliseconds(1)) == .timedOut)
        }
        let reply = try monitor.execute("query-status", timeoutMilliseconds: 200)
        #expect(try !reply.decode(QEMURunState.self).running)
        // QEMU has not had the command while libvirt waited.
        #expect(detaching.wait(timeout: .now() + 1) == .success)
        try await clean()
    }

    @Test func factsAreWrittenAndRemoved() async throws {
        try await clean()
        let plain = DomainCorpus.minimal.text
        _ = try await host.define(xml: plain)
        let before = try await host.inactiveXML(demo)
        try await host.start(demo, paused: true)
        var facts = DomainFormsTests.facts
        for generation in [UInt64(3), 4] {
            facts.generation = Generation(generation)
            try await host.setPairFacts(demo, facts)
            for text in [try await host.inactiveXML(demo), try await host.liveXML(demo)] {
                let domain = try DomainXML(text)
                #expect(domain.pairFacts?.generation == Generation(generation))
                #expect(domain.pairFacts?.added == [.metadata])
                #expect(domain.pairFacts?.secondary == HostName("h2"))
            }
        }
        #expect(try DomainXML(await host.inactiveXML(demo)).originalForm().text == before)
        for _ in 0..<2 { try await host.removePairFacts(demo) }
        #expect(try DomainXML(await host.liveXML(demo)).pairFacts == nil)
        #expect(try DomainXML(await host.inactiveXML(demo)).pairFacts == nil)
        try await clean()
    }

    /// The whole way of a protected domain over one libvirt: its state loads into the waiting form
    /// of its own live XML.
    @Test func theWaitingFormTakesTheState() async throws {
        try await clean()
        let root = EmbeddedLibvirt.shared.root
        let user = try DomainXML(domainText)
        let protected = try user.protectedForm(
            qmpSocketPath: "\(root)/h1.sock", facts: DomainFormsTests.facts)
        _ = try await host.create(xml: protected.text)
        let live = try await host.liveXML(demo)
        do {
            let monitor = try QMPConnection(path: "\(root)/h1.sock", label: "demo")
            try monitor.stop()
            try monitor.saveDeviceState(path: "\(root)/state")
        }
        try await host.destroy(demo)
        try addConfigurationSection(machineType: DomainXML(live).machineType ?? "")

        var facts = DomainFormsTests.facts
        facts.role = .secondary
        let waiting = try user.waitingForm(
            liveXML: live, qmpSocketPath: "\(root)/h2.sock", facts: facts)
        let status = try await host.create(xml: waiting.text, paused: true)
        #expect(status.state == .paused)
        let monitor = try QMPConnection(path: "\(root)/h2.sock", label: "demo")
        #expect(try monitor.status().status == "inmigrate")
        let file = open("\(root)/state", O_RDONLY | O_CLOEXEC)
        try monitor.giveDescriptor(file, name: "state")
        close(file)
        try monitor.loadIncoming(uri: "fd:state", timeoutMilliseconds: 60_000)
        try monitor.cont()
        #expect(try monitor.status().running)

        // Its live XML makes the next secondary, and is the user's domain but for addresses.
        let next = try DomainXML(await host.liveXML(demo))
        #expect(next.pairFacts?.role == .secondary)
        let third = try user.waitingForm(
            liveXML: next.text, qmpSocketPath: "\(root)/h2.sock", facts: facts)
        #expect(third.text == waiting.text)
        try await clean()
    }

    /// libvirt's QEMU is root here, and an ordinary start would make the image root's.
    @Test func theWaitingFormLeavesOwnersAlone() async throws {
        try await clean()
        let root = EmbeddedLibvirt.shared.root
        let image = "\(root)/owned.raw"
        try Data(count: 1 << 20).write(to: URL(fileURLWithPath: image))
        chown(image, 1, 1)
        func owner() -> UInt32? {
            var status = stat()
            return stat(image, &status) == 0 ? status.st_uid : nil
        }
        #expect(owner() == 1)
        let text = DomainCorpus.domain(
            devices: """
                <disk type='file' device='disk'>
                  <driver name='qemu' type='raw'/>
                  <source file='\(image)'/>
                  <target dev='vda' bus='virtio'/>
                </disk>
                <video><model type='none'/></video>
                """)
        var facts = DomainFormsTests.facts
        facts.role = .secondary
        let waiting = try DomainXML(text).waitingForm(
            liveXML: text, qmpSocketPath: "\(root)/h2.sock", facts: facts)
        #expect(waiting.imagesLeftAlone == [image])
        #expect(try await host.create(xml: waiting.text, paused: true).state == .paused)
        #expect(try DomainXML(await host.liveXML(demo)).imagesLeftAlone == [image])
        #expect(owner() == 1)
        try await host.destroy(demo)
        #expect(owner() == 1)
        #expect(try await host.qemuOwner() == FileOwner(user: 0, group: 0))
        try await clean()
    }

    /// What `xen-save-devices-state` leaves out and a waiting QEMU asks for: after the eight bytes
    /// of the header 0x07, then the machine type with its length (QEMU: migration/savevm.c).
    private func addConfigurationSection(machineType: String) throws {
        let url = URL(fileURLWithPath: "\(EmbeddedLibvirt.shared.root)/state")
        let state = try Data(contentsOf: url)
        let length = UInt32(machineType.utf8.count).bigEndian
        let section = [0x07] + withUnsafeBytes(of: length) { Array($0) } + Array(machineType.utf8)
        try (state.prefix(8) + section + state.dropFirst(8)).write(to: url)
    }

    @Test func errorsNameTheDomain() async throws {
        try await clean()
        for operation in [
            { try await host.start(demo) }, { try await host.suspend(demo) },
            { try await host.destroy(demo) }, { try await host.undefine(demo) },
            { _ = try await host.liveXML(demo) }, { _ = try await host.status(demo) },
            { _ = try await host.process(demo) }, { _ = try await host.monitor(demo) },
        ] as [() async throws -> Void] {
            let error = await #expect(throws: FtvmError.self) { try await operation() }
            #expect(error?.code == .notFound)
            #expect(error?.message == "there is no domain demo")
        }
        let malformed = await #expect(throws: FtvmError.self) {
            try await host.define(xml: "<domain")
        }
        #expect(malformed?.code == .invalidArgument)
        let wrong = await #expect(throws: FtvmError.self) {
            try await host.define(xml: "<domain type='qemu'><name>demo</name></domain>")
        }
        #expect(wrong?.message == "cannot define domain demo")
        #expect(wrong?.cause?.isEmpty == false)
        _ = try await host.define(xml: domainText)
        let stopped = await #expect(throws: FtvmError.self) { try await host.suspend(demo) }
        #expect(stopped?.code == .failedPrecondition)
        let none = await #expect(throws: FtvmError.self) { try await host.monitor(demo) }
        #expect(none?.code == .failedPrecondition)
        try await clean()
    }

    @Test func versionsAreText() async throws {
        let versions = try await host.versions()
        for version in [versions.libvirt, versions.qemu] {
            #expect(version.split(separator: ".").compactMap { Int($0) }.count == 3)
        }
        #expect(QEMUVersion(versions.qemu) >= QEMUVersion(major: 7, minor: 2, micro: 0))
    }

    @Test func aClosedHostSaysSo() async throws {
        let other = EmbeddedLibvirt.shared.host()
        let events = other.events()
        try await other.connect()
        await other.close()
        let error = await #expect(throws: FtvmError.self) { try await other.listDomains() }
        #expect(error?.code == .unavailable)
        var seen: [HostEvent] = []
        for await event in events { seen.append(event) }
        #expect(seen == [.connected])
        // The embedded driver itself goes on for the others.
        _ = try await host.listDomains()
    }
}

extension QEMUVersion {
    init(_ text: String) {
        let numbers = text.split(separator: ".").compactMap { Int($0) }
        self.init(major: numbers[0], minor: numbers[1], micro: numbers[2])
    }
}
