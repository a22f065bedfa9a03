import ClusterStore
import ConfigurationFiles
import Fencing
import Foundation
import Glibc
import Heartbeat
import Hypervisor
import Logging
import MemoryPool
import Model
import PairLogic
import Protection
import TransportSecurity

/// What one `ftvmd` works with on its host: made once at start, never changed.
struct HostEnvironment: Sendable {
    let cluster: ClusterConfiguration
    let host: HostName
    let logger: Logger
    let pools: [Pool]
    let store: any ClusterStore
    let libvirt: LibvirtHost
    let heartbeat: PoolHeartbeat
    let injector: InjectorProcess
    let incarnation: UInt64
    let timing: ClusterTiming
    /// Heartbeats over the network, and what has come of the others'; nil: not configured.
    let network: NetworkHeartbeat?
    /// nil: none is configured.
    let watchdog: HostWatchdog?

    var configuration: DaemonConfiguration { cluster.daemon }
    var pairs: PairRecords { PairRecords(store: store) }
    var hosts: HostRecords { HostRecords(store: store) }
    var members: MemberRecords { MemberRecords(store: store) }

    /// Opens everything, in the order in which a failure is easiest to understand.
    static func open(_ cluster: ClusterConfiguration, logger: Logger) async throws
        -> HostEnvironment
    {
        let configuration = cluster.daemon
        try requirePrivileges()
        try makeDirectories(configuration)
        var pools: [Pool] = []
        for pool in configuration.pools { pools.append(try Pool(pool)) }
        guard let first = configuration.pools.first else {
            throw FtvmError(.invalidArgument, "no pool is configured")
        }
        let store = try await openStore(cluster)
        let timing = try cluster.timing()
        let incarnation = try await nextIncarnation(configuration.host, store)
        let beats = heartbeatPath(configuration, first)
        let heartbeat = try PoolHeartbeat.claimSlot(
            path: beats, host: configuration.host, incarnation: incarnation,
            assigned: try await HeartbeatSlots.slot(
                of: configuration.host, in: store, limit: PoolHeartbeat.slotCount,
                found: try PoolHeartbeat.names(path: beats)))
        let libvirt = LibvirtHost(options: .init(uri: configuration.libvirtURI), logger: logger)
        try await libvirt.connect()
        return HostEnvironment(
            cluster: cluster, host: configuration.host, logger: logger, pools: pools,
            store: store, libvirt: libvirt, heartbeat: heartbeat,
            injector: configuration.injectorPath.map { InjectorProcess(path: $0) }
                ?? .besideThisExecutable(),
            incarnation: incarnation, timing: timing,
            network: try NetworkHeartbeat(cluster, incarnation: incarnation),
            watchdog: try watchdog(cluster.selfFence))
    }

    /// Above every earlier one of this host, whatever the wall clock says.
    private static func nextIncarnation(
        _ host: HostName, _ store: any ClusterStore
    ) async throws -> UInt64 {
        let before = try await MemberRecords(store: store).read(host)?.record.incarnation ?? 0
        return max(UInt64(Date().timeIntervalSince1970 * 1_000), before + 1)
    }

    private static func watchdog(_ wanted: SelfFenceConfiguration) throws -> HostWatchdog? {
        guard wanted.enabled, let path = wanted.watchdogPath else { return nil }
        return try TestSwitches.watchdog(path: path, seconds: wanted.watchdogSeconds)
    }

    /// - Throws: also when etcd does not answer: what is wrong with its endpoints and certificates is said at once.
    private static func openStore(_ cluster: ClusterConfiguration) async throws -> any ClusterStore
    {
        let wanted = cluster.store
        guard wanted.kind == .etcd else {
            return try SQLiteStore(path: cluster.daemon.storePath)
        }
        var options = EtcdOptions(endpoints: wanted.endpoints)
        options.tls = wanted.tls?.files
        options.user = wanted.user
        options.password = try wanted.passwordFile.map(password)
        options.prefix = wanted.prefix
        options.attemptMilliseconds = wanted.attemptMilliseconds
        options.requestMilliseconds = wanted.requestMilliseconds
        let store = try EtcdStore(options: options)
        try await store.check()
        return store
    }

    private static func password(_ path: String) throws -> String {
        do {
            return try String(contentsOfFile: path, encoding: .utf8)
                .trimmingCharacters(in: .newlines)
        } catch {
            throw FtvmError(
                .notFound, "cannot read the store's password from \(path)", cause: "\(error)",
                advice: "see `password_file` in [store]")
        }
    }

    /// Gives back what others may wait for.
    func close() {
        (store as? EtcdStore)?.close()
        (store as? SQLiteStore)?.close()
    }

