import Hypervisor
import Model
import Protection

extension PrimaryDriver {
    /// QEMU is gone, and its monitor had told of no shutdown: it was killed, or has crashed. False also when
    /// nobody can tell.
    func wentWithoutAWord() -> Bool {
        guard let connection = monitor as? QMPConnection else { return false }
        // What it said last is read even if nobody has been listening since.
        guard let events = try? connection.takeEvents() else { return true }
        return !events.contains { $0.name == "SHUTDOWN" }
    }

    /// Whether QEMU answers its monitor within a short time. The epochs' own call, if one is under way, has the
    /// monitor's turn: then nobody else gets an answer either.
    func answersMonitor() -> Bool {
        do {
            _ = try monitor.execute("query-status", timeoutMilliseconds: 200)
            return true
        } catch {
            // Gone is not hanging: others find that out, and sooner.
            return (error as? FtvmError)?.code != .timedOut
        }
    }
}
