import Model

/// The forms of a domain that ftvm makes, and the way back.
extension DomainXML {
    /// Namespace of `<qemu:commandline>`, see
    /// https://libvirt.org/kbase/qemu-passthrough-security.html
    package static let qemuNamespace = "http://libvirt.org/schemas/domain/qemu/1.0"
    /// Id of our monitor's character device within QEMU; by it our arguments are known again.
    package static let monitorID = "ftvm-qmp"

    /// The pair's facts in this domain's metadata; nil when there are none that can be read.
    package var pairFacts: PairFacts? {
        factsElement.flatMap { PairFacts($0) }
    }

    /// The persistent form of a protected domain: the user's own XML, with a QMP monitor of ours on
    /// QEMU's command line, virtio NICs on QEMU's own data path instead of vhost's, and the pair's facts in the
    /// metadata. `originalForm()` is its inverse.
    /// - Parameter qmpSocketPath: where QEMU is to make the monitor's socket.
    package func protectedForm(qmpSocketPath: String, facts: PairFacts) throws -> DomainXML {
        var form = originalForm()
        try form.addOurs(
            arguments: Self.monitorArguments(qmpSocketPath: qmpSocketPath), facts: facts)
        return form
    }

    /// The domain as the user wrote it: our metadata, our arguments and what stood there only for
    /// them are gone; everything else is untouched.
    package func originalForm() -> DomainXML {
        var form = self
        form.removeOurs()
        return form
    }

    /// The arguments for our own QMP monitor. QEMU serves one client at a time on it.
    static func monitorArguments(qmpSocketPath: String) throws -> [String] {
        guard qmpSocketPath.hasPrefix("/"), qmpSocketPath.utf8.count <= 107 else {
            throw FtvmError(
                .invalidArgument, "QMP socket path \(qmpSocketPath) cannot be used",
                cause: "it must be absolute and at most 107 bytes long",
                advice: "set a shorter runtime_directory in ftvmd's configuration")
        }
        // In QEMU's option syntax a comma within a value is doubled.
        let path = qmpSocketPath.replacing(",", with: ",,")
        return [
            "-chardev", "socket,id=\(monitorID),path=\(path),server=on,wait=off",
            "-mon", "chardev=\(monitorID),mode=control",
        ]
    }

    /// What makes a QEMU wait. No `migration.send-configuration=off`, although the state that
    /// `xen-save-devices-state` saves has no configuration section: that setting would stay with
    /// the promoted QEMU and break a later `virsh migrate`. The section is put in when the state is
    /// loaded.
    static let waitingArguments = ["-incoming", "defer"]
}

// MARK: - Ours: adding and removing

extension DomainXML {
    private var rootScope: XMLScope { XMLScope().entering(root) }

    private var factsElement: XMLTree.Element? {
        guard let metadata = root.first("metadata") else { return nil }
        let scope = rootScope.entering(metadata)
        return metadata.elements.first { Self.isFacts($0, in: scope) }
    }

    private static func isFacts(_ element: XMLTree.Element, in scope: XMLScope) -> Bool {
        scope.matches(element, uri: PairFacts.namespace, PairFacts.elementName)
    }

    /// Adds our arguments and facts to a form that has none.
    mutating func addOurs(arguments: [String], facts: PairFacts) throws {
        precondition(factsElement == nil, "our own facts were not removed first")
        var added = addArguments(arguments)
        if root.first("metadata") == nil { added.insert(.metadata) }
        var facts = facts
        facts.added = added
        facts.dataPaths = useQEMUDataPath()
        addFacts(facts)
    }

    private mutating func addFacts(_ facts: PairFacts) {
        if root.first("metadata") == nil {
            let before: Set<String> = ["name", "uuid", "hwuuid", "genid", "title", "description"]
            tree.root.insert(XMLTree.Element("metadata"), indent: 2) { before.contains($0.name) }
            tree.root.updateFirst("metadata") { metadata in
                metadata.children = [.text("\n    "), .element(facts.element), .text("\n  ")]
            }
            return
        }
        tree.root.updateFirst("metadata") { metadata in
            metadata.insert(facts.element, indent: 4) { _ in true }
        }
    }

