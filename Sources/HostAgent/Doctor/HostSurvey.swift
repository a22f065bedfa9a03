import Model

/// What a host is like, as far as protection depends on it. Looked at by its own `ftvmd`; judged by `DoctorRules`.
package struct HostSurvey: Hashable, Sendable, Codable {
    package init() {}

    package enum KVM: Hashable, Sendable, Codable {
        case absent
        /// It is there, and no firmware comes up in it.
        case unusable(String)
        /// The firmware comes up, but QEMU's plainest CPU lacks something that kernels need.
        case poor(String)
        case usable
    }

    package struct PoolSurvey: Hashable, Sendable, Codable {
        package var name: String
        package var kind: PoolKind
        package var path: String
        package var pageSizeBytes: UInt64
        package var totalBytes: UInt64
        package var freeBytes: UInt64
        /// Why it cannot be looked at; nil: it can.
        package var error: String?

        package init(
            name: String, kind: PoolKind, path: String, pageSizeBytes: UInt64, totalBytes: UInt64,
            freeBytes: UInt64, error: String?
        ) {
            self.name = name
            self.kind = kind
            self.path = path
            self.pageSizeBytes = pageSizeBytes
            self.totalBytes = totalBytes
            self.freeBytes = freeBytes
            self.error = error
        }
    }

    /// Why tracking pages is not possible; nil: it is.
    package var kernelError: String?
    /// Why heartbeats do not run before everything else; nil: they do.
    package var realtimeError: String?
    /// The kernel's number for this boot: hosts that have the same one share a kernel.
    package var bootID = ""
    /// kernel.yama.ptrace_scope; 0 where the kernel does not restrict ptrace.
    package var ptraceScope = 0
    package var kvm = KVM.absent
    /// Of the processor, and everything it can do, by name.
    package var cpuModel = ""
    package var cpuFlags: [String] = []
    package var libvirtVersion = ""
    package var qemuVersion = ""
    /// All that its QEMU knows, aliases included.
    package var machineTypes: [String] = []
    package var bridges: [String] = []
    package var pools: [PoolSurvey] = []
    /// NUMA nodes that have memory.
    package var numaNodes = 1
    package var clockSource = ""
    package var isClockSynchronized = false
    /// Files that this `ftvmd` may have open.
    package var openFilesLimit: UInt64 = 0
    /// Mappings that a process may have.
    package var mappingsLimit: UInt64 = 0
    /// The hosts that this one has a device to fence with, as configured here.
    package var canFence: [String] = []
    /// It ends its own guests when it is cut off, and others may count on that.
    package var fencesItself = false
    /// Of the files that were asked for, those that this host does not have.
    package var missingFiles: [String] = []
    /// What it takes to serve protected disks and is not installed: nbdkit, our plugin for it.
    package var missingDiskServer: [String] = []
}

/// What is asked of a host: to look at itself.
package struct SurveyRequest: Hashable, Sendable, Codable {
    /// Files whose presence is asked for.
    package var files: [String]
}

/// What `doctor` knows of a domain.
package struct DomainSurvey: Hashable, Sendable {
    package struct Finding: Hashable, Sendable {
        package var isError: Bool
        package var device: String
        package var why: String
        package var advice: String

        package init(isError: Bool, device: String, why: String, advice: String) {
            self.isError = isError
            self.device = device
            self.why = why
            self.advice = advice
        }
    }

    package var name: String
    package var host: String
    package var isKVM: Bool
    package var cpuMode: String?
    package var machineType: String?
    package var memoryBytes: UInt64?
    package var bridges: [String] = []
    /// Files that QEMU opens: disks, kernel, firmware.
    package var files: [String] = []
    /// The disks that it writes to: they need the disk log, and nbdkit on every host.
    package var writableDisks: [String] = []
    package var findings: [Finding] = []
    /// Why it cannot be protected while it runs as it does; nil: it does not run, or can.
    package var runningError: FtvmError?

    package init(
        name: String, host: String, isKVM: Bool, cpuMode: String?, machineType: String?,
        memoryBytes: UInt64?, bridges: [String], files: [String]
    ) {
        self.name = name
        self.host = host
        self.isKVM = isKVM
        self.cpuMode = cpuMode
        self.machineType = machineType
        self.memoryBytes = memoryBytes
        self.bridges = bridges
        self.files = files
    }
}
