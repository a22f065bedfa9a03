import Model

/// Who image files belong to. libvirt gives a domain's images to QEMU's user when it starts the domain, and to root (or
/// whom it remembers) when the domain ends. An image that several hosts share has only one owner.
extension DomainXML {
    /// For the waiting form: libvirt is to leave the owners of the guest's image files as they are.
    ///
    /// When a waiting QEMU ends, libvirt would take the images back, while on another host, whose libvirt has just given
    /// them to QEMU, the guest is being started: that QEMU could not open them ("Permission denied"). It happens just when a
    /// guest that has shut down is started again, for then its waiting QEMU ends as well. So the libvirt that starts the guest
    /// decides alone.
    ///
    /// Block devices are not meant: their nodes are each host's own. Neither are domains and images for which the user has
    /// said something about owners (in a domain where libvirt changes none it refuses exceptions).
    /// Format: https://libvirt.org/formatdomain.html#security-label
    mutating func leaveImagesAlone() {
        guard !root.elements.contains(where: Self.isOwnership) else { return }
        tree.root.updateFirst("devices") { devices in
            devices.updateElements { device in
                guard device.name == "disk" else { return }
                let disk = Disk(device)
                guard disk.type == "file", disk.needsLog else { return }
                device.updateFirst("source") { source in
                    guard !source.elements.contains(where: Self.isOwnership) else { return }
                    let label = XMLTree.Element(
                        "seclabel",
                        attributes: [
                            XMLTree.Attribute("model", "dac"), XMLTree.Attribute("relabel", "no"),
                        ])
                    source.insert(label, indent: 8) { _ in true }
                }
            }
        }
    }

    /// Image files whose owners libvirt leaves as they are.
    package var imagesLeftAlone: [String] {
        let disks = root.first("devices")?.all("disk") ?? []
        return disks.compactMap { disk -> String? in
            guard let source = disk.first("source"),
                source.elements.contains(where: { Self.isOwnership($0) && $0["relabel"] == "no" })
            else { return nil }
            return source["file"]
        }
    }

    private static func isOwnership(_ element: XMLTree.Element) -> Bool {
        element.name == "seclabel" && element["model"] == "dac"
    }
}

/// A user and a group of this host, as numbers.
package struct FileOwner: Hashable, Sendable {
    package let user: UInt32
    package let group: UInt32

    package init(user: UInt32, group: UInt32) {
        self.user = user
        self.group = group
    }

    /// Whom libvirt runs QEMU as, and gives files to, where a domain does not say; nil: it changes no owners.
    /// - Parameter text: libvirt's capabilities (https://libvirt.org/formatcaps.html): the `<baselabel>` of the security
    ///   model `dac`, such as `+64055:+64055`.
    /// - Throws: `.invalidArgument` when they are no XML.
    package init?(capabilities text: String) throws {
        let models = try XMLTree(parsing: text).root.first("host")?.all("secmodel") ?? []
        guard let model = models.first(where: { $0.first("model")?.text == "dac" }),
            let label = model.first("baselabel")?.text
        else { return nil }
        let numbers = label.split(separator: ":").compactMap { UInt32($0) }
        guard numbers.count == 2 else { return nil }
        self.init(user: numbers[0], group: numbers[1])
    }
}
