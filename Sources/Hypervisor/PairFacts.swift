import Model

/// A pair's facts as they stand in the domain's `<metadata>`, so that whoever looks at the domain
/// with libvirt's own tools sees what it is. The cluster store decides; this is for people, for
/// telling our own domains from others, and for `DomainXML.originalForm()`.
package struct PairFacts: Hashable, Sendable {
    package var role: Role
    package var generation: Generation
    package var segment: SegmentReference
    package var primary: HostName
    package var secondary: HostName?
    /// Which scaffolding ftvm added around its own elements and takes away with them.
    package var added: Set<Scaffold>
    /// Interfaces that were given to QEMU's own data path, and what they had before.
    package var dataPaths: [String: DomainXML.DataPath] = [:]

    /// Elements and declarations that are only there because ftvm needed them.
    package enum Scaffold: String, Sendable, CaseIterable {
        /// `<metadata>` itself.
        case metadata
        /// `<qemu:commandline>` itself.
        case commandLine = "commandline"
        /// The declaration of QEMU's namespace on `<domain>`.
        case namespace
    }

    package init(
        role: Role, generation: Generation, segment: SegmentReference, primary: HostName,
        secondary: HostName? = nil, added: Set<Scaffold> = []
    ) {
        self.role = role
        self.generation = generation
        self.segment = segment
        self.primary = primary
        self.secondary = secondary
        self.added = added
    }

    package static let namespace = "https://ftvm.dev/xmlns/domain/1"
    package static let prefix = "ftvm"
    static let elementName = "pair"

    /// `<ftvm:pair>` with its namespace declared on it. libvirt demands one root element for each
    /// namespace below `<metadata>`.
    var element: XMLTree.Element {
        var result = XMLTree.Element("\(PairFacts.prefix):\(PairFacts.elementName)")
        result["xmlns:\(PairFacts.prefix)"] = PairFacts.namespace
        write(to: &result)
        return result
    }

    /// The element as `virDomainSetMetadata` wants it: libvirt itself adds prefix and namespace.
    var unprefixedElement: XMLTree.Element {
        var result = XMLTree.Element(PairFacts.elementName)
        write(to: &result)
        return result
    }

    private func write(to element: inout XMLTree.Element) {
        element["role"] = role.rawValue
        element["generation"] = String(generation.number)
        element["pool"] = segment.pool.text
        element["segment"] = segment.name
        element["primary"] = primary.text
        if let secondary { element["secondary"] = secondary.text }
        if !added.isEmpty {
            element["added"] = added.map(\.rawValue).sorted().joined(separator: " ")
        }
        if !dataPaths.isEmpty {
            element["drivers"] = dataPaths.map { "\($0.key)=\($0.value.rawValue)" }.sorted()
                .joined(separator: " ")
        }
    }

    /// Reads the element back; nil when an attribute is missing or makes no sense.
    init?(_ element: XMLTree.Element) {
        guard let role = element["role"].flatMap(Role.init(rawValue:)),
            let number = element["generation"].flatMap({ UInt64($0) }),
            number <= Generation.maximum,
            let pool = element["pool"], let segment = element["segment"],
            let primary = element["primary"]
        else { return nil }
        self.init(
            role: role, generation: Generation(number),
            segment: SegmentReference(pool: PoolName(pool), name: segment),
            primary: HostName(primary), secondary: element["secondary"].map { HostName($0) },
            added: PairFacts.scaffolds(element))
        dataPaths = PairFacts.dataPaths(element)
    }

    /// What `drivers` names; also of an element whose other attributes cannot be read.
    static func dataPaths(_ element: XMLTree.Element) -> [String: DomainXML.DataPath] {
        var paths: [String: DomainXML.DataPath] = [:]
        for word in (element["drivers"] ?? "").split(separator: " ") {
            let halves = word.split(separator: "=")
            guard halves.count == 2, let path = DomainXML.DataPath(rawValue: "\(halves[1])") else {
                continue
            }
            paths["\(halves[0])"] = path
        }
        return paths
    }

    /// What `added` names; also of an element whose other attributes cannot be read.
    static func scaffolds(_ element: XMLTree.Element) -> Set<Scaffold> {
        Set(
            (element["added"] ?? "").split(separator: " ").compactMap {
                Scaffold(rawValue: "\($0)")
            })
    }
}
