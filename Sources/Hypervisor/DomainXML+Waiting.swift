import Model

/// The form in which a secondary is made. The device state of the primary loads only into a QEMU
/// with the same devices at the same addresses, so it is made of the *live* XML, in which all of
/// that is spelled out; what belongs to that one run on that one host is taken out, as far as
/// libvirt does not ignore it by itself when a domain is created.
extension DomainXML {
    /// The waiting form of this domain (the user's own XML) as it runs now on the primary's host.
    /// - Parameters:
    ///   - liveXML: libvirt's XML of the running primary.
    ///   - qmpSocketPath: where the waiting QEMU is to make our monitor's socket.
    /// - Throws: `FtvmError(.invalidArgument)` when `liveXML` cannot be parsed or is another
    ///   domain.
    package func waitingForm(
        liveXML: String, qmpSocketPath: String, facts: PairFacts
    ) throws -> DomainXML {
        var form = try DomainXML(liveXML).originalForm()
        guard form.uuid == uuid, form.name == name else {
            throw FtvmError(
                .invalidArgument, "live XML is not of domain \(name)",
                cause: "it is of \(form.name), \(form.uuid ?? "without UUID")")
        }
        form.removeRuntime(of: originalForm())
        form.leaveImagesAlone()
        let arguments =
            try Self.monitorArguments(qmpSocketPath: qmpSocketPath) + Self.waitingArguments
        try form.addOurs(arguments: arguments, facts: facts)
        return form
    }

    /// Takes out what is only true of the run that the XML was taken from.
    private mutating func removeRuntime(of user: DomainXML) {
        tree.root["id"] = nil
        // Labels and cgroup are the other host's; what the user wrote about them holds here too.
        for name in ["seclabel", "resource"] { replaceElements(named: name, from: user) }
        tree.root.updateFirst("memoryBacking") { backing in
            // Its memory is the segment's: what QEMU has by itself is never used, so it is not to be of any kind.
            let ours = ["allocation", "locked", "hugepages", "source", "access"]
            backing.removeElements { ours.contains($0.name) }
        }
        tree.root.updateFirst("devices") { devices in
            devices.updateElements { device in Self.removeRuntime(ofDevice: &device) }
        }
    }

    private mutating func replaceElements(named name: String, from user: DomainXML) {
        tree.root.removeElements { $0.name == name }
        for element in user.root.all(name) {
            tree.root.insert(element, indent: 2) { _ in true }
        }
    }

    private static func removeRuntime(ofDevice device: inout XMLTree.Element) {
        // libvirt keeps only aliases that begin with "ua-" and assigns the others anew.
        device.removeElements { $0.name == "alias" && !($0["name"] ?? "").hasPrefix("ua-") }
        device.removeElements { $0.name == "seclabel" && $0["type"] == "dynamic" }
        switch device.name {
        case "disk": removeRuntime(ofDisk: &device)
        case "interface": removeRuntime(ofInterface: &device)
        case "serial", "parallel", "console", "channel", "rng", "redirdev":
            removeRuntime(ofCharacterDevice: &device)
        case "graphics": removeRuntime(ofGraphics: &device)
        default: break
        }
    }

    private static func removeRuntime(ofDisk device: inout XMLTree.Element) {
        device.updateElements { removeIndex(&$0) }
    }

    /// Numbers of block nodes, down the whole backing chain.
    private static func removeIndex(_ element: inout XMLTree.Element) {
        guard element.name == "source" || element.name == "backingStore" else { return }
        element["index"] = nil
        element.updateElements { removeIndex(&$0) }
    }

    private static func removeRuntime(ofInterface device: inout XMLTree.Element) {
        let generated = ["vnet", "macvtap", "macvlan"]
        device.updateFirst("target") { target in
            guard let name = target["dev"], generated.contains(where: { name.hasPrefix($0) }) else {
                return
            }
            target["dev"] = nil
        }
        device.removeElements {
            $0.name == "target" && $0.attributes.isEmpty && $0.elements.isEmpty
        }
        // A live interface of a network shows what the network made of it on that host.
        guard device.first("source")?["network"] != nil else { return }
        device["type"] = "network"
        device.updateFirst("source") { source in
            for name in ["portid", "bridge", "dev", "mode"] { source[name] = nil }
        }
    }

    private static func removeRuntime(ofCharacterDevice device: inout XMLTree.Element) {
        device["tty"] = nil
        device.updateFirst("target") { $0["state"] = nil }
        if device["type"] == "pty" { device.removeElements { $0.name == "source" } }
        // libvirt keeps such sockets in a directory of its own, named after the running domain.
        device.removeElements { $0.name == "source" && isInRunDirectory($0["path"]) }
    }

    private static func removeRuntime(ofGraphics device: inout XMLTree.Element) {
        if device["autoport"] == "yes" {
            for name in ["port", "tlsPort"] where device[name] != nil { device[name] = "-1" }
        }
        if isInRunDirectory(device["socket"]) { device["socket"] = nil }
        device.updateElements { listen in
            guard listen.name == "listen" else { return }
            if isInRunDirectory(listen["socket"]) { listen["socket"] = nil }
            if listen["type"] == "network" { listen["address"] = nil }
            listen["fromConfig"] = nil
        }
        if device.elements.contains(where: { $0["type"] == "network" }) { device["listen"] = nil }
    }

    /// Whether a path has libvirt's per-run directory `domain-<id>-<name>` in it.
    private static func isInRunDirectory(_ path: String?) -> Bool {
        guard let path else { return false }
        return path.split(separator: "/").contains { part in
            guard part.hasPrefix("domain-") else { return false }
            let rest = part.dropFirst(7)
            let digits = rest.prefix { $0.isASCII && $0.isNumber }
            return !digits.isEmpty && rest.dropFirst(digits.count).hasPrefix("-")
        }
    }
}
