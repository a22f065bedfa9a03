import ControlAPI
import Model

/// What hosts must have in common, and what a domain needs of them.
extension DoctorRules {
    private var ordered: [(name: String, survey: HostSurvey)] {
        hosts.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
    }

    func clusterChecks() -> [DoctorCheck] {
        [count(), processors(), versions(), fencing()].compactMap { $0 }
    }

    private static let cluster = "cluster"

    private func count() -> DoctorCheck {
        guard hosts.count < 3 else {
            return DoctorCheck("hosts", Self.cluster, .pass, "\(hosts.count) hosts answer")
        }
        if hosts.count == 2 {
            return DoctorCheck(
                "hosts", Self.cluster, .warn,
                "two hosts answer: after a failover there is none to protect the guest again",
                fix: "install ftvmd on a third host")
        }
        return DoctorCheck(
            "hosts", Self.cluster, .fail, "there is no second host",
            fix: "install ftvmd on another host, with the same store and pool")
    }

    /// A guest that goes on elsewhere must find every instruction that it knows of.
    private func processors() -> DoctorCheck? {
        guard let first = ordered.first else { return nil }
        for (name, survey) in ordered.dropFirst() {
            let missing = Set(first.survey.cpuFlags).symmetricDifference(survey.cpuFlags).sorted()
            guard !missing.isEmpty || survey.cpuModel != first.survey.cpuModel else { continue }
            let difference =
                missing.isEmpty
                ? "the same features" : "different in \(missing.prefix(8).joined(separator: " "))"
            return DoctorCheck(
                "cpu", Self.cluster, missing.isEmpty ? .pass : .warn,
                "\(first.name) has \(first.survey.cpuModel), \(name) \(survey.cpuModel): \(difference)",
                fix: missing.isEmpty
                    ? nil
                    : "in each domain: <cpu mode='custom' match='exact'><model>NAME</model></cpu> with "
                        + "what 'virsh hypervisor-cpu-baseline' says of both hosts")
        }
        return DoctorCheck("cpu", Self.cluster, .pass, "\(first.survey.cpuModel) everywhere")
    }

    private func versions() -> DoctorCheck? {
        let versions = Set(ordered.map(\.survey.qemuVersion))
        guard versions.count > 1 else { return nil }
        let text = ordered.map { "\($0.name): \($0.survey.qemuVersion)" }.joined(separator: ", ")
        return DoctorCheck(
            "versions", Self.cluster, .warn,
            "QEMU differs (\(text)): a state of the newer may not load into the older one",
            fix: "upgrade all hosts, the older ones after 'ftvm host drain'")
    }

    /// Hosts that share a kernel need no fence: the lock is a proof there.
    private func fencing() -> DoctorCheck? {
        guard Set(ordered.map(\.survey.bootID)).count > 1 else {
            return DoctorCheck(
                "fencing", Self.cluster, .pass,
                "all hosts share a kernel: the primary lock proves that a primary is gone")
        }
        var gaps: [String] = []
        for target in ordered where !target.survey.fencesItself {
            let helpless = ordered.filter {
                $0.survey.bootID != target.survey.bootID
                    && !$0.survey.canFence.contains(target.name)
            }
            guard !helpless.isEmpty else { continue }
            gaps.append("\(target.name) on \(helpless.map(\.name).joined(separator: ", "))")
        }
        guard !gaps.isEmpty else {
            return DoctorCheck("fencing", Self.cluster, .pass, "every host can be fenced")
        }
        return DoctorCheck(
            "fencing", Self.cluster, .fail,
            "nothing proves that a host is gone: no device for \(gaps.joined(separator: "; "))",
            fix: "configure [[fence]] devices on every host, or a self-fence with a watchdog; see "
                + "Documentation/Fencing.md")
    }

    // MARK: - A domain

    func domainChecks(_ domain: DomainSurvey) -> [DoctorCheck] {
        let others = ordered.filter { $0.name != domain.host }
        return devices(domain)
            + [
                running(domain), memory(domain), processor(domain), machine(domain, others),
                network(domain), storage(domain), disks(domain),
            ].compactMap { $0 }
    }

    private func devices(_ domain: DomainSurvey) -> [DoctorCheck] {
        guard !domain.findings.isEmpty else {
            return [
                DoctorCheck("devices", domain.name, .pass, "all of its devices can be protected")
            ]
        }
        return domain.findings.map {
            DoctorCheck(
                "devices", domain.name, $0.isError ? .fail : .warn, "\($0.device): \($0.why)",
                fix: $0.advice)
        }
    }

    private func running(_ domain: DomainSurvey) -> DoctorCheck? {
        domain.runningError.map {
            DoctorCheck(
                "running", domain.name, .fail,
                [$0.message, $0.cause].compactMap { $0 }.joined(separator: ": "),
                fix: $0.advice)
        }
    }

