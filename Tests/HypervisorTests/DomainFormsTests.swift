import Hypervisor
import Model
import Testing

@Suite struct DomainFormsTests {
    static let facts = PairFacts(
        role: .primary, generation: Generation(7),
        segment: SegmentReference(pool: PoolName("main"), name: "demo-1"),
        primary: HostName("h1"), secondary: HostName("h2"))
    static let path = "/run/ftvm/qmp,demo.sock"

    @Test(arguments: DomainCorpus.entries)
    func originalOfProtectedIsTheUsersText(_ entry: DomainCorpus.Entry) throws {
        let user = try DomainXML(entry.text)
        let protected = try user.protectedForm(qmpSocketPath: Self.path, facts: Self.facts)
        #expect(protected.text != entry.text)
        let back = try DomainXML(protected.text).originalForm()
        #expect(
            try Canonical.list(back.text) == Canonical.list(entry.text), "canonical: \(entry.name)")
        // An element that was written <a/> and had something in it comes back as <a></a>.
        let expected = entry.text.replacing("<metadata/>", with: "<metadata></metadata>")
        #expect(back.text == expected)
        #expect(user.originalForm().text == entry.text)
    }

    @Test(arguments: DomainCorpus.entries)
    func protectedFormHasWhatItNeeds(_ entry: DomainCorpus.Entry) throws {
        let protected = try DomainXML(
            DomainXML(entry.text).protectedForm(qmpSocketPath: Self.path, facts: Self.facts).text)
        var read = try #require(protected.pairFacts)
        read.added = []
        read.dataPaths = [:]
        #expect(read == Self.facts)
        #expect(
            Self.arguments(protected).suffix(4) == [
                "-chardev", "socket,id=ftvm-qmp,path=/run/ftvm/qmp,,demo.sock,server=on,wait=off",
                "-mon", "chardev=ftvm-qmp,mode=control",
            ])
        // libvirt and XML itself allow one of each.
        #expect(protected.root.all("metadata").count == 1)
        _ = try Canonical.list(protected.text)
    }

    @Test(arguments: DomainCorpus.entries)
    func protectingTwiceIsProtectingOnce(_ entry: DomainCorpus.Entry) throws {
        let once = try DomainXML(entry.text).protectedForm(
            qmpSocketPath: "/a", facts: Self.facts)
        var facts = Self.facts
        facts.generation = Generation(8)
        facts.role = .secondary
        let twice = try once.protectedForm(qmpSocketPath: "/b", facts: facts)
        let direct = try DomainXML(entry.text).protectedForm(qmpSocketPath: "/b", facts: facts)
        #expect(try Canonical.list(twice.text) == Canonical.list(direct.text))
        #expect(twice.pairFacts?.role == .secondary)
        #expect(twice.pairFacts?.generation == Generation(8))
    }

    @Test func whatTheUserChangedMeanwhileIsKept() throws {
        let minimal = DomainCorpus.minimal.text
        let protected = try DomainXML(minimal).protectedForm(
            qmpSocketPath: "/a", facts: Self.facts
        ).text
        let changed =
            protected
            .replacing(
                "</qemu:commandline>",
                with: "<qemu:arg value='-nodefaults'/></qemu:commandline>"
            )
            .replacing("</metadata>", with: "<a xmlns='urn:a'/></metadata>")
        let back = try DomainXML(changed).originalForm()
        #expect(back.pairFacts == nil)
        #expect(Self.arguments(back) == ["-nodefaults"])
        #expect(back.root.first("metadata")?.first("a") != nil)
        // The declaration stays, as it is in use now.
        _ = try Canonical.list(back.text)
        #expect(back.root["xmlns:qemu"] == DomainXML.qemuNamespace)
    }

    @Test func argumentsAreKnownEvenWithoutFacts() throws {
        let protected = try DomainXML(DomainCorpus.minimal.text).protectedForm(
            qmpSocketPath: "/a", facts: Self.facts)
        var tree = protected.tree
        tree.root.removeElements { $0.name == "metadata" }
        let back = try DomainXML(tree.text).originalForm()
        #expect(Self.arguments(back).isEmpty)
        #expect(back.pairFacts == nil)
    }

    @Test func similarArgumentsOfTheUserStay() throws {
        let values = [
            "-chardev", "socket,id=ftvm-qmp-mine,path=/x", "-mon", "chardev=other",
            "-incoming", "tcp:0:1", "-global", "migration.send-section-footer=on", "-chardev",
        ]
        #expect(DomainXML.indicesOfOurs(values).isEmpty)
        #expect(
            DomainXML.indicesOfOurs(["-s", nil, "-mon", "chardev=ftvm-qmp,mode=control", "-S"])
                == [2, 3])
    }

    @Test(arguments: ["relative.sock", "/" + String(repeating: "x", count: 107)])
    func unusableSocketPathIsRefused(_ path: String) throws {
        let user = try DomainXML(DomainCorpus.minimal.text)
        let error = #expect(throws: FtvmError.self) {
            try user.protectedForm(qmpSocketPath: path, facts: Self.facts)
        }
        #expect(error?.code == .invalidArgument)
    }

    @Test func factsThatMakeNoSenseAreNone() throws {
        let text = try DomainXML(DomainCorpus.minimal.text).protectedForm(
            qmpSocketPath: "/a", facts: Self.facts
        ).text
        for (from, to) in [
            ("role='primary'", "role='boss'"), ("generation='7'", "generation='-1'"),
            ("generation='7'", "generation='16777216'"), ("pool='main'", ""),
            (PairFacts.namespace, "urn:other"),
        ] {
            #expect(text.contains(from))
            #expect(try DomainXML(text.replacing(from, with: to)).pairFacts == nil, "\(to)")
        }
        #expect(try DomainXML(DomainCorpus.minimal.text).pairFacts == nil)
    }

    static func arguments(_ domain: DomainXML) -> [String] {
        let scope = XMLScope().entering(domain.root)
        return domain.root.elements
            .filter { scope.matches($0, uri: DomainXML.qemuNamespace, "commandline") }
            .flatMap(\.elements).filter { $0.localName == "arg" }.compactMap { $0["value"] }
    }
}
