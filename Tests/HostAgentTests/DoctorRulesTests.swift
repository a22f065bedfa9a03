import ControlAPI
import HostAgent
import Model
import Testing

/// Each check passes on good hosts, and says so when the one thing that it is about is wrong.
@Suite struct DoctorRulesTests {
    static func good() -> HostSurvey {
        var survey = HostSurvey()
        survey.bootID = "b"
        survey.kvm = .usable
        survey.cpuModel = "Model X"
        survey.cpuFlags = ["avx2", "sse3"]
        survey.libvirtVersion = "9.0.0"
        survey.qemuVersion = "7.2.22"
        survey.machineTypes = ["pc-i440fx-7.2", "pc"]
        survey.bridges = ["br0"]
        survey.pools = [
            .init(
                name: "pool", kind: .tmpfs, path: "/pool", pageSizeBytes: 4096,
                totalBytes: 8 << 30, freeBytes: 4 << 30, error: nil)
        ]
        survey.clockSource = "tsc"
        survey.isClockSynchronized = true
        survey.openFilesLimit = 65_536
        survey.mappingsLimit = 65_530
        return survey
    }

    static func domain() -> DomainSurvey {
        var domain = DomainSurvey(
            name: "demo", host: "h1", isKVM: true, cpuMode: "host-passthrough",
            machineType: "pc-i440fx-7.2", memoryBytes: 1 << 30, bridges: ["br0"],
            files: ["/images/a.raw"])
        domain.writableDisks = ["vda"]
        return domain
    }

    struct Case: Sendable, CustomTestStringConvertible {
        let check: String
        var verdict = DoctorCheck.Verdict.fail
        /// A part of what it says.
        let why: String
        var host: @Sendable (inout HostSurvey) -> Void = { _ in }
        var domain: @Sendable (inout DomainSurvey) -> Void = { _ in }
        var testDescription: String { "\(check): \(why)" }
    }

    static let cases: [Case] = [
        Case(check: "kernel", why: "no userfaultfd", host: { $0.kernelError = "no userfaultfd" }),
        Case(check: "ptrace", why: "ptrace_scope is 3", host: { $0.ptraceScope = 3 }),
        Case(
            check: "realtime", verdict: .warn, why: "Operation not permitted",
            host: { $0.realtimeError = "Operation not permitted" }),
        Case(check: "kvm", why: "no /dev/kvm", host: { $0.kvm = .absent }),
        Case(check: "kvm", why: "no firmware", host: { $0.kvm = .unusable("nested") }),
        Case(check: "kvm", why: "pni", host: { $0.kvm = .poor("no pni") }),
        Case(
            check: "kvm", verdict: .warn, why: "no /dev/kvm", host: { $0.kvm = .absent },
            domain: { $0.isKVM = false }),
        Case(check: "qemu", why: "6.2", host: { $0.qemuVersion = "6.2.0" }),
        Case(check: "versions", verdict: .warn, why: "10.0.2", host: { $0.qemuVersion = "10.0.2" }),
        Case(check: "clock", verdict: .warn, why: "hpet", host: { $0.clockSource = "hpet" }),
        Case(
            check: "clock", verdict: .warn, why: "not synchronized",
            host: { $0.isClockSynchronized = false }),
        Case(check: "limits", verdict: .warn, why: "1024", host: { $0.openFilesLimit = 1_024 }),
        Case(check: "limits", verdict: .warn, why: "1000", host: { $0.mappingsLimit = 1_000 }),
        Case(check: "pool", why: "no pool", host: { $0.pools = [] }),
        Case(check: "pool", why: "not mounted", host: { $0.pools[0].error = "not mounted" }),
        Case(check: "pool", verdict: .warn, why: "0 of", host: { $0.pools[0].freeBytes = 0 }),
        Case(check: "cpu", verdict: .warn, why: "avx2", host: { $0.cpuFlags = ["sse3"] }),
        Case(check: "cpu", why: "processors differ", host: { $0.cpuModel = "Model Y" }),
        Case(check: "fencing", why: "h2", host: { $0.bootID = "another" }),
        Case(check: "machine", why: "h2", host: { $0.machineTypes = ["pc-i440fx-6.2"] }),
        Case(check: "network", why: "br0", host: { $0.bridges = ["br1"] }),
        Case(
            check: "storage", why: "/images/a.raw", host: { $0.missingFiles = ["/images/a.raw"] }),
        Case(check: "disks", why: "nbdkit", host: { $0.missingDiskServer = ["nbdkit"] }),
        // The guest and its undo log alone would fit.
        Case(
            check: "memory", why: "no pool of h1",
            domain: { $0.memoryBytes = (3 << 30) + (64 << 20) }),
        Case(check: "memory", why: "no pool of h1", domain: { $0.memoryBytes = 1 << 40 }),
        Case(check: "memory", why: "names no memory", domain: { $0.memoryBytes = nil }),
        Case(
            check: "devices", why: "tpm: no",
            domain: {
                $0.findings = [.init(isError: true, device: "tpm", why: "no", advice: "remove it")]
            }),
        Case(
            check: "running", why: "vhost",
            domain: { $0.runningError = FtvmError(.unsupported, "vhost", advice: "restart") }),
    ]

