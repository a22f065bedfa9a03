import Model

/// What a lab is to be: the same values give the same lab.
package struct LabSpecification: Hashable, Sendable, Codable {
    /// Number of hosts, h1 and up (1...16).
    package var hostCount: Int
    /// Size of the tmpfs pool, in bytes. Memory is taken only as segments are made.
    package var poolBytes: UInt64
    /// Huge pages of 2 MiB to take from the machine for a second pool; 0: no such pool.
    package var hugePages: Int
    /// The user that QEMU runs as. Any but root also runs under libvirt's sandbox.
    package var qemuUser: String
    /// `ftvmd`'s executable; nil: hosts without `ftvmd`.
    package var daemonPath: String?
    /// `ftvmd`'s log level.
    package var logLevel: String
    /// Period of `ftvmd`'s heartbeats, in milliseconds.
    package var heartbeatPeriodMilliseconds: Int
    /// Missed heartbeats after which a host is dead.
    package var heartbeatMissesUntilDead: Int
    /// Hosts with another QEMU than the machine's, and where it is unpacked (`Scripts/newer-qemu`).
    package var qemuRoots: [String: String] = [:]
    /// Each host plays a machine of its own: the kernel, which they do share, tells none of another's locks, so
    /// that a host's death has to be proven by a fence.
    package var separateMachines = false
    /// How long a host may take to start, in seconds.
    package var startLimitSeconds = 30

    package static let hostCountMaximum = 16

    package init(
        hostCount: Int = 3, poolBytes: UInt64 = 4 << 30, hugePages: Int = 0,
        qemuUser: String = "libvirt-qemu", daemonPath: String? = nil, logLevel: String = "info",
        heartbeatPeriodMilliseconds: Int = 100, heartbeatMissesUntilDead: Int = 5
    ) {
        self.hostCount = hostCount
        self.poolBytes = poolBytes
        self.hugePages = hugePages
        self.qemuUser = qemuUser
        self.daemonPath = daemonPath
        self.logLevel = logLevel
        self.heartbeatPeriodMilliseconds = heartbeatPeriodMilliseconds
        self.heartbeatMissesUntilDead = heartbeatMissesUntilDead
    }

    /// - Throws: `FtvmError` `invalidArgument` naming the first value that cannot be.
    package func validate() throws {
        guard (1...Self.hostCountMaximum).contains(hostCount) else {
            throw FtvmError(
                .invalidArgument, "a lab cannot have \(hostCount) hosts",
                advice: "give 1 to \(Self.hostCountMaximum); failing over and protecting again "
                    + "takes 3")
        }
        guard poolBytes >= 1 << 20 else {
            throw FtvmError(
                .invalidArgument, "a pool of \(poolBytes) bytes is too small",
                advice: "give the guests' memory and a quarter more, for example 4GiB")
        }
        guard hugePages >= 0 else {
            throw FtvmError(.invalidArgument, "\(hugePages) huge pages cannot be taken")
        }
        for (name, root) in qemuRoots {
            guard (1...hostCount).contains(where: { name == "h\($0)" }) else {
                throw FtvmError(
                    .invalidArgument, "a QEMU is given for host '\(name)', which the lab has not",
                    advice: "its hosts are h1 to h\(hostCount)")
            }
            try Machine.checkQEMU(root: root)
        }
        guard heartbeatPeriodMilliseconds > 0, heartbeatMissesUntilDead > 0 else {
            throw FtvmError(
                .invalidArgument, "heartbeat period and misses until dead must be over 0")
        }
    }
}

/// One of the lab's hosts, as a record: nothing here changes while the lab is up.
package struct LabHost: Hashable, Sendable, Codable {
    package let name: HostName
    /// The host's number, from 1.
    package let number: Int
    /// Its address on the lab's switch.
    package let address: String
    /// libvirt's `host_uuid`.
    package let uuid: String
}

/// What the lab writes down about itself, before it acts.
struct LabRecord: Hashable, Sendable, Codable {
    var specification: LabSpecification
    var hosts: [LabHost]
    /// The machine's number of huge pages before the lab takes some; nil: it takes none.
    var hugePagesBefore: Int?
    /// The lab has got all the huge pages that it wants.
    var hugePagesTaken = false
    /// False until `up` is through.
    var complete: Bool
}
