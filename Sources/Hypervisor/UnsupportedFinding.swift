import Model

/// Something in a domain that stands in the way of protecting it, or that its owner should know.
package struct UnsupportedFinding: Hashable, Sendable, CustomStringConvertible {
    package enum Severity: String, Sendable, Codable {
        /// The domain cannot be protected with it.
        case error
        /// It can, but something will not be as one might expect.
        case warning
    }

    package var severity: Severity
    /// The device as a person finds it in the XML: `disk vda`, `hostdev 0000:03:00.0`.
    package var device: String
    /// Why it cannot be carried to another host.
    package var why: String
    /// What the owner can do.
    package var advice: String

    package init(severity: Severity, device: String, why: String, advice: String) {
        self.severity = severity
        self.device = device
        self.why = why
        self.advice = advice
    }

    package var description: String { "\(device): \(why) (\(advice))" }
}

extension DomainXML {
    /// Refuses a domain that has anything which cannot be protected.
    /// - Throws: `FtvmError(.unsupported)` that names every such device.
    package func requireProtectable() throws {
        let errors = unsupportedDevices().filter { $0.severity == .error }
        guard let first = errors.first else { return }
        throw FtvmError(
            .unsupported, "domain \(name) cannot be protected as it is",
            cause: errors.map { "\($0.device): \($0.why)" }.joined(separator: "; "),
            advice: errors.count == 1
                ? first.advice : errors.map { "\($0.device): \($0.advice)" }.joined(separator: "; ")
        )
    }

    /// Everything in this domain that cannot be protected yet, or that its owner should know of.
    /// The order is that of the XML, the machine itself first.
    package func unsupportedDevices() -> [UnsupportedFinding] {
        var findings = machineFindings() + memoryFindings()
        for device in root.first("devices")?.elements ?? [] {
            findings += Self.findings(device)
        }
        return findings
    }
}

// MARK: - The machine and its memory

extension DomainXML {
    private func machineFindings() -> [UnsupportedFinding] {
        var findings: [UnsupportedFinding] = []
        func refuse(_ device: String, _ why: String, _ advice: String) {
            findings.append(.init(severity: .error, device: device, why: why, advice: advice))
        }
        func warn(_ device: String, _ why: String, _ advice: String) {
            findings.append(.init(severity: .warning, device: device, why: why, advice: advice))
        }
        if !["kvm", "qemu"].contains(virtualizationType) {
            refuse(
                "domain type \(virtualizationType)", "only QEMU can be protected",
                "use type kvm or qemu")
        }
        if let architecture, architecture != "x86_64" {
            refuse(
                "architecture \(architecture)", "only x86_64 guests can be protected",
                "there is no way round this yet")
        }
        if root.first("genid") != nil {
            refuse(
                "genid", "the guest would be told of a new generation at each failover",
                "remove <genid>")
        }
        let os = root.first("os")
        if let type = os?.first("nvram")?["type"], type != "file" {
            refuse(
                "UEFI firmware", "its variables are kept in storage of type \(type)",
                "use a file: it is written anew from memory at each failover")
        }
        if let security = root.first("launchSecurity") {
            refuse(
                "launchSecurity \(security["type"] ?? "")",
                "encrypted guest memory cannot be read by the host", "remove <launchSecurity>")
        }
        let mode = root.first("cpu")?["mode"]
        if mode == "host-passthrough" || mode == "maximum" {
            warn(
                "cpu mode \(mode ?? "")",
                "the guest sees this host's CPU: a failover needs a host with the same one",
                "use a named CPU model or host-model")
        }
        let scope = XMLScope().entering(root)
        for element in originalForm().root.elements
        where scope.entering(element).uri(ofPrefix: element.prefix) == Self.qemuNamespace {
            warn(
                element.name, "ftvm cannot judge what is passed to QEMU past libvirt",
                "make sure that it means the same on every host")
        }
        return findings
    }

    private func memoryFindings() -> [UnsupportedFinding] {
        var findings: [UnsupportedFinding] = []
        func refuse(_ device: String, _ why: String, _ advice: String) {
            findings.append(.init(severity: .error, device: device, why: why, advice: advice))
        }
        func warn(_ device: String, _ why: String, _ advice: String) {
            findings.append(.init(severity: .warning, device: device, why: why, advice: advice))
        }
        if root.first("maxMemory") != nil {
            refuse(
                "maxMemory", "memory that can be plugged in is not carried yet",
                "remove <maxMemory>")
        }
        let cells = root.descend("cpu", "numa")?.all("cell") ?? []
        if cells.contains(where: { $0["memAccess"] == "shared" }) {
            refuse(
                "numa cells",
                "another process that writes to guest memory is not seen by the page tracker",
                "remove memAccess from <cell>")
        }
        let backing = memoryBacking
        let isShared = backing.access == "shared"
        if backing.hugePages, !isShared {
            refuse(
                "memoryBacking hugepages",
                "the pool provides the memory, in pages of its own size",
                "remove <hugepages/>; choose a hugetlbfs pool instead")
        }
        if let source = backing.source, source != "anonymous", !isShared {
            refuse(
                "memoryBacking source \(source)",
                "the pool provides the memory",
                "remove <source> from <memoryBacking>")
        }
        if isShared, !cells.isEmpty {
            refuse(
                "memoryBacking access shared",
                "with NUMA cells it is several memory objects, which are not adopted yet",
                "remove <access> from <memoryBacking>, or <numa>")
        } else if isShared {
            warn(
                "memoryBacking access shared",
                "adopted where it is if the pool can keep it, moved into the pool otherwise",
                "choose a pool of kind memfd for the first; nothing needs to be done")
        }
        if backing.isLocked {
            refuse(
                "memoryBacking locked",
                "the memory that QEMU locked would be replaced by the pool's",
                "remove <locked/>; pool memory is reserved whole anyway")
        }
        if backing.isPreallocated {
            warn(
                "memoryBacking allocation immediate",
                "memory is allocated at start and then replaced by the pool's",
                "remove <allocation>; pool memory is reserved whole anyway")
        }
        if backing.hasNoSharePages {
            warn(
                "memoryBacking nosharepages", "pool memory is never merged with other pages",
                "nothing needs to be done")
        }
        return findings
    }
}
