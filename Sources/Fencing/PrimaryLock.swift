import CLinux
import Glibc
import Model

/// The lock of the primary: an exclusive open-file-description lock on the first byte of a
/// segment's `lock` file, held by the primary's QEMU itself through a descriptor that was put into
/// it.
///
/// Why it proves something: the kernel gives such a lock back only when the last descriptor of that
/// open file description is closed, and closes the descriptors of a process that ends after it has
/// taken the process's memory map apart (`do_exit` in the kernel's kernel/exit.c: `exit_mm` comes
/// before `exit_files`). So on hosts that share one kernel, "free" means that the QEMU can write to
/// the segment no more. It proves nothing between kernels.
///
/// The order that keeps it meaningful: whoever starts a primary takes the lock before the guest's
/// first instruction, puts the descriptor into QEMU, and closes every copy of its own.
package enum PrimaryLock {
    /// The byte that is locked: the first, but for tests that play several machines on one.
    private static var place: Int64 { 8 * FaultPoint.foreignKernel }

    /// What the lock says about its holder.
    package enum HolderState: String, Sendable, Hashable {
        /// Nobody holds it: the primary is gone.
        case free
        /// A process holds it (which one: `isHeld(by:lockPath:)`).
        case held
    }

    /// Takes the lock for the open file description behind `descriptor`, without waiting.
    /// - Parameter descriptor: the segment's `lock` file, open for reading and writing.
    /// - Throws: `conflict` when another open file description holds it.
    package static func acquire(_ descriptor: CInt) throws(FtvmError) {
        let result = ftvm_lock_set(descriptor, place, 1, true)
        if result == 0 { return }
        if result == -EAGAIN {
            throw FtvmError(
                .conflict, "the primary lock is held by another QEMU",
                cause: "F_OFD_SETLK: \(errnoText(result))",
                advice: "wait until that QEMU has ended: see `ftvm status`")
        }
        throw lockFailure("the primary lock cannot be taken", "F_OFD_SETLK", result)
    }

    /// Whether somebody else holds the lock.
    /// - Parameter descriptor: the segment's `lock` file, opened by itself for this question
    ///   (reading is enough): a lock of its own open file description is not seen.
    /// - Throws: any failure of the call; the answer is then unknown, which is not "free".
    package static func holderState(_ descriptor: CInt) throws(FtvmError) -> HolderState {
        switch ftvm_lock_query(descriptor, place, 1) {
        case 0: return .free
        case 1: return .held
        case let result:
            throw lockFailure("the primary lock cannot be asked for", "F_OFD_GETLK", result)
        }
    }

    /// `holderState` of the file at `lockPath`.
    /// - Throws: `notFound` when there is no such file: that is no proof of anything.
    package static func holderState(path lockPath: String) throws(FtvmError) -> HolderState {
        let descriptor = open(lockPath, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            let failure = errno
            throw FtvmError(
                failure == ENOENT ? .notFound : .unavailable,
                "the primary lock \(lockPath) cannot be opened", cause: errnoText(failure),
                advice: "check that the pool is mounted on this host")
        }
        defer { close(descriptor) }
        return try holderState(descriptor)
    }

    /// Gives the lock back, for every descriptor of the same open file description, in whichever
    /// process it is.
    package static func release(_ descriptor: CInt) throws(FtvmError) {
        let result = ftvm_lock_clear(descriptor, place, 1)
        guard result == 0 else {
            throw lockFailure("the primary lock cannot be given back", "F_OFD_SETLK", result)
        }
    }

    private static func lockFailure(
        _ message: String, _ call: String, _ result: CInt
    ) -> FtvmError {
        FtvmError(
            .unavailable, message, cause: "\(call): \(errnoText(result))",
            advice: "the pool must be on a file system that supports fcntl locks")
    }
}

/// The words for an errno, given as itself or negated.
func errnoText(_ number: CInt) -> String {
    String(cString: strerror(abs(number)))
}
