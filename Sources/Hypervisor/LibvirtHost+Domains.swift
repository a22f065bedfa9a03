import CLibvirt
import Foundation
import Model

/// Looking at domains.
extension LibvirtHost {
    /// All domains, shut off ones too.
    package func listDomains() async throws -> [DomainSummary] {
        try await use("list the domains") { connection in
            var list: UnsafeMutablePointer<virDomainPtr?>?
            let count = virConnectListAllDomains(connection.pointer, &list, 0)
            guard count >= 0, let list else {
                throw LibvirtError.last("cannot list the domains")
            }
            defer { free(list) }
            let domains = (0..<Int(count)).compactMap { list[$0].map { LibvirtDomain(owning: $0) } }
            // A domain may go away while we look.
            return domains.compactMap { domain in
                (try? domain.status()).map {
                    DomainSummary(name: $0.name, uuid: $0.uuid, state: $0.state.rawValue)
                }
            }
        }
    }

    package func status(_ domain: DomainIdentifier) async throws -> DomainStatus {
        try await use("look at", domain) { try $0.status() }
    }

    /// The same; nil when there is no such domain.
    package func find(_ domain: DomainIdentifier) async throws -> DomainStatus? {
        do {
            return try await status(domain)
        } catch let error as FtvmError where error.code == .notFound {
            return nil
        }
    }

    /// The XML of the persistent definition (of the running one for a transient domain), with
    /// secrets such as VNC passwords.
    package func inactiveXML(_ domain: DomainIdentifier) async throws -> String {
        try await use("read the XML of", domain) {
            try $0.xml(VIR_DOMAIN_XML_INACTIVE, VIR_DOMAIN_XML_SECURE)
        }
    }

    /// The XML of the domain as it runs (of the definition when it is shut off), with secrets.
    package func liveXML(_ domain: DomainIdentifier) async throws -> String {
        try await use("read the XML of", domain) { try $0.xml(VIR_DOMAIN_XML_SECURE) }
    }

    /// The domain's QEMU process.
    /// - Throws: `.notFound` when none runs.
    package func process(_ domain: DomainIdentifier) async throws -> QEMUProcess {
        let directory = options.stateDirectory
        return try await use("find the process of", domain) { domain in
            try QEMUProcess.find(
                domain: domain.name, uuid: domain.uuid, stateDirectory: directory)
        }
    }

    /// The domain's monitor through libvirt; see `LibvirtMonitor`. Its calls block.
    package func monitor(_ domain: DomainIdentifier) async throws -> LibvirtMonitor {
        try await use("reach the monitor of", domain) { domain in
            guard virDomainIsActive(domain.pointer) == 1 else {
                throw FtvmError(.failedPrecondition, "domain \(domain.name) is not running")
            }
            return LibvirtMonitor(domain: domain)
        }
    }

    /// Runs one QMP command in the domain's monitor, through libvirt.
    /// - Parameter arguments: a JSON object as text.
    package func monitorCommand(
        _ domain: DomainIdentifier, _ command: String, arguments: String? = nil
    ) async throws -> MonitorReply {
        let monitor = try await monitor(domain)
        let limit = options.callTimeoutMilliseconds
        return try await use(
            "run \(command) in the monitor of", domain, timeoutMilliseconds: limit + 1_000
        ) { _ in
            try monitor.execute(command, arguments: arguments, timeoutMilliseconds: limit)
        }
    }

    /// The versions of the libvirt daemon and of the QEMU that it uses by default.
    package func versions() async throws -> (libvirt: String, qemu: String) {
        try await use("ask for the versions") { connection in
            var libvirt: UInt = 0
            var qemu: UInt = 0
            guard virConnectGetLibVersion(connection.pointer, &libvirt) == 0,
                virConnectGetVersion(connection.pointer, &qemu) == 0
            else { throw LibvirtError.last("cannot ask libvirt for its version") }
            return (Self.version(libvirt), Self.version(qemu))
        }
    }

