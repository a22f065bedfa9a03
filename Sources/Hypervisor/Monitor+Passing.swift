import CLinux
import Dispatch
import Glibc
import Model
import Synchronization

extension Monitor {
    /// Has QEMU stop the guest, save its devices and let the guest go on, in one command. QEMU saves into a pipe that holds
    /// it up: from the first bytes in it until the end of `whileStopped`, which opens the pipe, the guest stands still. A
    /// guest that was paused stays so.
    /// - Parameters:
    ///   - path: the pipe's other end, as QEMU sees it.
    ///   - pipe: the end that we read, here only looked at.
    ///   - attending: reads the pipe once it is open.
    ///   - whileStopped: not called when QEMU refuses.
    /// - Throws: as the other calls; and what `whileStopped` throws, when QEMU has finished.
    package func saveInPassing(
        path: String, pipe: Int32, timeoutMilliseconds: Int, attending: any MonitorAttendant,
        whileStopped: () throws -> Void
    ) throws {
        let outcome = Outcome<Result<Void, any Error>>()
        saves.async {
            outcome.end(
                with: Result {
                    try self.saveDeviceState(path: path, timeoutMilliseconds: timeoutMilliseconds)
                })
        }
        var failure: (any Error)?
        if awaitBytes(in: pipe, attending, orEndOf: outcome) {
            do { try whileStopped() } catch { failure = error }
        }
        while outcome.done.wait(timeout: .now() + .microseconds(lookMicroseconds)) == .timedOut {
            attending.attend()
        }
        attending.attend()
        try outcome.result?.get()
        if let failure { throw failure }
    }

    /// - Returns: whether there are any; not when QEMU has answered without.
    private func awaitBytes<Value>(
        in pipe: Int32, _ attendant: any MonitorAttendant, orEndOf outcome: Outcome<Value>
    ) -> Bool {
        var set = ([pipe] + attendant.descriptors).map {
            pollfd(fd: $0, events: Int16(POLLIN), revents: 0)
        }
        while true {
            _ = ftvm_poll_set(&set, Int32(set.count), UInt64(lookMicroseconds) * 1_000)
            if set[0].revents & Int16(POLLIN) != 0 { return true }
            if outcome.result != nil { return false }
            attendant.attend()
        }
    }
}

/// The commands under way; each blocks a thread.
private let saves = DispatchQueue(label: "ftvm.saves", attributes: .concurrent)
/// Between two looks at everything.
private let lookMicroseconds = 500

/// What became of a call that somebody may not wait for any more.
final class Outcome<Value: Sendable>: Sendable {
    private let value = Mutex<Value?>(nil)
    let done = DispatchSemaphore(value: 0)

    var result: Value? { value.withLock { $0 } }

    func end(with result: Value) {
        value.withLock { $0 = result }
        done.signal()
    }
}
