import Hypervisor

/// A QEMU's monitor, with something of the test's before or after a command.
final class WrappedMonitor: Monitor {
    private let inner: QMPConnection
    nonisolated(unsafe) private let afterStop: () throws -> Void
    nonisolated(unsafe) private let beforeCont: () -> Void
    nonisolated(unsafe) private let afterSave: () throws -> Void
    let label = "wrapped"
    let savesInPassing: Bool

    init(
        _ inner: QMPConnection, savesInPassing: Bool = false,
        afterStop: @escaping () throws -> Void = {}, beforeCont: @escaping () -> Void = {},
        afterSave: @escaping () throws -> Void = {}
    ) {
        self.inner = inner
        self.savesInPassing = savesInPassing
        self.afterStop = afterStop
        self.beforeCont = beforeCont
        self.afterSave = afterSave
    }

    func execute(
        _ command: String, arguments: String?, descriptor: Int32?, timeoutMilliseconds: Int
    ) throws -> MonitorReply {
        try inner.execute(
            command, arguments: arguments, descriptor: descriptor,
            timeoutMilliseconds: timeoutMilliseconds)
    }
    func stop(timeoutMilliseconds: Int) throws {
        try inner.stop(timeoutMilliseconds: timeoutMilliseconds)
        try afterStop()
    }
    func cont(timeoutMilliseconds: Int) throws {
        beforeCont()
        try inner.cont(timeoutMilliseconds: timeoutMilliseconds)
    }
    func hasChangedSinceStop() throws -> Bool { try inner.hasChangedSinceStop() }
    func isRunning(attending: (any MonitorAttendant)?) throws -> Bool {
        try inner.isRunning(attending: attending)
    }
    func saveDeviceState(path: String, timeoutMilliseconds: Int) throws {
        try inner.saveDeviceState(path: path, timeoutMilliseconds: timeoutMilliseconds)
        try afterSave()
    }
    func interrupt() { inner.interrupt() }
}