    /// What tells this daemon from every other: the `<uuid>` of `<host>` in its capabilities.
    package func hostUUID() async throws -> String {
        try await use("ask for the host's UUID") { connection in
            guard let text = virConnectGetCapabilities(connection.pointer) else {
                throw LibvirtError.last("cannot ask libvirt for its capabilities")
            }
            defer { free(text) }
            let tree = try XMLTree(parsing: String(cString: text)).root
            guard let uuid = tree.first("host")?.first("uuid")?.text else {
                throw FtvmError(.unsupported, "libvirt's capabilities name no host UUID")
            }
            return uuid
        }
    }

    /// Whom libvirt runs QEMU as where a domain does not say; nil: it changes no owners of files.
    package func qemuOwner() async throws -> FileOwner? {
        try await use("ask for QEMU's user") { connection in
            guard let text = virConnectGetCapabilities(connection.pointer) else {
                throw LibvirtError.last("cannot ask libvirt for its capabilities")
            }
            defer { free(text) }
            return try FileOwner(capabilities: String(cString: text))
        }
    }

    /// libvirt's way to put a version into one number.
    private static func version(_ number: UInt) -> String {
        "\(number / 1_000_000).\(number / 1_000 % 1_000).\(number % 1_000)"
    }
}

/// Changing domains.
extension LibvirtHost {
    /// Starts a transient domain, or a run of the persistent domain of that name and UUID.
    package func create(xml: String, paused: Bool = false) async throws -> DomainStatus {
        let name = try DomainXML(xml).name
        return try await use(
            "create domain \(name)", timeoutMilliseconds: options.lifecycleTimeoutMilliseconds
        ) { connection in
            let flags = paused ? VIR_DOMAIN_START_PAUSED.rawValue : 0
            guard let pointer = virDomainCreateXML(connection.pointer, xml, flags) else {
                throw LibvirtError.last("cannot create domain \(name)")
            }
            return try LibvirtDomain(owning: pointer).status()
        }
    }

    /// Makes a persistent definition, or replaces the one of that name and UUID. A running domain
    /// goes on as it is.
    package func define(xml: String) async throws -> DomainStatus {
        let name = try DomainXML(xml).name
        return try await use("define domain \(name)") { connection in
            guard let pointer = virDomainDefineXMLFlags(connection.pointer, xml, 0) else {
                throw LibvirtError.last("cannot define domain \(name)")
            }
            return try LibvirtDomain(owning: pointer).status()
        }
    }

    /// Removes the persistent definition; a running domain becomes transient. The guest's UEFI
    /// variables and TPM state stay on the host, and so does what is in snapshots; what this libvirt knows about those goes,
    /// since it would keep the definition.
    package func undefine(_ domain: DomainIdentifier) async throws {
        try await use("undefine", domain) { domain in
            let plain =
                VIR_DOMAIN_UNDEFINE_KEEP_NVRAM.rawValue
                | VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA.rawValue
                | VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA.rawValue
            let flags = plain | VIR_DOMAIN_UNDEFINE_KEEP_TPM.rawValue
            if virDomainUndefineFlags(domain.pointer, flags) == 0 { return }
            // libvirt before 8.9 does not know the flag about the TPM.
            try domain.check(virDomainUndefineFlags(domain.pointer, plain), "undefine")
        }
    }

    /// Whether libvirt starts a defined domain with its host.
    package func isAutostarted(_ domain: DomainIdentifier) async throws -> Bool {
        try await use("ask for the autostart of", domain) { domain in
            var flag: CInt = 0
            try domain.check(
                virDomainGetAutostart(domain.pointer, &flag), "ask for the autostart of")
            return flag != 0
        }
    }

    package func setAutostart(_ domain: DomainIdentifier, _ isWanted: Bool) async throws {
        try await use("set the autostart of", domain) { domain in
            let result = virDomainSetAutostart(domain.pointer, isWanted ? 1 : 0)
            try domain.check(result, "set the autostart of")
        }
    }

    /// Starts a defined domain.
    package func start(_ domain: DomainIdentifier, paused: Bool = false) async throws {
        try await use(
            "start", domain, timeoutMilliseconds: options.lifecycleTimeoutMilliseconds
        ) { domain in
            let flags = paused ? VIR_DOMAIN_START_PAUSED.rawValue : 0
            try domain.check(virDomainCreateWithFlags(domain.pointer, flags), "start")
        }
    }