    /// Adds arguments at the end of the user's own `<qemu:commandline>`, or in a new one.
    private mutating func addArguments(_ arguments: [String]) -> Set<PairFacts.Scaffold> {
        let scope = rootScope
        let uri = Self.qemuNamespace
        if let own = root.elements.first(where: { scope.matches($0, uri: uri, "commandline") }) {
            let prefix = own.prefix
            tree.root.updateFirst(own.name) { commandLine in
                Self.append(arguments, to: &commandLine, prefix: prefix)
            }
            return []
        }
        var added: Set<PairFacts.Scaffold> = [.commandLine]
        let prefix: String
        if let declared = scope.prefix(forURI: uri) {
            prefix = declared
        } else {
            prefix = scope.uri(ofPrefix: "qemu") == nil ? "qemu" : "ftvm-qemu"
            tree.root["xmlns:\(prefix)"] = uri
            added.insert(.namespace)
        }
        var commandLine = XMLTree.Element("\(prefix):commandline")
        Self.append(arguments, to: &commandLine, prefix: prefix)
        commandLine.children.append(.text("\n  "))
        tree.root.insert(commandLine, indent: 2) { _ in true }
        return added
    }

    private static func append(
        _ arguments: [String], to commandLine: inout XMLTree.Element, prefix: String
    ) {
        let name = prefix.isEmpty ? "arg" : "\(prefix):arg"
        for argument in arguments {
            let element = XMLTree.Element(
                name, attributes: [XMLTree.Attribute("value", argument)])
            commandLine.insert(element, indent: 4) { _ in true }
        }
    }

    private mutating func removeOurs() {
        var added: Set<PairFacts.Scaffold> = []
        if let element = factsElement {
            added = PairFacts.scaffolds(element)
            restoreDataPath(PairFacts.dataPaths(element))
            let scope = rootScope
            tree.root.updateFirst("metadata") { metadata in
                let inner = scope.entering(metadata)
                metadata.removeElements { Self.isFacts($0, in: inner) }
            }
            if added.contains(.metadata) { removeIfBlank { $0.name == "metadata" } }
        }
        removeArguments(removingEmpty: added.contains(.commandLine))
        if added.contains(.namespace) { removeNamespaceDeclaration() }
    }

    private mutating func removeArguments(removingEmpty: Bool) {
        let scope = rootScope
        let uri = Self.qemuNamespace
        tree.root.updateElements { commandLine in
            guard scope.matches(commandLine, uri: uri, "commandline") else { return }
            let inner = scope.entering(commandLine)
            let values = commandLine.elements.map { element in
                inner.matches(element, uri: uri, "arg") ? element["value"] : nil
            }
            let ours = Self.indicesOfOurs(values)
            var index = -1
            commandLine.removeElements { _ in
                index += 1
                return ours.contains(index)
            }
        }
        if removingEmpty { removeIfBlank { scope.matches($0, uri: uri, "commandline") } }
    }

    /// Which of a command line's values are ours: an option and the value after it.
    package static func indicesOfOurs(_ values: [String?]) -> Set<Int> {
        var result: Set<Int> = []
        for index in values.indices.dropLast() {
            guard let option = values[index], let value = values[index + 1] else { continue }
            let isOurs =
                switch option {
                case "-chardev": value.hasPrefix("socket,id=\(monitorID),")
                case "-mon": value.hasPrefix("chardev=\(monitorID),")
                case "-incoming": value == "defer"
                default: false
                }
            if isOurs { result.formUnion([index, index + 1]) }
        }
        return result
    }

    /// Removes children of the root that hold nothing but white space.
    private mutating func removeIfBlank(_ condition: (XMLTree.Element) -> Bool) {
        tree.root.removeElements { element in
            condition(element)
                && element.children.allSatisfy { child in
                    if case .text(let raw) = child {
                        raw.utf8.allSatisfy(XMLText.isSpace)
                    } else {
                        false
                    }
                }
        }
    }

    private mutating func removeNamespaceDeclaration() {
        let uri = Self.qemuNamespace
        let scope = rootScope
        // The user may have added elements of that namespace since.
        let prefixes = Set(root.elements.map(\.prefix))
        tree.root.attributes.removeAll { attribute in
            guard attribute.name.hasPrefix("xmlns:"), attribute.value == uri else { return false }
            let prefix = String(attribute.name.dropFirst(6))
            return !prefixes.contains(prefix) && scope.uri(ofPrefix: prefix) == uri
        }
    }
}
