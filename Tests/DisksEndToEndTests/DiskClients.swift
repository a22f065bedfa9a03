import EndToEndSupport
import Foundation
import Lab
import Model
import Testing

/// What the database says of its numbers.
struct Numbers: Equatable {
    let rows: Int
    let last: Int
    /// Rows whose number is not their place: lost, doubled or out of order.
    let wrong: Int

    init(_ client: GuestClient) throws {
        let answer = try client.ask("count")
        let words = answer.split(separator: " ").compactMap { Int($0) }
        try #require(words.count == 3, "\(answer)")
        (rows, last, wrong) = (words[0], words[1], words[2])
    }
}

/// Commits 1, 2, 3, ... over one connection until it is told to stop.
final class Committing: @unchecked Sendable {
    private let lock = NSLock()
    private var acknowledged: Int
    private var stopping = false
    private var trouble: String?
    private var task: Task<Void, Never>?

    init(_ client: GuestClient, from first: Int = 1) {
        acknowledged = first - 1
        let connection = Connection(client: client)
        let thread = Thread { [self] in run(connection.client) }
        thread.start()
    }

    private struct Connection: @unchecked Sendable { let client: GuestClient }
    private let ended = DispatchSemaphore(value: 0)

    private func run(_ client: GuestClient) {
        defer { ended.signal() }
        while !lock.withLock({ stopping }) {
            let next = lock.withLock { acknowledged } + 1
            do {
                let answer = try client.ask("commit \(next)")
                guard answer == "ok \(next)" else {
                    return lock.withLock { trouble = "\(next) was answered with \(answer)" }
                }
                lock.withLock { acknowledged = next }
            } catch {
                return lock.withLock { trouble = "\(next): \(error)" }
            }
        }
    }

    var count: Int { lock.withLock { acknowledged } }

    /// Waits until so many more are acknowledged.
    func goesOn(_ more: Int = 5) async throws {
        let goal = count + more
        try await eventually(
            "transactions go on", found: "\(count) of \(goal), \(lock.withLock { trouble } ?? "")"
        ) { () async throws -> Void? in
            if let trouble = lock.withLock({ trouble }) { throw Failure(trouble) }
            return count >= goal ? () : nil
        }
    }

    /// - Returns: how many are acknowledged.
    func stop() async throws -> Int {
        lock.withLock { stopping = true }
        try await eventually("the client ends", seconds: 90) { () async throws -> Void? in
            ended.wait(timeout: .now()) == .success ? () : nil
        }
        if let trouble = lock.withLock({ trouble }) { throw Failure(trouble) }
        return count
    }

    /// The same for a client whose server has been taken away from it.
    func giveUp() -> Int {
        lock.withLock {
            stopping = true
            return acknowledged
        }
    }
}

/// Something that is asked of the guest in the background, over a connection of its own.
final class Asking: @unchecked Sendable {
    private let lock = NSLock()
    private var outcome: String?

    init(_ client: GuestClient, _ question: String) {
        struct Connection: @unchecked Sendable { let client: GuestClient }
        let connection = Connection(client: client)
        Thread { [self] in
            let answer: String
            do {
                answer = try connection.client.ask(question)
            } catch {
                answer = "\(error)"
            }
            lock.withLock { outcome = answer }
        }.start()
    }

    /// nil: none yet.
    var answerSoFar: String? { lock.withLock { outcome } }

    func answer(seconds: Int = 90) async throws -> String {
        try await eventually("the guest answers", seconds: seconds) { answerSoFar }
    }
}

/// The guest's block checker (`Guest/blocks.c`), at work until it is told to stop: it finds by itself whatever is wrong.
final class Checking: @unchecked Sendable {
    private let lock = NSLock()
    private var rounds = 0
    private var stopping = false
    private var trouble: String?
    private let ended = DispatchSemaphore(value: 0)

    /// - Parameter seed: 0: goes on with what an earlier one has left.
    init(_ client: GuestClient, disk: String, seed: UInt64) {
        struct Connection: @unchecked Sendable { let client: GuestClient }
        let connection = Connection(client: client)
        Thread { [self] in
            defer { ended.signal() }
            var question = "blocks \(disk) \(seed) 24"
            while !lock.withLock({ stopping }) {
                do {
                    let answer = try connection.client.ask(question)
                    guard answer.hasPrefix("ok ") else {
                        return lock.withLock { trouble = answer }
                    }
                    question = "blocks \(disk) 0 24"
                    lock.withLock { rounds += 1 }
                } catch {
                    return lock.withLock { trouble = "\(error)" }
                }
            }
        }.start()
    }

    /// Waits until it has gone on, and found nothing.
    func goesOn(_ more: Int = 2) async throws {
        let goal = lock.withLock { rounds } + more
        try await eventually("the block checker goes on") { () async throws -> Void? in
            let (trouble, rounds) = lock.withLock { (self.trouble, self.rounds) }
            if let trouble { throw Failure("the block checker: \(trouble)") }
            return rounds >= goal ? () : nil
        }
    }

    /// Ends it.
    func stop() async throws {
        lock.withLock { stopping = true }
        try await eventually("the block checker ends", seconds: 90) { () async throws -> Void? in
            ended.wait(timeout: .now()) == .success ? () : nil
        }
        if let trouble = lock.withLock({ trouble }) {
            throw Failure("the block checker: \(trouble)")
        }
    }
}