    /// Ends QEMU at once. That it is not running any more is a success.
    package func destroy(_ domain: DomainIdentifier) async throws {
        try await use(
            "destroy", domain, timeoutMilliseconds: options.lifecycleTimeoutMilliseconds
        ) { domain in
            if virDomainDestroy(domain.pointer) == 0 { return }
            let error = LibvirtError.last("cannot destroy domain \(domain.name)")
            if virDomainIsActive(domain.pointer) == 0 { return }
            throw error
        }
    }

    package func suspend(_ domain: DomainIdentifier) async throws {
        try await use("suspend", domain) {
            _ = try $0.check(virDomainSuspend($0.pointer), "suspend")
        }
    }

    package func resume(_ domain: DomainIdentifier) async throws {
        try await use("resume", domain) {
            _ = try $0.check(virDomainResume($0.pointer), "resume")
        }
    }

    /// Writes the pair's facts into the domain's metadata, of the run and of the definition as far
    /// as there are such.
    package func setPairFacts(_ domain: DomainIdentifier, _ facts: PairFacts) async throws {
        try await use("write the metadata of", domain) { domain in
            try domain.setMetadata(facts)
        }
    }

    /// Takes the pair's facts out of the domain's metadata; that there are none is a success.
    package func removePairFacts(_ domain: DomainIdentifier) async throws {
        try await use("write the metadata of", domain) { domain in
            try domain.setMetadata(nil)
        }
    }
}

extension LibvirtDomain {
    func status() throws -> DomainStatus {
        var state: Int32 = 0
        var reason: Int32 = 0
        try check(virDomainGetState(pointer, &state, &reason, 0), "look at")
        let isActive = try check(virDomainIsActive(pointer), "look at") == 1
        let isPersistent = try check(virDomainIsPersistent(pointer), "look at") == 1
        let known = DomainState(number: state)
        return DomainStatus(
            name: name, uuid: uuid, state: known, reason: known.reason(number: reason),
            isActive: isActive, isPersistent: isPersistent)
    }

    func setMetadata(_ facts: PairFacts?) throws {
        let status = try status()
        var scopes: [virDomainModificationImpact] = []
        if status.isActive { scopes.append(VIR_DOMAIN_AFFECT_LIVE) }
        if status.isPersistent { scopes.append(VIR_DOMAIN_AFFECT_CONFIG) }
        for scope in scopes {
            let text = try facts.map { try metadata($0, scope) }
            let result = virDomainSetMetadata(
                pointer, Int32(VIR_DOMAIN_METADATA_ELEMENT.rawValue), text,
                text == nil ? nil : PairFacts.prefix, PairFacts.namespace, scope.rawValue)
            if result < 0 {
                let error = LibvirtError.last("cannot write the metadata of domain \(name)")
                if facts == nil && error.code == .notFound { continue }
                throw error
            }
        }
    }

    /// The element to write: what is there now says which scaffolding was added for ftvm.
    private func metadata(_ facts: PairFacts, _ scope: virDomainModificationImpact) throws -> String
    {
        let flags =
            scope == VIR_DOMAIN_AFFECT_CONFIG
            ? xmlForConfiguration : VIR_DOMAIN_XML_SECURE.rawValue
        guard let pointer = virDomainGetXMLDesc(pointer, flags) else {
            throw LibvirtError.last("cannot read the XML of domain \(name)")
        }
        defer { free(pointer) }
        let present = try DomainXML(String(cString: pointer))
        var facts = facts
        facts.added =
            present.pairFacts?.added
            ?? (present.root.first("metadata") == nil ? [.metadata] : [])
        facts.dataPaths = present.pairFacts?.dataPaths ?? [:]
        var text = ""
        facts.unprefixedElement.write(to: &text)
        return text
    }

    private var xmlForConfiguration: UInt32 {
        VIR_DOMAIN_XML_INACTIVE.rawValue | VIR_DOMAIN_XML_SECURE.rawValue
    }
}
