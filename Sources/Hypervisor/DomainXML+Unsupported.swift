import Model

/// What of each kind of device can be protected. Devices whose state is all in QEMU's device state
/// are fine; devices whose state is elsewhere (in the host's kernel, in another process, in a
/// physical device) are not. A device that this list does not know is refused: better than finding
/// out at a failover.
extension DomainXML {
    static func findings(_ device: XMLTree.Element) -> [UnsupportedFinding] {
        switch device.name {
        case "emulator", "controller", "sound", "audio", "watchdog", "rng", "panic", "hub",
            "redirfilter":
            return []
        case "disk": return diskFindings(device)
        case "interface": return interfaceFindings(device)
        case "serial", "parallel", "console", "channel": return characterFindings(device)
        case "video": return videoFindings(device)
        case "graphics": return graphicsFindings(device)
        case "input": return inputFindings(device)
        case "memballoon": return balloonFindings(device)
        default: return [otherFinding(device)]
        }
    }

    static func refuse(
        _ device: String, _ why: String, _ advice: String
    ) -> UnsupportedFinding {
        .init(severity: .error, device: device, why: why, advice: advice)
    }

    static func warn(
        _ device: String, _ why: String, _ advice: String
    ) -> UnsupportedFinding {
        .init(severity: .warning, device: device, why: why, advice: advice)
    }

    // MARK: Network

    private static func interfaceFindings(_ element: XMLTree.Element) -> [UnsupportedFinding] {
        let interface = Interface(element)
        let name = "interface \(interface.mac ?? interface.hostDevice ?? "") type \(interface.type)"
        var findings: [UnsupportedFinding] = []
        switch interface.type {
        case "hostdev", "vdpa":
            return [
                refuse(
                    name, "a device of this host", "use a bridge or network with a virtio model")
            ]
        case "vhostuser":
            return [
                refuse(
                    name, "another process writes guest memory and holds the queues' state",
                    "use a bridge or network with a virtio model")
            ]
        case "direct" where interface.mode == "passthrough":
            return [
                refuse(
                    name, "it takes over the host's device \(interface.source ?? "")",
                    "use mode='bridge', or a bridge")
            ]
        case "direct":
            findings.append(
                warn(
                    name, "\(interface.source ?? "") must mean the same network on every host",
                    "a bridge of the same name on every host is simpler"))
        case "user":
            return [
                refuse(
                    name,
                    "QEMU's or passt's own network: its connections end at a failover, and its "
                        + "packets cannot be held back until their epoch is committed",
                    "use a bridge or network")
            ]
        case "null": return []
        case let type where !tapInterfaceTypes.contains(type):
            return [
                refuse(
                    name, "its packets cannot be held back until their epoch is committed",
                    "use a bridge or network")
            ]
        default: break
        }
        if let queues = element.first("driver")?["queues"].flatMap({ Int($0) }), queues > 1 {
            return [
                refuse(
                    name,
                    "packets of \(queues) queues cannot be held back: QEMU's filters know one",
                    "remove queues from <driver>")
            ]
        }
        if interface.model?.hasPrefix("virtio") ?? false, interface.driver != "qemu" {
            findings.append(
                warn(
                    name,
                    "with vhost its packets could not be held back: while it is protected QEMU's own "
                        + "data path is used", "nothing needs to be done"))
        }
        return findings
    }

    // MARK: Consoles

    private static func characterFindings(_ element: XMLTree.Element) -> [UnsupportedFinding] {
        let target = element.first("target")
        let label = target?["name"] ?? target?["port"] ?? ""
        let name = "\(element.name) \(label)".trimmingSpaces
        switch element["type"] ?? "" {
        case "dev":
            return [
                refuse(
                    name,
                    "\(element.first("source")?["path"] ?? "its device") is a device of this host",
                    "use type pty, file, unix or tcp")
            ]
        case "spicevmc", "spiceport", "qemu-vdagent", "dbus":
            return [
                warn(
                    name, "what the viewer and the guest's agent have agreed is lost at a failover",
                    "reconnect the viewer")
            ]
        default: return []
        }
    }

    // MARK: Screen and input

    private static func videoFindings(_ element: XMLTree.Element) -> [UnsupportedFinding] {
        let model = element.first("model")?["type"] ?? "?"
        let name = "video \(model)"
        switch model {
        case "none", "vga", "bochs", "cirrus", "ramfb": return []
        case "virtio":
            if element.first("model")?.first("acceleration")?["accel3d"] == "yes" {
                return [
                    refuse(
                        name, "it draws with this host's graphics processor",
                        "remove <acceleration>")
                ]
            }
            return [
                warn(
                    name,
                    "the picture is a part of the device state: each commit saves all of it, about "
                        + "1 ms for each MiB", "use vga where that matters")
            ]
        default:
            return [
                refuse(
                    name, "its memory is shared with a viewer's server, which is not carried",
                    "use vga or virtio")
            ]
        }
    }

