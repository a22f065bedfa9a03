import Fencing
import Foundation
import Glibc
import Model
import Synchronization

/// What hosts of a lab cannot have or lose for real, played by tests; nothing of it exists without the variables
/// in ftvmd's environment. Read once, before any thread starts.
enum TestSwitches {
    /// FTVM_TEST_POOL_CUT names a file: while it exists this host's heartbeats do not reach the pool, and it sees
    /// nobody's. Memory that a process has mapped cannot be taken from it, so its guests' RAM stays: the worst case.
    nonisolated(unsafe) private static var poolCutFile: String?
    /// FTVM_TEST_WATCHDOG=pipe: `[self_fence] watchdog` is a named pipe, at whose other end a test plays the device.
    nonisolated(unsafe) private static var watchdogIsPlayed = false

    static func install(_ environment: [String: String]) {
        poolCutFile = environment["FTVM_TEST_POOL_CUT"]
        watchdogIsPlayed = environment["FTVM_TEST_WATCHDOG"] == "pipe"
    }

    static var poolIsCut: Bool {
        guard let poolCutFile else { return false }
        return access(poolCutFile, F_OK) == 0
    }

    static func watchdog(path: String, seconds: Int) throws(FtvmError) -> HostWatchdog {
        let device: any WatchdogDevice =
            watchdogIsPlayed
            ? try PlayedWatchdog(path: path)
            : try LinuxWatchdog(path: path, timeoutSeconds: seconds)
        let granted = (device as? LinuxWatchdog)?.timeoutSeconds ?? seconds
        return HostWatchdog(device: device, timeoutSeconds: granted)
    }
}

/// This host's watchdog, open.
struct HostWatchdog: Sendable {
    let device: any WatchdogDevice
    /// In force, in seconds.
    let timeoutSeconds: Int
}

/// Says to a test what a watchdog's driver would be told: one byte for each time, V for the disarming.
private final class PlayedWatchdog: WatchdogDevice {
    private let descriptor: Mutex<CInt>

    init(path: String) throws(FtvmError) {
        let descriptor = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw FtvmError(
                .notFound, "nobody plays the watchdog \(path)",
                cause: String(cString: strerror(errno)))
        }
        self.descriptor = Mutex(descriptor)
    }

    private func say(_ byte: String) -> Bool {
        descriptor.withLock { $0 >= 0 && write($0, byte, 1) == 1 }
    }

    func pet() throws(FtvmError) {
        guard say("\0") else { throw FtvmError(.unavailable, "the watchdog is not listened to") }
    }

    func close(disarmed: Bool) {
        if disarmed { _ = say("V") }
        descriptor.withLock { descriptor in
            if descriptor >= 0 { Glibc.close(descriptor) }
            descriptor = -1
        }
    }
}
