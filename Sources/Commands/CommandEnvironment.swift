import ControlAPI
import Glibc
import Lab
import Model

/// Time as commands see it; passed in, so that tests need not wait.
package struct TimeSource: Sendable {
    /// Monotonic, from any start.
    package var now: @Sendable () -> Duration
    package var sleep: @Sendable (Duration) async throws -> Void

    package init(
        now: @escaping @Sendable () -> Duration,
        sleep: @escaping @Sendable (Duration) async throws -> Void
    ) {
        self.now = now
        self.sleep = sleep
    }

    package static var monotonic: TimeSource {
        let start = ContinuousClock.now
        return TimeSource(
            now: { start.duration(to: .now) }, sleep: { try await Task.sleep(for: $0) })
    }
}

/// Everything a command touches outside itself. Commands are values made by the argument parser, so
/// this reaches them as a task-local value.
package struct CommandEnvironment: Sendable {
    package var console: Console
    package var time: TimeSource
    /// Runs `body` with a connection to the daemon that `--socket` (or its absence) stands for.
    package var connect: @Sendable (_ socket: String?) -> any ControlService
    /// The same with the daemon that `--url` stands for.
    package var connectRemotely: @Sendable (RemoteHost) -> any ControlService = {
        ControlClient(remote: $0)
    }
    /// Ends a connection that `connect` made.
    package var disconnect: @Sendable (any ControlService) async -> Void
    /// Seconds since 1970 as local date and time.
    package var dateText: @Sendable (Double) -> String

    package init(
        console: Console, time: TimeSource,
        connect: @escaping @Sendable (_ socket: String?) -> any ControlService,
        disconnect: @escaping @Sendable (any ControlService) async -> Void = { _ in },
        dateText: @escaping @Sendable (Double) -> String = DateText.local
    ) {
        self.console = console
        self.time = time
        self.connect = connect
        self.disconnect = disconnect
        self.dateText = dateText
    }

    @TaskLocal package static var current = CommandEnvironment.process

    /// The real world.
    package static var process: CommandEnvironment {
        CommandEnvironment(
            console: .standard, time: .monotonic,
            connect: { socket in
                ControlClient(
                    discovery: SocketDiscovery(
                        option: socket,
                        environment: getenv(SocketDiscovery.environmentVariable).map {
                            String(cString: $0)
                        },
                        labDirectory: "/run/\(LabLayout.nameInEnvironment)/hosts"))
            },
            disconnect: { await ($0 as? ControlClient)?.shutdown() })
    }
}