    @Test func goodHostsPass() {
        let good = Self.good()
        let report = DoctorRules(
            hosts: ["h1": good, "h2": good, "h3": good], domain: Self.domain()
        ).report()
        #expect(report.verdict == .pass, "\(report.checks.filter { $0.verdict != .pass })")
        let names = Set(report.checks.map(\.name))
        for test in Self.cases where !["versions", "running"].contains(test.check) {
            #expect(names.contains(test.check))
        }
    }

    /// What is wrong is wrong on the second host, or with the domain.
    @Test(arguments: cases)
    func oneThingIsWrong(_ test: Case) {
        var wrong = Self.good()
        test.host(&wrong)
        var domain = Self.domain()
        test.domain(&domain)
        let good = Self.good()
        let report = DoctorRules(
            hosts: ["h1": good, "h2": wrong, "h3": good], domain: domain
        ).report()
        let found = report.checks.first {
            $0.name == test.check && $0.verdict == test.verdict && $0.why.contains(test.why)
        }
        #expect(found != nil, "\(report.checks.filter { $0.verdict != .pass })")
        #expect(found?.fix?.isEmpty == false)
        #expect(report.verdict == test.verdict || report.verdict == .fail)
    }

    @Test func hostsAreCounted() {
        let good = Self.good()
        func verdict(_ hosts: [String: HostSurvey]) -> DoctorCheck.Verdict? {
            DoctorRules(hosts: hosts).report().checks.first { $0.name == "hosts" }?.verdict
        }
        #expect(verdict(["h1": good]) == .fail)
        #expect(verdict(["h1": good, "h2": good]) == .warn)
        #expect(verdict(["h1": good, "h2": good, "h3": good]) == .pass)
        let silent = DoctorRules(hosts: ["h1": good], silent: ["h2": "it is dead"]).report()
        #expect(silent.checks.first { $0.name == "answer" }?.why == "it is dead")
    }

    @Test func fencedHostsNeedNoCommonKernel() {
        var hosts = ["h1": Self.good(), "h2": Self.good(), "h3": Self.good()]
        for name in hosts.keys {
            hosts[name]?.bootID = name
            hosts[name]?.canFence = ["h1", "h2", "h3"]
        }
        func check() -> DoctorCheck? {
            DoctorRules(hosts: hosts).report().checks.first { $0.name == "fencing" }
        }
        #expect(check()?.verdict == .pass)
        // Every other host must be able to, since any of them may be the one that is left.
        hosts["h2"]?.canFence = ["h1"]
        #expect(check()?.verdict == .fail)
        #expect(check()?.why.hasSuffix("no device for h3 on h2") == true)
        hosts["h3"]?.fencesItself = true
        #expect(check()?.verdict == .pass)
    }

    @Test func nodesAreCounted() {
        var survey = Self.good()
        survey.numaNodes = 2
        let check = DoctorRules(hosts: ["h1": survey]).report().checks.first { $0.name == "numa" }
        #expect(check?.verdict == .pass && check?.why.hasPrefix("2 NUMA nodes") == true)
    }

    @Test func whatTheFirmwareSaysIsUnderstood() {
        let through = "SeaBIOS (version 1.16.2)\nNo bootable device.\n"
        #expect(KVMProbe.judge(firmware: through, errors: "") == .usable)
        let warning =
            "qemu: warning: host doesn't support requested feature: CPUID.01H:ECX.pni [bit 0]"
        #expect(KVMProbe.judge(firmware: through, errors: warning) == .poor(warning))
        #expect(
            KVMProbe.judge(firmware: "", errors: "KVM internal error")
                == .unusable("KVM internal error"))
        guard case .unusable(let why) = KVMProbe.judge(firmware: "SeaBIOS\nRunning", errors: "")
        else {
            Issue.record("a firmware that stops is no success")
            return
        }
        #expect(why.contains("Running"))
    }

    @Test func machineTypesAreRead() {
        let text = """
            Supported machines are:
            microvm              microvm (i386)
            pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)
            pc-i440fx-7.2        Standard PC (i440FX + PIIX, 1996) (default)
            """
        #expect(KVMProbe.parse(machines: text) == ["microvm", "pc", "pc-i440fx-7.2"])
    }
}
