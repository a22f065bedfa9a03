import ConfigurationFiles
import Foundation
import Glibc
import Hummingbird
import Logging
import MemoryPool
import Model
import ServiceLifecycle

/// `ftvmd`: opens what the host has, then runs agent and API until it is told to end.
public enum Daemon {
    public static func run(configurationPath: String) async throws {
        umask(0o077)
        signal(SIGPIPE, SIG_IGN)
        let cluster = try ConfigurationFiles.load(path: configurationPath)
        let configuration = cluster.daemon
        guard let level = Logger.Level(rawValue: configuration.logLevel) else {
            throw FtvmError(
                .invalidArgument,
                "\(configurationPath): log_level \"\(configuration.logLevel)\" is unknown",
                advice: "one of "
                    + Logger.Level.allCases.map(\.rawValue).joined(separator: ", "))
        }
        LoggingSystem.bootstrap { StreamLogHandler.standardError(label: $0) }
        var logger = Logger(label: "ftvmd.\(configuration.host)")
        logger.logLevel = level
        FaultInjection.installFromEnvironment()
        for finding in ConfigurationFiles.check(path: configurationPath) {
            logger.warning("\(finding.error)")
        }
        let environment = try await HostEnvironment.open(cluster, logger: logger)
        defer { environment.close() }
        let agent = Agent(environment: environment)
        logger.notice("ftvmd \(FtvmVersion.text) serves host \(configuration.host)")
        var serverLogger = logger
        serverLogger.logLevel = max(level, .warning)
        let server = try APIServer(agent: agent, cluster: cluster, logger: serverLogger)
        var services: [ServiceGroupConfiguration.ServiceConfiguration] = [
            .init(service: AgentService(agent: agent)), .init(service: server.application()),
        ]
        if let network = cluster.api.network {
            services.append(.init(service: try server.application(on: network)))
        }
        let group = ServiceGroup(
            configuration: ServiceGroupConfiguration(
                services: services, gracefulShutdownSignals: [.sigterm, .sigint], logger: logger))
        try await group.run()
    }

    /// Keeps a memfd pool until it is told to end.
    public static func keepPool(directory: String, hugePageBytes: Int) throws {
        umask(0o077)
        signal(SIGPIPE, SIG_IGN)
        guard hugePageBytes >= 0 else {
            throw FtvmError(.invalidArgument, "a page of \(hugePageBytes) bytes cannot be")
        }
        let keeper = try MemfdKeeper(
            directory: directory, hugePageBytes: hugePageBytes == 0 ? nil : UInt64(hugePageBytes))
        try keeper.serve()
    }

    private struct AgentService: Service {
        let agent: Agent
        func run() async throws {
            try await cancelWhenGracefulShutdown { try await agent.run() }
        }
    }
}

/// Ends the process at a named fault point, for tests of crash safety: `FTVM_FAULT=NAME` the first time it is
/// reached, `FTVM_FAULT=NAME:3` the third time. `FTVM_FAULT_ONCE` names a file that is removed then: without
/// the file nothing happens, so that a restarted ftvmd goes past the point.
enum FaultInjection {
    static func installFromEnvironment() {
        let environment = ProcessInfo.processInfo.environment
        TestSwitches.install(environment)
        // Hosts of one machine that see as little of each other's locks as hosts of several.
        if let kernel = environment["FTVM_TEST_KERNEL"].flatMap({ Int64($0) }), kernel > 0 {
            FaultPoint.foreignKernel = kernel
        }
        guard let wish = environment["FTVM_FAULT"], !wish.isEmpty else { return }
        let parts = wish.split(separator: ":")
        let name = String(parts[0])
        let count = parts.count > 1 ? Int(parts[1]) ?? 1 : 1
        let onceFile = environment["FTVM_FAULT_ONCE"]
        let remaining = Countdown(count)
        FaultPoint.hook = { reached in
            guard reached == name, remaining.reachesZero() else { return }
            if let onceFile, unlink(onceFile) != 0 { return }
            kill(getpid(), SIGKILL)
        }
    }

    private final class Countdown: @unchecked Sendable {
        private let lock = NSLock()
        private var left: Int
        init(_ count: Int) { left = count }
        func reachesZero() -> Bool {
            lock.withLock {
                left -= 1
                return left == 0
            }
        }
    }
}
