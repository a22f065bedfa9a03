import Dispatch
import Foundation
import Model
import Synchronization

/// Runs calls that block on threads of their own, so that neither an actor nor Swift's own threads
/// wait in them, and gives up waiting for a call that takes too long. The thread of such a call is
/// lost until the call returns; a new one takes its place, up to a limit.
package final class CallThreads: Sendable {
    private typealias Job = @Sendable () -> Void

    private struct State {
        var queue: [Job] = []
        var idle = 0
        var threads = 0
        /// Threads in calls that nobody waits for any more.
        var lost = 0
        var isClosed = false
    }

    private let name: String
    /// Calls that may run side by side, that may wait for a thread, and that may be lost.
    private let maximumThreads: Int
    private let maximumQueue: Int
    private let maximumLost: Int
    private let state = Mutex(State())
    private let wake = DispatchSemaphore(value: 0)

    package init(name: String, threads: Int = 4, queue: Int = 256, lost: Int = 8) {
        self.name = name
        self.maximumThreads = threads
        self.maximumQueue = queue
        self.maximumLost = lost
    }

    /// Lets the idle threads end.
    package func close() {
        let count = state.withLock { state in
            state.isClosed = true
            return state.threads
        }
        for _ in 0..<count { wake.signal() }
    }

    /// Runs `body` on one of the threads.
    /// - Parameter what: for messages: `list the domains`.
    /// - Throws: what `body` throws; `.timedOut`; `.resourceExhausted` when too much waits already;
    ///   `.unavailable` when too many calls never returned.
    package func run<Value: Sendable>(
        _ what: String, timeoutMilliseconds: Int, _ body: @escaping @Sendable () throws -> Value
    ) async throws -> Value {
        try await withCheckedThrowingContinuation { continuation in
            let call = Call(continuation)
            do {
                try enqueue(what) { [self] in
                    guard call.begin() else { return }
                    let result = Result { try body() }
                    if !call.finish(result) { state.withLock { $0.lost -= 1 } }
                }
            } catch {
                _ = call.finish(.failure(error))
                return
            }
            let limit = DispatchTime.now() + .milliseconds(timeoutMilliseconds)
            DispatchQueue.global().asyncAfter(deadline: limit) { [self] in
                let error = FtvmError(
                    .timedOut, "cannot \(what): libvirt does not answer",
                    cause: "nothing within \(timeoutMilliseconds) ms",
                    advice: "see whether libvirtd hangs")
                // The thread that is in the call is given up for as long as the call lasts. Under
                // the lock, so that the call's own end cannot take back what is not counted yet.
                state.withLock { state in
                    if call.abandon(error) == .whileRunning { state.lost += 1 }
                }
            }
        }
    }

    private func enqueue(_ what: String, _ job: @escaping Job) throws {
        let startsThread = try state.withLock { state in
            guard !state.isClosed else {
                throw FtvmError(.unavailable, "cannot \(what)", cause: "ftvmd is shutting down")
            }
            guard state.lost < maximumLost else {
                throw FtvmError(
                    .unavailable, "cannot \(what): libvirt does not answer",
                    cause: "\(state.lost) calls to it never returned",
                    advice: "see whether libvirtd hangs")
            }
            guard state.queue.count < maximumQueue else {
                throw FtvmError(
                    .resourceExhausted, "cannot \(what)",
                    cause: "\(state.queue.count) calls wait for libvirt already")
            }
            state.queue.append(job)
            let isNeeded =
                state.idle < state.queue.count && state.threads - state.lost < maximumThreads
            if isNeeded { state.threads += 1 }
            return isNeeded
        }
        wake.signal()
        if startsThread { startThread() }
    }

    private func startThread() {
        let thread = Thread { [self] in
            while let job = nextJob() { job() }
        }
        thread.name = name
        thread.start()
    }

    private func nextJob() -> Job? {
        while true {
            state.withLock { $0.idle += 1 }
            wake.wait()
            let (job, isClosed) = state.withLock { state -> (Job?, Bool) in
                state.idle -= 1
                return (state.queue.isEmpty ? nil : state.queue.removeFirst(), state.isClosed)
            }
            if let job { return job }
            if isClosed { return nil }
        }
    }
}

/// One call's continuation, resumed by whoever is first: its end or its deadline.
private final class Call<Value: Sendable>: Sendable {
    enum Abandoned { case beforeStart, whileRunning, tooLate }

    private struct State {
        var continuation: CheckedContinuation<Value, any Error>?
        var hasBegun = false
    }

    private let state: Mutex<State>

    init(_ continuation: CheckedContinuation<Value, any Error>) {
        state = Mutex(State(continuation: continuation))
    }

    /// Whether somebody still waits for it.
    func begin() -> Bool {
        state.withLock { state in
            state.hasBegun = true
            return state.continuation != nil
        }
    }

    /// Whether somebody still waited for it.
    func finish(_ result: Result<Value, any Error>) -> Bool {
        let continuation = state.withLock { state in state.continuation.take() }
        continuation?.resume(with: result)
        return continuation != nil
    }

    func abandon(_ error: FtvmError) -> Abandoned {
        let (continuation, hasBegun) = state.withLock { state in
            (state.continuation.take(), state.hasBegun)
        }
        guard let continuation else { return .tooLate }
        continuation.resume(throwing: error)
        return hasBegun ? .whileRunning : .beforeStart
    }
}
