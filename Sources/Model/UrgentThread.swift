import CLinux
import Glibc

/// Threads on whose being in time the others' judgement of this host depends: heartbeats, the watchdog's. They run before
/// everything that has no such priority, so that a host whose CPUs are all taken is not taken for dead. (corosync does the same.)
/// No Foundation: this part is loaded into nbdkit too.
package enum UrgentThread {
    /// Of `SCHED_RR`, 1...99: above everything ordinary, below the kernel's own.
    private static let priority: CInt = 2
    /// What such a thread starts gets an ordinary priority (sched(7), SCHED_RESET_ON_FORK).
    private static let resetOnFork: CInt = 0x4000_0000

    private final class Body {
        let name: String
        let run: () -> Void
        init(_ name: String, _ run: @escaping () -> Void) { (self.name, self.run) = (name, run) }
    }

    /// Starts a thread. Where the priority is refused it runs without; `refusal` tells why.
    /// - Parameter name: at most 15 bytes, for ps(1).
    package static func start(_ name: String, _ body: @escaping @Sendable () -> Void) {
        let thread = create(name) {
            _ = becomeUrgent()
            body()
        }
        pthread_detach(thread)
    }

    /// The errno with which the kernel refuses the priority to threads of this process; nil: it grants it.
    package static func refusal() -> CInt? {
        var answer: CInt?
        // The calling thread keeps the priority that it has.
        withUnsafeMutablePointer(to: &answer) { answer in
            nonisolated(unsafe) let answer = answer
            pthread_join(create("ftvm-try") { answer.pointee = becomeUrgent() }, nil)
        }
        return answer
    }

    private static func create(_ name: String, _ run: @escaping @Sendable () -> Void) -> pthread_t {
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
        // A host without its heartbeats is of no use: its ftvmd ends, and systemd tries anew.
        precondition(
            result == 0, "cannot start the thread \(name): \(String(cString: strerror(result)))")
        return thread
    }

    private static func becomeUrgent() -> CInt? {
        var parameters = sched_param()
        parameters.sched_priority = priority
        // 0 is the calling thread, not the process.
        return sched_setscheduler(0, SCHED_RR | resetOnFork, &parameters) == 0 ? nil : errno
    }
}
