import CLinux
import Dispatch
import Foundation
import Glibc
import Model
import Synchronization

/// An open watchdog device: a timer that resets the machine unless it is petted.
package protocol WatchdogDevice: Sendable {
    /// Starts the timer anew.
    func pet() throws(FtvmError)
    /// Closes the device. When `disarmed`, its timer is stopped first where the driver can do that;
    /// otherwise it goes on and resets the machine.
    func close(disarmed: Bool)
}

/// Linux's watchdog device (Documentation/watchdog/watchdog-api.rst). Opening it starts the timer;
/// only one process can have it open. When its process ends without having disarmed it, the machine
/// is reset after the time that is left, unless a successor opens it in time.
package final class LinuxWatchdog: WatchdogDevice {
    private let path: String
    private let descriptor: Mutex<CInt>
    /// In force, in seconds: the driver may round what was asked for.
    package let timeoutSeconds: Int
    /// Whether the driver can be disarmed at all (not with `nowayout`).
    package let canBeDisarmed: Bool

    package static let defaultPath = "/dev/watchdog"

    /// Opens the device and sets its time. From here on it must be petted.
    /// - Throws: `notFound` without a device, `conflict` when another process has it, `unsupported`
    ///   when it is no watchdog or cannot have that time.
    package init(path: String = defaultPath, timeoutSeconds: Int) throws(FtvmError) {
        precondition(timeoutSeconds > 0)
        let descriptor = open(path, O_WRONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            let failure = errno
            let code: FtvmError.Code =
                switch failure {
                case ENOENT, ENODEV, ENXIO: .notFound
                case EBUSY: .conflict
                case EACCES, EPERM: .permissionDenied
                default: .unavailable
                }
            throw FtvmError(
                code, "the watchdog \(path) cannot be opened",
                cause: String(cString: strerror(failure)),
                advice: failure == EBUSY
                    ? "another program uses it: systemd (RuntimeWatchdogSec), watchdog or sbd"
                    : "load the driver of the machine's watchdog, or softdog")
        }
        let canStop = ftvm_watchdog_can_stop(descriptor)
        let granted = ftvm_watchdog_set_timeout(descriptor, CInt(clamping: timeoutSeconds))
        guard canStop >= 0, granted > 0 else {
            // Disarmed, in case it is one after all.
            _ = write(descriptor, "V", 1)
            Glibc.close(descriptor)
            throw FtvmError(
                .unsupported, "\(path) cannot be used as a watchdog of \(timeoutSeconds) s",
                cause: String(cString: strerror(-(canStop < 0 ? canStop : granted))),
                advice: canStop < 0 ? "it is no watchdog device" : "choose another time")
        }
        guard granted <= timeoutSeconds else {
            // Others count on the time that was configured.
            _ = write(descriptor, "V", 1)
            Glibc.close(descriptor)
            throw FtvmError(
                .unsupported, "the watchdog \(path) cannot have a time of \(timeoutSeconds) s",
                cause: "its driver makes that \(granted) s", advice: "configure \(granted) s")
        }
        self.path = path
        self.descriptor = Mutex(descriptor)
        self.timeoutSeconds = Int(granted)
        canBeDisarmed = canStop == 1
    }

    package func pet() throws(FtvmError) {
        let failure = descriptor.withLock { descriptor -> CInt in
            guard descriptor >= 0 else { return EBADF }
            return write(descriptor, "\0", 1) == 1 ? 0 : errno
        }
        guard failure == 0 else {
            throw FtvmError(
                .unavailable, "the watchdog \(path) cannot be petted",
                cause: String(cString: strerror(failure)),
                advice: "the machine will be reset soon")
        }
    }

    package func close(disarmed: Bool) {
        descriptor.withLock { descriptor in
            guard descriptor >= 0 else { return }
            if disarmed { _ = write(descriptor, "V", 1) }
            Glibc.close(descriptor)
            descriptor = -1
        }
    }

    deinit { close(disarmed: false) }
}

/// Pets a watchdog for as long as it is permitted: the last means of a self-fence. When the host
/// may no longer run primaries and cannot end them by itself, it stops permitting, and the machine
/// resets.
package final class WatchdogKeeper: Sendable {
    private struct State {
        var failure: FtvmError?
        var refusals: UInt64 = 0
        var stopped = false
    }
    private let device: any WatchdogDevice
    private let shared = Shared()
    private let wake = DispatchSemaphore(value: 0)
    private let ended = DispatchSemaphore(value: 0)

    private final class Shared: Sendable {
        let state = Mutex(State())
    }

    /// Why it could not be petted the last time; nil: it could.
    package var failure: FtvmError? { shared.state.withLock { $0.failure } }
    /// How often petting was not permitted.
    package var refusals: UInt64 { shared.state.withLock { $0.refusals } }

    /// Starts a thread that pets at once and then once per period.
    /// - Parameters:
    ///   - periodMilliseconds: a fraction of the watchdog's time: a quarter is usual.
    ///   - permit: asked before each time, must not block.
    package init(
        device: any WatchdogDevice, periodMilliseconds: Int,
        permit: @escaping @Sendable () -> Bool
    ) {
        precondition(periodMilliseconds > 0)
        self.device = device
        let period = UInt64(periodMilliseconds) * 1_000_000
        UrgentThread.start("ftvm-watchdog") { [device, shared, wake, ended] in
            var next = DispatchTime.now().uptimeNanoseconds
            while !shared.state.withLock({ $0.stopped }) {
                if permit() {
                    do throws(FtvmError) {
                        try device.pet()
                        shared.state.withLock { $0.failure = nil }
                    } catch {
                        shared.state.withLock { $0.failure = error }
                    }
                } else {
                    shared.state.withLock { $0.refusals += 1 }
                }
                next = max(next + period, DispatchTime.now().uptimeNanoseconds)
                _ = wake.wait(timeout: DispatchTime(uptimeNanoseconds: next))
            }
            ended.signal()
        }
    }

    /// Ends the petting and closes the device. To be called once.
    /// - Parameter disarmed: true for an orderly end of a host that runs no primary; false leaves
    /// the
    ///   timer to run out.
    package func stop(disarmed: Bool) {
        shared.state.withLock { $0.stopped = true }
        wake.signal()
        ended.wait()
        device.close(disarmed: disarmed)
    }
}
