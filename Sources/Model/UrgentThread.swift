import Glibc

/// Threads on whose being in time the others' judgement of this host depends: heartbeats, the watchdog's. They run before
/// everything that has no such priority, so that a host whose CPUs are all taken is not taken for dead. (corosync does the same.)
package enum UrgentThread {
    /// Of `SCHED_RR`, 1...99: above everything ordinary, below the kernel's own.
    private static let priority: CInt = 2
    /// What such a thread starts gets an ordinary priority (sched(7), SCHED_RESET_ON_FORK).
    private static let resetOnFork: CInt = 0x4000_0000

    /// Starts a thread. Where the priority is refused it runs without; `refusal` tells why.
    /// - Parameter name: at most 15 bytes, for ps(1).
    package static func start(_ name: String, _ body: @escaping @Sendable () -> Void) {
        create(name) {
            _ = becomeUrgent()
            body()
        }.detach()
    }

    /// The errno with which the kernel refuses the priority to threads of this process; nil: it grants it.
    package static func refusal() -> CInt? {
        var answer: CInt?
        // The calling thread keeps the priority that it has.
        withUnsafeMutablePointer(to: &answer) { answer in
            nonisolated(unsafe) let answer = answer
            create("ftvm-try") { answer.pointee = becomeUrgent() }.join()
        }
        return answer
    }

    private static func create(_ name: String, _ run: @escaping @Sendable () -> Void) -> OwnThread {
        do {
            return try OwnThread(name, run)
        } catch {
            // A host without its heartbeats is of no use: its ftvmd ends, and systemd tries anew.
            preconditionFailure("\(error)")
        }
    }

    private static func becomeUrgent() -> CInt? {
        var parameters = sched_param()
        parameters.sched_priority = priority
        // 0 is the calling thread, not the process.
        return sched_setscheduler(0, SCHED_RR | resetOnFork, &parameters) == 0 ? nil : errno
    }
}