    /// Counters are ordinary memory: a file on hugetlbfs would cost a huge page, and a memfd has no name.
    private static func heartbeatPath(
        _ configuration: DaemonConfiguration, _ first: PoolConfiguration
    ) -> String {
        let tmpfs = configuration.pools.first { $0.kind == .tmpfs } ?? first
        return tmpfs.path + "/heartbeats"
    }

    private static func requirePrivileges() throws {
        guard geteuid() == 0 else {
            throw FtvmError(
                .permissionDenied, "ftvmd must run as root",
                cause: "it runs as user \(geteuid())",
                advice: "start it with systemd (Examples/ftvmd.service) or sudo")
        }
        try KernelRequirements.check()
    }

    private static func makeDirectories(_ configuration: DaemonConfiguration) throws {
        let manager = FileManager.default
        let store = URL(fileURLWithPath: configuration.storePath).deletingLastPathComponent().path
        let socket = URL(fileURLWithPath: configuration.socketPath).deletingLastPathComponent().path
        for path in [configuration.runtimeDirectory, store, socket] {
            do {
                try manager.createDirectory(atPath: path, withIntermediateDirectories: true)
            } catch {
                throw FtvmError(
                    .unavailable, "cannot make the directory \(path)", cause: "\(error)")
            }
        }
        // An unprivileged QEMU must be able to go through it.
        chmod(configuration.runtimeDirectory, 0o711)
        try makeMonitorDirectory(configuration.monitorDirectory)
        try makeMonitorDirectory(configuration.diskDirectory)
    }

    /// QEMU makes its monitor's socket in here, or connects to its disks: as root, or as the unprivileged user that libvirt runs it as, through
    /// the group. Nobody else may.
    private static func makeMonitorDirectory(_ path: String) throws {
        guard mkdir(path, 0o770) == 0 || errno == EEXIST else {
            throw FtvmError(
                .unavailable, "cannot make the directory \(path)",
                cause: String(cString: strerror(errno)))
        }
        let group = getgrnam("libvirt-qemu") ?? getgrnam("qemu")
        if let group { chown(path, 0, group.pointee.gr_gid) }
        chmod(path, 0o770)
    }

    func pool(_ name: PoolName) throws -> Pool {
        guard let pool = pools.first(where: { $0.name == name }) else {
            throw FtvmError(
                .notFound, "host \(host) has no pool \(name)",
                cause: "configured: \(pools.map(\.name.text).joined(separator: ", "))",
                advice: "add it to this host's configuration, or choose another pool")
        }
        return pool
    }

    func openSegment(_ reference: SegmentReference, access: SegmentAccess) throws -> Segment {
        try pool(reference.pool).openSegment(name: reference.name, access: access)
    }

    /// nil: it is gone, with all that was in it. One that is only out of sight is an error.
    func presentSegment(_ reference: SegmentReference) throws -> Segment? {
        try pool(reference.pool).presentSegment(name: reference.name)
    }

    /// Where the QEMU of a pair makes its monitor's socket on this host.
    func monitorPath(_ pair: PairName) -> String {
        configuration.monitorDirectory + "/" + pair.text.replacing("/", with: "_") + ".sock"
    }
}

extension ClusterConfiguration {
    /// - Throws: `invalidArgument` for times that do not fit together.
    func timing() throws -> ClusterTiming {
        func nanoseconds(_ milliseconds: Int) -> UInt64 { UInt64(milliseconds) * 1_000_000 }
        return try ClusterTiming(
            heartbeatNanoseconds: nanoseconds(daemon.heartbeatPeriodMilliseconds),
            renewalNanoseconds: nanoseconds(selfFence.renewalMilliseconds),
            deadlineNanoseconds: nanoseconds(selfFence.deadlineMilliseconds),
            stopNanoseconds: nanoseconds(selfFence.stopMilliseconds),
            watchdogNanoseconds: selfFence.watchdogPath.map { _ in
                nanoseconds(selfFence.watchdogSeconds * 1_000)
            }, driftPartsPerMillion: UInt64(selfFence.driftPartsPerMillion),
            proofNanoseconds: selfFence.waitMilliseconds.map(nanoseconds))
    }

    /// The ways on which hosts are heard.
    var ways: [HeartbeatWay] { heartbeat.udp == nil ? [.pool, .store] : [.pool, .store, .udp] }
}

extension TLSPaths {
    var files: TLSFiles {
        TLSFiles(authorityPath: authority, certificatePath: certificate, keyPath: key)
    }
}

extension DaemonConfiguration {
    var monitorDirectory: String { runtimeDirectory + "/qmp" }
    /// Sockets of the disk servers.
    var diskDirectory: String { runtimeDirectory + "/disks" }
}
