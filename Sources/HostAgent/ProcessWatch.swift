import CLinux
import Dispatch
import Glibc
import Hypervisor

/// Tells once when a process has ended, within a fraction of a millisecond: the kernel wakes whoever polls
/// its pidfd, after it has let go of its descriptors (and so of the primary lock).
/// Everything it holds may be used from any thread.
final class ProcessWatch: @unchecked Sendable {
    private let source: any DispatchSourceRead

    /// nil when the process is gone already.
    init?(_ process: QEMUProcess, onEnd: @escaping @Sendable () -> Void) {
        let descriptor = ftvm_pidfd_open(process.processID)
        guard descriptor >= 0 else { return nil }
        guard process.isRunning else {
            close(descriptor)
            return nil
        }
        source = DispatchSource.makeReadSource(
            fileDescriptor: descriptor, queue: DispatchQueue.global(qos: .userInteractive))
        let source = source
        source.setEventHandler {
            source.cancel()
            onEnd()
        }
        source.setCancelHandler { close(descriptor) }
        source.activate()
    }

    deinit { source.cancel() }
}
