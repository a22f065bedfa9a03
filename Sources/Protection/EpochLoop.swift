import CLinux
import Glibc
import Hypervisor
import MemoryPool
import Model

/// Asks a primary's epoch loop for a commit before its time; any thread may.
package final class CommitRequest: Sendable {
    private let descriptor: Int32

    init() throws {
        descriptor = ftvm_eventfd()
        guard descriptor >= 0 else {
            throw FtvmError(
                .resourceExhausted, "cannot make an eventfd for the epoch loop",
                cause: String(cString: strerror(-descriptor)))
        }
    }

    deinit { close(descriptor) }

    /// Never blocks.
    package func signal() {
        var one: UInt64 = 1
        _ = write(descriptor, &one, 8)
    }

    /// Waits for a request or for the monotonic time, whichever is first, and takes the request.
    func wait(untilNanoseconds due: UInt64) {
        let now = MonotonicClock.nowNanoseconds()
        let left = due > now ? due - now : 0
        if ftvm_poll_ns(descriptor, left) > 0 {
            var count: UInt64 = 0
            _ = read(descriptor, &count, 8)
        }
    }
}

/// The thread that commits a primary's epochs, until it is told to end or something ends it.
package final class EpochLoop: @unchecked Sendable {
    /// Why the loop has ended.
    package enum End: Sendable {
        /// As asked.
        case stopped
        /// Another generation has taken over: this QEMU must be killed, and release nothing.
        case fenced(FtvmError)
        /// QEMU is gone.
        case lost(FtvmError)
        /// QEMU does not answer: it must be killed, then it is lost.
        case hung(FtvmError)
    }

    private let committer: Committer
    private let epochMaximumNanoseconds: UInt64
    private let onEnd: @Sendable (End) -> Void
    private let request: CommitRequest
    private var thread = pthread_t()
    private var started = false

    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    // Under the lock:
    private var stopping = false
    private var history = CommitHistory()
    private var failure: FtvmError?

    /// - Parameter onEnd: called once, on the loop's thread, as its last act.
    package init(
        committer: Committer, request: CommitRequest, epochMaximumMilliseconds: Int,
        onEnd: @escaping @Sendable (End) -> Void
    ) {
        precondition(epochMaximumMilliseconds > 0, "an epoch has a length")
        self.committer = committer
        self.epochMaximumNanoseconds = UInt64(epochMaximumMilliseconds) * 1_000_000
        self.request = request
        self.onEnd = onEnd
        mutex = .allocate(capacity: 1)
        mutex.initialize(to: pthread_mutex_t())
        pthread_mutex_init(mutex, nil)
    }

    deinit {
        precondition(!started, "an epoch loop is joined before it goes away")
        pthread_mutex_destroy(mutex)
        mutex.deallocate()
    }

    package func start() throws {
        precondition(!started, "an epoch loop is started once")
        let context = Unmanaged.passRetained(self)
        started = true
        let result = pthread_create(
            &thread, nil,
            { context in
                guard let context else { return nil }
                let loop = Unmanaged<EpochLoop>.fromOpaque(context).takeRetainedValue()
                ftvm_name_thread("ftvm-epochs")
                loop.onEnd(loop.run())
                return nil
            }, context.toOpaque())
        guard result == 0 else {
            context.release()
            started = false
            throw FtvmError(
                .resourceExhausted, "cannot start the epoch thread",
                cause: String(cString: strerror(result)))
        }
    }

    /// Ends the loop between two commits and waits for it.
    package func stop() {
        guard started else { return }
        withLock { stopping = true }
        request.signal()
        pthread_join(thread, nil)
        started = false
    }

    /// Figures of the last commits; `failure` is why the last commit could not be made, if so.
    package func figures() -> (figures: EpochFigures, failure: FtvmError?) {
        withLock { (history.figures(at: MonotonicClock.nowNanoseconds()), failure) }
    }

    private func withLock<Result>(_ body: () -> Result) -> Result {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return body()
    }

    private func run() -> End {
        var due = MonotonicClock.nowNanoseconds() + epochMaximumNanoseconds
        while true {
            request.wait(untilNanoseconds: due)
            if withLock({ stopping }) { return .stopped }
            if committer.tracker.lost { return .lost(qemuGone) }
            do {
                try commitIfRunning()
            } catch let error as FtvmError {
                switch error.code {
                case .conflict: return .fenced(error)
                case .unavailable: return .lost(error)
                case .timedOut: return .hung(error)
                default: withLock { failure = error }
                }
            } catch {
                withLock { failure = FtvmError(wrapping: error, "a commit failed") }
            }
            due = MonotonicClock.nowNanoseconds() + epochMaximumNanoseconds
        }
    }

    /// A guest that a user has paused is left alone: its last commit is what it is, but for what it wrote
    /// before the pause, which the commit after its resumption covers.
    private func commitIfRunning() throws {
        let state = try committer.monitor.status()
        guard state.running else { return }
        let report = try committer.commit()
        let now = MonotonicClock.nowNanoseconds()
        withLock {
            history.add(report, at: now)
            failure = nil
        }
    }

    private var qemuGone: FtvmError {
        FtvmError(.unavailable, "QEMU is gone", cause: "its userfaultfd can no longer be read")
    }
}
