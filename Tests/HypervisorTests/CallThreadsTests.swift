import Dispatch
import Hypervisor
import Model
import Synchronization
import Testing

@Suite struct CallThreadsTests {
    /// How many calls run at a time.
    private final class Running: Sendable {
        private let state = Mutex((now: 0, most: 0))
        var most: Int { state.withLock { $0.most } }
        func count<Value>(_ body: () -> Value) -> Value {
            state.withLock { $0 = ($0.now + 1, max($0.most, $0.now + 1)) }
            defer { state.withLock { $0.now -= 1 } }
            return body()
        }
    }

    @Test func callsReturnAndThrow() async throws {
        let threads = CallThreads(name: "test")
        #expect(try await threads.run("add", timeoutMilliseconds: 60_000) { 1 + 1 } == 2)
        let error = await #expect(throws: FtvmError.self) {
            try await threads.run("fail", timeoutMilliseconds: 60_000) {
                throw FtvmError(.conflict, "no")
            }
        }
        #expect(error?.code == .conflict)
        threads.close()
        let closed = await #expect(throws: FtvmError.self) {
            try await threads.run("add", timeoutMilliseconds: 60_000) { 1 }
        }
        #expect(closed?.code == .unavailable)
    }

    @Test func manyCallsShareFewThreads() async throws {
        let threads = CallThreads(name: "test", threads: 3)
        let running = Running()
        let sum = try await withThrowingTaskGroup(of: Int.self) { group in
            for number in 0..<200 {
                group.addTask {
                    try await threads.run("count", timeoutMilliseconds: 60_000) {
                        running.count { number }
                    }
                }
            }
            return try await group.reduce(0, +)
        }
        #expect(sum == 199 * 100)
        #expect(running.most <= 3)
        threads.close()
    }

    @Test func aStuckCallDoesNotStopTheOthers() async throws {
        let threads = CallThreads(name: "test", threads: 1, lost: 2)
        let go = DispatchSemaphore(value: 0)
        for _ in 0..<2 {
            let error = await #expect(throws: FtvmError.self) {
                try await threads.run("hang", timeoutMilliseconds: 20) { go.wait() }
            }
            #expect(error?.code == .timedOut)
            #expect(error?.message.contains("hang") == true)
        }
        // As many as may be lost are lost.
        let refused = await #expect(throws: FtvmError.self) {
            try await threads.run("add", timeoutMilliseconds: 60_000) { 1 }
        }
        #expect(refused?.code == .unavailable)
        go.signal()
        go.signal()
        // They come back by themselves.
        var value: Int?
        while value == nil {
            value = try? await threads.run("add", timeoutMilliseconds: 60_000) { 1 }
        }
        #expect(value == 1)
        threads.close()
    }

    @Test func theQueueHasALimit() async throws {
        let threads = CallThreads(name: "test", threads: 1, queue: 2)
        let isRunning = DispatchSemaphore(value: 0)
        let go = DispatchSemaphore(value: 0)
        try await withThrowingTaskGroup(of: Int.self) { group in
            group.addTask {
                try await threads.run("wait", timeoutMilliseconds: 60_000) {
                    isRunning.signal()
                    go.wait()
                    return 0
                }
            }
            await Task.detached { isRunning.wait() }.value
            for number in 1...3 {
                group.addTask {
                    try await threads.run("wait", timeoutMilliseconds: 60_000) { number }
                }
            }
            // Of three that wait one is one too many, whichever comes last.
            let first = await group.nextResult()
            guard case .failure(let error as FtvmError)? = first else {
                Issue.record("\(String(describing: first))")
                return
            }
            #expect(error.code == .resourceExhausted)
            go.signal()
            var others = 0
            for try await _ in group { others += 1 }
            #expect(others == 3)
        }
        threads.close()
    }

    /// A call that waits for a thread past its time never runs.
    @Test func aCallThatWaitedTooLongDoesNotRun() async throws {
        let threads = CallThreads(name: "test", threads: 1)
        let isRunning = DispatchSemaphore(value: 0)
        let go = DispatchSemaphore(value: 0)
        let hasRun = Mutex(false)
        async let first: Void = threads.run("wait", timeoutMilliseconds: 60_000) {
            isRunning.signal()
            go.wait()
        }
        await Task.detached { isRunning.wait() }.value
        let error = await #expect(throws: FtvmError.self) {
            try await threads.run("late", timeoutMilliseconds: 20) { hasRun.withLock { $0 = true } }
        }
        #expect(error?.code == .timedOut)
        go.signal()
        try await first
        #expect(try await threads.run("next", timeoutMilliseconds: 60_000) { 3 } == 3)
        #expect(!hasRun.withLock { $0 })
        threads.close()
    }
}
