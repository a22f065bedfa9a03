import ControlAPI
import Foundation
import Hypervisor
import Model

/// `ftvm doctor`: every host looks at itself, the one that was asked judges.
extension Agent {
    /// - Parameter name: a domain of any host; nil: the hosts only.
    func doctor(_ name: String?) async throws -> DoctorReport {
        var domain: DomainSurvey?
        if let name { domain = try await survey(domain: name) }
        let request = SurveyRequest(files: domain?.files ?? [])
        var surveys: [String: HostSurvey] = [:]
        var silent: [String: String] = [:]
        let states = detector.states
        let me = host
        let others = hostRecords.keys.filter { $0 != me }
        await withTaskGroup(of: (HostName, Result<HostSurvey, FtvmError>).self) { group in
            group.addTask { (me, .success(await self.lookAtThisHost(request))) }
            for other in others {
                guard states[other] == .online else {
                    silent[other.text] = "it is \(states[other]?.rawValue ?? "not online")"
                    continue
                }
                group.addTask {
                    do {
                        let answer = try await self.ask(
                            other, HostRequest(survey: request), "look at itself", taken: { nil })
                        guard let survey = answer.survey else { throw Self.noSurvey(other) }
                        return (other, .success(survey))
                    } catch {
                        return (other, .failure(FtvmError(ours: error)))
                    }
                }
            }
            for await (name, result) in group {
                switch result {
                case .success(let survey): surveys[name.text] = survey
                case .failure(let error): silent[name.text] = "\(error)"
                }
            }
        }
        return DoctorRules(hosts: surveys, silent: silent, domain: domain).report()
    }

    func lookAtThisHost(_ request: SurveyRequest) async -> HostSurvey {
        await HostSurvey.look(environment, files: request.files)
    }

    private static func noSurvey(_ host: HostName) -> FtvmError {
        FtvmError(
            .unsupported, "host \(host) did not look at itself",
            advice: "the ftvmd of all hosts must be of one version")
    }

    /// The domain as its host has it: of this host's libvirt, or of the pair's record.
    private func survey(domain name: String) async throws -> DomainSurvey {
        let identifier = DomainIdentifier.name(name)
        if let record = try await environment.pairs.read(PairName(name))?.record {
            let xml = try DomainXML(record.domainXML)
            var survey = DomainSurvey(xml, host: record.primary.text)
            if let live = try record.liveXML.map({ try DomainXML($0) }) { survey.note(live: live) }
            return survey
        }
        guard let status = try await environment.libvirt.find(identifier) else {
            throw FtvmError(
                .notFound, "host \(host) has no domain \(name)",
                advice: "ask the daemon of the host that has it (--socket); "
                    + "'ftvm hosts --domains' shows all of them")
        }
        let xml = try DomainXML(try await environment.libvirt.inactiveXML(identifier))
        var survey = DomainSurvey(xml.originalForm(), host: host.text)
        guard status.isActive else { return survey }
        let live = try DomainXML(try await environment.libvirt.liveXML(identifier))
        survey.note(live: live)
        do {
            try GuestNIC.requireNoVHost(
                live.guestNICs(),
                descriptorLinks: await environment.libvirt.process(identifier).descriptorLinks(),
                domain: name)
        } catch {
            survey.runningError = FtvmError(ours: error)
        }
        return survey
    }
}

extension DomainSurvey {
    init(_ xml: DomainXML, host: String) {
        let bridges = xml.interfaces.filter { $0.type == "bridge" }.compactMap(\.source)
        self.init(
            name: xml.name, host: host, isKVM: xml.virtualizationType == "kvm",
            cpuMode: xml.root.first("cpu")?["mode"], machineType: xml.machineType,
            memoryBytes: xml.memoryBytes, bridges: Set(bridges).sorted(), files: Self.files(xml))
        writableDisks = xml.guestDisks.map(\.target)
        findings = xml.unsupportedDevices().map {
            Finding(
                isError: $0.severity == .error, device: $0.device, why: $0.why, advice: $0.advice)
        }
    }

    /// What only the running domain's XML says: the machine type in full, and devices that were added to it.
    mutating func note(live: DomainXML) {
        machineType = live.machineType
        writableDisks = live.guestDisks.map(\.target)
        for finding in DomainSurvey(live.originalForm(), host: host).findings
        where !findings.contains(where: { $0.device == finding.device }) {
            findings.append(finding)
        }
    }

    private static func files(_ xml: DomainXML) -> [String] {
        let os = xml.root.first("os")
        let boot = ["kernel", "initrd", "loader"].compactMap { os?.first($0)?.text }
        let disks = xml.disks.filter { ["file", "block"].contains($0.type) }.compactMap(\.source)
        return Set((boot + disks).filter { $0.hasPrefix("/") }).sorted()
    }
}
