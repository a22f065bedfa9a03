import CLinux
import Glibc

/// A thread of the kernel's with a name: for work that blocks, or must not wait for Swift's own threads. What it runs is kept alive
/// until it ends. No Foundation: this part is loaded into nbdkit too.
package struct OwnThread: @unchecked Sendable {
    private final class Body {
        let name: String
        let run: () -> Void
        init(_ name: String, _ run: @escaping () -> Void) { (self.name, self.run) = (name, run) }
    }

    private let thread: pthread_t

    /// - Parameter name: at most 15 bytes, for ps(1).
    /// - Throws: `.resourceExhausted`; then `run` is not called.
    package init(_ name: String, _ run: @escaping @Sendable () -> Void) throws(FtvmError) {
        precondition(name.utf8.count <= 15, "the kernel keeps 15 bytes of a thread's name")
        var thread = pthread_t()
        let body = Unmanaged.passRetained(Body(name, run))
        let result = pthread_create(
            &thread, nil,
            { argument in
                guard let argument else { return nil }
                let body = Unmanaged<Body>.fromOpaque(argument).takeRetainedValue()
                ftvm_name_thread(body.name)
                body.run()
                return nil
            }, body.toOpaque())
        guard result == 0 else {
            body.release()
            throw FtvmError(
                .resourceExhausted, "cannot start the thread '\(name)'",
                cause: String(cString: strerror(result)))
        }
        self.thread = thread
    }

    /// Waits for its end. Once, or `detach`.
    package func join() { pthread_join(thread, nil) }

    /// Nobody will wait for its end.
    package func detach() { pthread_detach(thread) }
}