    private static func graphicsFindings(_ element: XMLTree.Element) -> [UnsupportedFinding] {
        let type = element["type"] ?? "?"
        let usesGPU = element.first("gl")?["enable"] == "yes" || type == "egl-headless"
        guard usesGPU else { return [] }
        return [
            refuse(
                "graphics \(type)", "it draws with this host's graphics processor",
                "use vnc, or spice without gl")
        ]
    }

    private static func inputFindings(_ element: XMLTree.Element) -> [UnsupportedFinding] {
        let type = element["type"] ?? "?"
        guard type == "passthrough" || type == "evdev" else { return [] }
        let path = element.first("source").flatMap { $0["evdev"] ?? $0["dev"] } ?? ""
        return [
            refuse(
                "input \(type) \(path)".trimmingSpaces, "an input device of this host",
                "use a tablet, mouse or keyboard of QEMU's")
        ]
    }

    private static func balloonFindings(_ element: XMLTree.Element) -> [UnsupportedFinding] {
        guard element["freePageReporting"] == "on" else { return [] }
        return [
            warn(
                "memballoon \(element["model"] ?? "") freePageReporting",
                "pages that the guest reports free stay reserved in the pool",
                "switch freePageReporting off")
        ]
    }

    // MARK: Everything else

    private static func otherFinding(_ element: XMLTree.Element) -> UnsupportedFinding {
        let name = "\(element.name) \(label(of: element))".trimmingSpaces
        switch element.name {
        case "hostdev":
            return refuse(
                name, "a device of this host, which writes guest memory past the page tracker",
                "remove it; use an emulated or virtio device")
        case "filesystem":
            let driver = element.first("driver")?["type"] ?? "path"
            let why =
                driver == "virtiofs"
                ? "virtiofsd writes guest memory and holds the open files"
                : "QEMU's open files of this host are not part of the device state"
            return refuse(name, why, "mount the directory over the network instead")
        case "tpm":
            return refuse(
                name,
                "the TPM's state is in \(element.first("backend")?["type"] ?? "its backend"), "
                    + "outside QEMU", "remove the TPM")
        case "shmem":
            return refuse(name, "other processes share this memory", "remove it")
        case "memory":
            return refuse(
                name, "memory devices are not carried yet", "give the guest one <memory>")
        case "redirdev":
            return refuse(name, "a USB device at a viewer's end", "remove it")
        case "vsock":
            return refuse(
                name, "the host's kernel holds its connections (vhost)",
                "use a serial channel or the network")
        case "crypto":
            return refuse(name, "its sessions are not part of the device state", "remove it")
        case "smartcard":
            return refuse(name, "a card reader of this host or at a viewer's end", "remove it")
        case "lease":
            return refuse(
                name, "primary and secondary would both want the lease", "remove it; ftvm fences")
        case "iommu":
            return .init(
                severity: .warning, device: name,
                why: "protection with an IOMMU in the guest has not been tried",
                advice: "rehearse a failover before relying on it")
        default:
            return refuse(
                name, "ftvm does not know this device",
                "remove it, or tell ftvm's developers about it")
        }
    }

    /// What tells this device from others of its kind: address, alias, target, model.
    private static func label(of element: XMLTree.Element) -> String {
        if let origin = element.descend("source", "address") ?? element.first("source") {
            if let bus = origin["bus"], let slot = origin["slot"] {
                return [origin["domain"] ?? "0x0000", bus, slot, origin["function"] ?? "0x0"]
                    .map { $0.replacing("0x", with: "") }.pciAddress
            }
            if let vendor = element.descend("source", "vendor")?["id"] {
                return "usb \(vendor):\(element.descend("source", "product")?["id"] ?? "?")"
            }
        }
        return element.first("target").flatMap { $0["dir"] ?? $0["dev"] ?? $0["name"] }
            ?? element["name"] ?? element.first("alias")?["name"] ?? element["model"]
            ?? element.first("model")?["type"] ?? element["type"] ?? ""
    }
}

extension String {
    /// Without spaces at the end, where an optional part was empty.
    fileprivate var trimmingSpaces: String { XMLText.trim(self) }
}

extension [String] {
    /// `0000:03:00.0` of domain, bus, slot and function in hexadecimal digits.
    fileprivate var pciAddress: String {
        count == 4 ? "\(self[0]):\(self[1]):\(self[2]).\(self[3])" : joined(separator: ":")
    }
}
