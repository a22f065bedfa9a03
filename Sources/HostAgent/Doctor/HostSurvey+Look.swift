import CLinux
import Foundation
import Glibc
import Hypervisor
import MemoryPool
import Model
import Protection

/// Looking at this host. Takes a few seconds (a firmware is booted), so it is done only when somebody asks.
extension HostSurvey {
    /// - Parameter files: whose presence is asked for.
    static func look(_ environment: HostEnvironment, files: [String]) async -> HostSurvey {
        var survey = HostSurvey()
        let versions = try? await environment.libvirt.versions()
        survey.libvirtVersion = versions?.libvirt ?? ""
        survey.qemuVersion = versions?.qemu ?? ""
        survey.canFence = Set(environment.cluster.fences.map(\.host.text)).sorted()
        let selfFence = environment.cluster.selfFence
        survey.fencesItself = selfFence.enabled && selfFence.watchdogPath != nil
        let pools = environment.pools
        let filled = survey
        return
            (try? await blocking {
                var survey = filled
                survey.lookAtKernel()
                survey.lookAtProcessor()
                survey.lookAtClock()
                survey.lookAtNetwork()
                survey.pools = pools.map { PoolSurvey($0) }
                survey.machineTypes = KVMProbe.machineTypes()
                survey.kvm = KVMProbe.run()
                survey.missingDiskServer = DiskPlugin.missing().map(\.what)
                survey.missingFiles = files.filter { access($0, F_OK) != 0 }
                return survey
            }) ?? filled
    }

    private mutating func lookAtKernel() {
        do {
            try KernelRequirements.check()
        } catch {
            kernelError = "\(FtvmError(ours: error))"
        }
        realtimeError = UrgentThread.refusal().map { String(cString: strerror($0)) }
        bootID = Self.text("/proc/sys/kernel/random/boot_id")
        ptraceScope = Int(Self.text("/proc/sys/kernel/yama/ptrace_scope")) ?? 0
        mappingsLimit = UInt64(Self.text("/proc/sys/vm/max_map_count")) ?? 0
        var limit = rlimit()
        if getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 {
            openFilesLimit = UInt64(limit.rlim_cur)
        }
        let nodes =
            (try? FileManager.default.contentsOfDirectory(atPath: "/sys/devices/system/node"))
        numaNodes = max(1, (nodes ?? []).count { Self.isNumbered($0, "node") })
    }

    private static func isNumbered(_ name: String, _ prefix: String) -> Bool {
        name.hasPrefix(prefix) && Int(name.dropFirst(prefix.count)) != nil
    }

    private mutating func lookAtProcessor() {
        for line in Self.text("/proc/cpuinfo").split(separator: "\n") {
            let halves = line.split(separator: ":", maxSplits: 1)
            guard halves.count == 2 else { continue }
            let value = halves[1].drop { $0 == " " }
            switch halves[0].prefix(while: { $0 != "\t" }) {
            case "model name" where cpuModel.isEmpty: cpuModel = String(value)
            case "flags" where cpuFlags.isEmpty:
                cpuFlags = value.split(separator: " ").map(String.init).sorted()
            default: break
            }
        }
    }

    private mutating func lookAtClock() {
        clockSource = Self.text(
            "/sys/devices/system/clocksource/clocksource0/current_clocksource")
        isClockSynchronized = ftvm_clock_is_synchronized() == 1
    }

    private mutating func lookAtNetwork() {
        let devices = (try? FileManager.default.contentsOfDirectory(atPath: "/sys/class/net")) ?? []
        bridges = devices.filter { access("/sys/class/net/\($0)/bridge", F_OK) == 0 }.sorted()
    }

    /// A small file without the white space around it; empty when it cannot be read.
    private static func text(_ path: String) -> String {
        guard let handle = FileHandle(forReadingAtPath: path) else { return "" }
        defer { try? handle.close() }
        let data = (try? handle.readToEnd()) ?? Data()
        return String(decoding: data, as: UTF8.self)
            .trimmingCharacters(in: .whitespacesAndNewlines)
    }
}

extension HostSurvey.PoolSurvey {
    init(_ pool: Pool) {
        self.init(
            name: pool.name.text, kind: pool.configuration.kind, path: pool.configuration.path,
            pageSizeBytes: UInt64(pool.pageSizeBytes), totalBytes: 0, freeBytes: 0, error: nil)
        do {
            let usage = try pool.usage()
            totalBytes = usage.totalBytes
            freeBytes = usage.freeBytes
        } catch {
            self.error = "\(FtvmError(ours: error))"
        }
    }
}
