import Model

/// A NIC of a running guest whose frames the network gate holds.
package struct GuestNIC: Hashable, Sendable {
    /// Its place among the domain's interfaces: the same on every host.
    package let index: Int
    /// QEMU's name of the backend: `hostnet0`.
    package let netdev: String
    /// The tap or macvtap on this host: `vnet0`.
    package let hostDevice: String
    /// Six bytes.
    package let mac: [UInt8]
    /// Whether its frames carry a virtio-net header where the tap has one: what QEMU's models do with it.
    package let usesHeader: Bool
    /// Whether libvirt may have given it to vhost.
    package let mayUseVHost: Bool

    package init(
        index: Int, netdev: String, hostDevice: String, mac: [UInt8], usesHeader: Bool,
        mayUseVHost: Bool = false
    ) {
        self.index = index
        self.netdev = netdev
        self.hostDevice = hostDevice
        self.mac = mac
        self.usesHeader = usesHeader
        self.mayUseVHost = mayUseVHost
    }

    package var macText: String { Self.text(mac) }

    static func text(_ mac: [UInt8]) -> String {
        mac.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: ":")
    }

    static func bytes(ofMAC text: String) -> [UInt8]? {
        let bytes = text.split(separator: ":").compactMap { UInt8($0, radix: 16) }
        return bytes.count == 6 ? bytes : nil
    }

    /// Refuses a QEMU that has given NICs to vhost: their frames go past QEMU, and cannot be held back.
    /// - Parameter descriptorLinks: what the process's descriptors are links to (/proc/PID/fd).
    /// - Throws: `.unsupported` that names the NICs.
    package static func requireNoVHost(
        _ nics: [GuestNIC], descriptorLinks: [String], domain: String
    ) throws {
        guard descriptorLinks.contains("/dev/vhost-net") else { return }
        let suspects = nics.filter(\.mayUseVHost)
        let names = (suspects.isEmpty ? nics : suspects).map { "\($0.macText) (\($0.hostDevice))" }
        throw FtvmError(
            .unsupported, "domain \(domain) cannot be protected while it runs as it is",
            cause: "vhost moves the packets of its interface \(names.joined(separator: ", ")) past "
                + "QEMU: they cannot be held back until their epoch is committed",
            advice: "shut the guest down, 'ftvm enable' it and start it again; or set "
                + "<driver name='qemu'/> in that interface and restart the guest")
    }
}

extension DomainXML {
    /// Kinds of interface that end in a tap or macvtap of the host.
    static let tapInterfaceTypes: Set<String> = ["bridge", "network", "ethernet", "direct"]

    /// The NICs of a running domain; of `liveXML`, since only that says how QEMU calls them and where they end.
    /// - Throws: `.unsupported` for one that does not end in a tap of the host.
    package func guestNICs() throws -> [GuestNIC] {
        var nics: [GuestNIC] = []
        for (index, element) in (root.first("devices")?.all("interface") ?? []).enumerated() {
            let interface = Interface(element)
            if interface.type == "null" { continue }
            guard let alias = element.first("alias")?["name"], let device = interface.hostDevice,
                let mac = interface.mac.flatMap(GuestNIC.bytes(ofMAC:))
            else {
                throw FtvmError(
                    .unsupported,
                    "interface \(interface.mac ?? "\(index)") of domain \(name) cannot be protected",
                    cause: "it is of type \(interface.type) and has no tap device on this host",
                    advice: "use a bridge or network")
            }
            let model = interface.model ?? ""
            nics.append(
                GuestNIC(
                    index: index, netdev: "host" + alias, hostDevice: device, mac: mac,
                    usesHeader: model.hasPrefix("virtio")
                        || ["e1000e", "igb", "vmxnet3"].contains(model),
                    mayUseVHost: model.hasPrefix("virtio") && interface.driver != "qemu"))
        }
        return nics
    }
}

// MARK: - The data path

extension DomainXML {
    /// What `<driver name=…>` of an interface was before ftvm set it to `qemu`.
    package enum DataPath: String, Sendable {
        /// There was no `<driver>`.
        case none
        /// It had no name.
        case unnamed
        case vhost
    }

    /// Gives virtio NICs to QEMU itself: with vhost their frames would go past the gate.
    /// - Returns: what was changed, by MAC address, or by number for an interface that has none yet.
    mutating func useQEMUDataPath() -> [String: DataPath] {
        var changed: [String: DataPath] = [:]
        updateInterfaces { key, element in
            let interface = Interface(element)
            guard Self.tapInterfaceTypes.contains(interface.type),
                interface.model?.hasPrefix("virtio") ?? false, interface.driver != "qemu"
            else { return }
            guard element.first("driver") != nil else {
                changed[key] = DataPath.none
                let driver = XMLTree.Element(
                    "driver", attributes: [XMLTree.Attribute("name", "qemu")])
                element.insert(driver, indent: 6) { _ in true }
                return
            }
            changed[key] = interface.driver == nil ? .unnamed : .vhost
            element.updateFirst("driver") { $0["name"] = "qemu" }
        }
        return changed
    }

    /// The inverse; an interface that has got another driver meanwhile is left as it is.
    mutating func restoreDataPath(_ changed: [String: DataPath]) {
        guard !changed.isEmpty else { return }
        updateInterfaces { key, element in
            guard let before = changed[key], element.first("driver")?["name"] == "qemu" else {
                return
            }
            switch before {
            case .vhost: element.updateFirst("driver") { $0["name"] = "vhost" }
            case .unnamed: element.updateFirst("driver") { $0["name"] = nil }
            case .none:
                var remains = false
                element.updateFirst("driver") { driver in
                    driver["name"] = nil
                    remains = !driver.attributes.isEmpty || !driver.elements.isEmpty
                }
                if !remains { element.removeElements { $0.name == "driver" } }
            }
        }
    }

    private mutating func updateInterfaces(
        _ body: (_ key: String, _ element: inout XMLTree.Element) -> Void
    ) {
        tree.root.updateFirst("devices") { devices in
            var index = 0
            devices.updateElements { element in
                guard element.name == "interface" else { return }
                defer { index += 1 }
                body(element.first("mac")?["address"]?.lowercased() ?? "#\(index)", &element)
            }
        }
    }
}
