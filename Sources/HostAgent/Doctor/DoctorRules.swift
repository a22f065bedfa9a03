import ControlAPI
import Model

/// Judges what hosts and a domain are like. Pure: each rule says what it has seen, and what to do.
package struct DoctorRules {
    /// All hosts that answered, by name.
    let hosts: [String: HostSurvey]
    /// Hosts that did not, and why.
    var silent: [String: String] = [:]
    var domain: DomainSurvey?

    package init(
        hosts: [String: HostSurvey], silent: [String: String] = [:], domain: DomainSurvey? = nil
    ) {
        self.hosts = hosts
        self.silent = silent
        self.domain = domain
    }

    package func report() -> DoctorReport {
        var checks: [DoctorCheck] = []
        for (name, why) in silent.sorted(by: { $0.key < $1.key }) {
            checks.append(
                DoctorCheck(
                    "answer", name, .fail, why,
                    fix: "on \(name): systemctl status ftvmd; journalctl -u ftvmd"))
        }
        for (name, survey) in hosts.sorted(by: { $0.key < $1.key }) {
            checks += hostChecks(name, survey)
        }
        checks += clusterChecks()
        if let domain { checks += domainChecks(domain) }
        return DoctorReport(checks: checks)
    }

    // MARK: - One host

    /// As many as a daemon with a hundred pairs has open.
    static let openFilesNeeded: UInt64 = 4_096
    static let mappingsNeeded: UInt64 = 65_530
    static let oldestQEMU = [7, 2]

    private func hostChecks(_ name: String, _ survey: HostSurvey) -> [DoctorCheck] {
        [
            kernel(name, survey), ptrace(name, survey), kvm(name, survey), qemu(name, survey),
            clock(name, survey), limits(name, survey), realtime(name, survey),
            numa(name, survey),
        ] + pools(name, survey)
    }

    private func kernel(_ name: String, _ survey: HostSurvey) -> DoctorCheck {
        guard let error = survey.kernelError else {
            return DoctorCheck("kernel", name, .pass, "pages of a running guest can be tracked")
        }
        return DoctorCheck(
            "kernel", name, .fail, error,
            fix: "install Linux 6.4 or newer with CONFIG_USERFAULTFD=y, and reboot")
    }

    private func ptrace(_ name: String, _ survey: HostSurvey) -> DoctorCheck {
        guard survey.ptraceScope >= 3 else {
            return DoctorCheck("ptrace", name, .pass, "root may enter QEMU")
        }
        return DoctorCheck(
            "ptrace", name, .fail,
            "kernel.yama.ptrace_scope is \(survey.ptraceScope): nobody may enter QEMU",
            fix: "set kernel.yama.ptrace_scope=1 in /etc/sysctl.d, and reboot (3 stays until then)")
    }

    private func realtime(_ name: String, _ survey: HostSurvey) -> DoctorCheck {
        guard let error = survey.realtimeError else {
            return DoctorCheck("realtime", name, .pass, "heartbeats run before everything else")
        }
        return DoctorCheck(
            "realtime", name, .warn,
            "heartbeats get no real-time priority (\(error)): when all CPUs are taken, the host may be "
                + "taken for dead",
            fix:
                "run ftvmd as root without CPU limits for real-time threads: a cgroup (v1) that has "
                + "cpu.rt_runtime_us = 0 refuses them")
    }

    private func kvm(_ name: String, _ survey: HostSurvey) -> DoctorCheck {
        // A guest without KVM needs none.
        let failure: DoctorCheck.Verdict = domain?.isKVM ?? false ? .fail : .warn
        switch survey.kvm {
        case .usable:
            return DoctorCheck("kvm", name, .pass, "a firmware comes up under KVM")
        case .poor(let why):
            return DoctorCheck(
                "kvm", name, failure, "a firmware comes up under KVM, but \(why)",
                fix: "in a virtual machine: give it the whole processor (cpu mode "
                    + "'host-passthrough'); or use <domain type='qemu'>")
        case .unusable(let why):
            return DoctorCheck(
                "kvm", name, failure, "/dev/kvm is there, but no firmware comes up: \(why)",
                fix: "modprobe -r kvm_intel kvm_amd; modprobe kvm_intel nested=1 on the machine "
                    + "below; or use <domain type='qemu'>")
        case .absent:
            return DoctorCheck(
                "kvm", name, failure, "there is no /dev/kvm that can be opened",
                fix: "switch virtualization on in the firmware, then modprobe kvm_intel or kvm_amd")
        }
    }

    private func qemu(_ name: String, _ survey: HostSurvey) -> DoctorCheck {
        let numbers = survey.qemuVersion.split(separator: ".").prefix(2).map { Int($0) ?? 0 }
        guard !numbers.lexicographicallyPrecedes(Self.oldestQEMU) else {
            return DoctorCheck(
                "qemu", name, .fail, "QEMU is \(survey.qemuVersion)",
                fix: "install QEMU 7.2 or newer")
        }
        return DoctorCheck(
            "qemu", name, .pass, "QEMU \(survey.qemuVersion), libvirt \(survey.libvirtVersion)")
    }

    private func clock(_ name: String, _ survey: HostSurvey) -> DoctorCheck {
        if survey.clockSource != "tsc", survey.clockSource != "kvm-clock" {
            return DoctorCheck(
                "clock", name, .warn,
                "the kernel's clock is \(survey.clockSource): reading it is slow, and the guests' "
                    + "clock jumps at a failover",
                fix:
                    "look in dmesg why the tsc was given up; boot with tsc=reliable if that is wrong"
            )
        }
        guard survey.isClockSynchronized else {
            return DoctorCheck(
                "clock", name, .warn,
                "the clock is not synchronized: a guest's date jumps at a failover",
                fix: "apt install chrony")
        }
        return DoctorCheck("clock", name, .pass, "\(survey.clockSource), synchronized")
    }

    private func numa(_ name: String, _ survey: HostSurvey) -> DoctorCheck {
        let text =
            survey.numaNodes == 1
            ? "one NUMA node"
            : "\(survey.numaNodes) NUMA nodes: 'ftvm enable --numa-node' says on which a guest's memory is"
        return DoctorCheck("numa", name, .pass, text)
    }

    private func limits(_ name: String, _ survey: HostSurvey) -> DoctorCheck {
        if survey.openFilesLimit < Self.openFilesNeeded {
            return DoctorCheck(
                "limits", name, .warn,
                "ftvmd may have \(survey.openFilesLimit) files open, about forty for each pair",
                fix: "LimitNOFILE=65536 in ftvmd.service, then systemctl restart ftvmd")
        }
        if survey.mappingsLimit < Self.mappingsNeeded {
            return DoctorCheck(
                "limits", name, .warn, "a process may have \(survey.mappingsLimit) mappings",
                fix: "sysctl -w vm.max_map_count=65530")
        }
        return DoctorCheck(
            "limits", name, .pass,
            "\(survey.openFilesLimit) files, \(survey.mappingsLimit) mappings")
    }

    private func pools(_ name: String, _ survey: HostSurvey) -> [DoctorCheck] {
        guard !survey.pools.isEmpty else {
            return [
                DoctorCheck(
                    "pool", name, .fail, "no pool is configured",
                    fix: "add a [[pool]] to /etc/ftvm/ftvmd.toml, see Examples/ftvmd.toml")
            ]
        }
        return survey.pools.map { pool in
            if let error = pool.error {
                return DoctorCheck(
                    "pool", name, .fail, "pool \(pool.name) cannot be used: \(error)",
                    fix: "mount it: mount -t \(pool.kind.rawValue) ... \(pool.path)")
            }
            let text =
                "pool \(pool.name): \(pool.freeBytes >> 20) of \(pool.totalBytes >> 20) MiB free, "
                + "pages of \(pool.pageSizeBytes >> 10) KiB"
            if pool.totalBytes == 0 || pool.freeBytes < 64 << 20 {
                let fix =
                    pool.kind == .hugetlbfs
                    ? "echo N > /sys/kernel/mm/hugepages/hugepages-\(pool.pageSizeBytes >> 10)kB/nr_hugepages"
                    : "mount -o remount,size=N \(pool.path)"
                return DoctorCheck("pool", name, .warn, text, fix: fix)
            }
            return DoctorCheck("pool", name, .pass, text)
        }
    }
}