    private func memory(_ domain: DomainSurvey) -> DoctorCheck {
        guard let bytes = domain.memoryBytes else {
            return DoctorCheck(
                "memory", domain.name, .fail, "its XML names no memory",
                fix: "<memory unit='MiB'>1024</memory>")
        }
        let pools = hosts[domain.host]?.pools ?? []
        let diskLog = domain.writableDisks.isEmpty ? 0 : PairWorker.defaultDiskLogBytes
        let needed = bytes + max(bytes / 4, 64 << 20) + diskLog
        let fitting = pools.filter {
            $0.error == nil && $0.freeBytes >= needed && bytes % $0.pageSizeBytes == 0
        }
        guard let first = fitting.first else {
            return DoctorCheck(
                "memory", domain.name, .fail,
                "no pool of \(domain.host) has room for \(needed >> 20) MiB (guest and logs)",
                fix: "ftvm pool list; mount -o remount,size=N of the pool, or more huge pages")
        }
        return DoctorCheck(
            "memory", domain.name, .pass, "\(needed >> 20) MiB fit into pool \(first.name)")
    }

    private func processor(_ domain: DomainSurvey) -> DoctorCheck? {
        guard let mode = domain.cpuMode, ["host-passthrough", "maximum"].contains(mode) else {
            return nil
        }
        let models = Set(ordered.map(\.survey.cpuModel))
        guard models.count > 1 else {
            return DoctorCheck(
                "cpu", domain.name, .pass, "cpu mode \(mode), and all hosts have the same processor"
            )
        }
        return DoctorCheck(
            "cpu", domain.name, .fail, "cpu mode \(mode), and the hosts' processors differ",
            fix: "<cpu mode='host-model'/>, or a named model")
    }

    private func machine(
        _ domain: DomainSurvey, _ others: [(name: String, survey: HostSurvey)]
    ) -> DoctorCheck? {
        guard let type = domain.machineType else { return nil }
        let without = others.filter { !$0.survey.machineTypes.contains(type) }.map(\.name)
        guard without.isEmpty else {
            return DoctorCheck(
                "machine", domain.name, .fail,
                "machine type \(type) is not known on \(without.joined(separator: ", "))",
                fix:
                    "<type machine='...'> with one that 'qemu-system-x86_64 -machine help' shows on "
                    + "every host")
        }
        return DoctorCheck("machine", domain.name, .pass, "every host knows \(type)")
    }

    private func network(_ domain: DomainSurvey) -> DoctorCheck? {
        for bridge in domain.bridges {
            let without = ordered.filter { !$0.survey.bridges.contains(bridge) }.map(\.name)
            guard !without.isEmpty else { continue }
            return DoctorCheck(
                "network", domain.name, .fail,
                "bridge \(bridge) is not there on \(without.joined(separator: ", "))",
                fix: "on \(without[0]): ip link add \(bridge) type bridge; ip link set \(bridge) up"
            )
        }
        guard !domain.bridges.isEmpty else { return nil }
        return DoctorCheck(
            "network", domain.name, .pass,
            "\(domain.bridges.joined(separator: ", ")) on every host")
    }

    private func storage(_ domain: DomainSurvey) -> DoctorCheck? {
        for (name, survey) in ordered {
            let missing = domain.files.filter { survey.missingFiles.contains($0) }
            guard let first = missing.first else { continue }
            return DoctorCheck(
                "storage", domain.name, .fail,
                "\(missing.joined(separator: ", ")) not there on \(name)",
                fix: "keep it on shared storage; or copy it: scp \(first) \(name):\(first)")
        }
        guard !domain.files.isEmpty else { return nil }
        return DoctorCheck(
            "storage", domain.name, .pass, "\(domain.files.count) files on every host")
    }

    /// Disks that are written to are served by nbdkit, wherever the guest runs or may have to go on.
    private func disks(_ domain: DomainSurvey) -> DoctorCheck? {
        guard !domain.writableDisks.isEmpty else { return nil }
        let disks = domain.writableDisks.joined(separator: ", ")
        for (name, survey) in ordered {
            guard let missing = survey.missingDiskServer.first else { continue }
            return DoctorCheck(
                "disks", domain.name, .fail,
                "\(disks): written to, and \(name) cannot serve that without \(missing)",
                fix: missing == "nbdkit"
                    ? "on \(name): apt install nbdkit"
                    : "on \(name): install libftvm-nbdkit-plugin.so beside ftvmd")
        }
        return DoctorCheck(
            "disks", domain.name, .pass, "\(disks): every host can serve what is written to")
    }
}
