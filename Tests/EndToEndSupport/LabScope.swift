import Foundation
import Synchronization
import Testing

/// Gives a suite a lab of its own, which is removed after the last test however that ends.
package struct LabScope: SuiteTrait, TestScoping {
    package let shape: LabShape

    package init(shape: LabShape) { self.shape = shape }

    package func provideScope(
        for test: Test, testCase: Test.Case?, performing function: @Sendable () async throws -> Void
    ) async throws {
        let lab = try TestLab(shape)
        try await lab.up()
        let outcome: Result<Void, any Error>
        do {
            try await TestLab.$current.withValue(lab) { try await function() }
            outcome = .success(())
        } catch {
            outcome = .failure(error)
        }
        try await lab.down()
        try outcome.get()
    }
}

/// Keeps the logs of a test that fails, says where, and has the next test begin with a fresh lab.
package struct KeepingLogs: SuiteTrait, TestTrait, TestScoping {
    package init() {}

    package var isRecursive: Bool { true }

    private final class Failed: Sendable {
        private let flag = Mutex(false)
        func note() { flag.withLock { $0 = true } }
        var value: Bool { flag.withLock { $0 } }
    }

    package func provideScope(
        for test: Test, testCase: Test.Case?, performing function: @Sendable () async throws -> Void
    ) async throws {
        guard let lab = TestLab.current else { return try await function() }
        let began = Date()
        let directory = Artifacts.directory(test: test.name)
        let comment = Comment(rawValue: "logs are in \(directory), FTVM_TEST_SEED=\(Settings.seed)")
        let failed = Failed()
        let noticing = IssueHandlingTrait.compactMapIssues { issue in
            failed.note()
            var issue = issue
            issue.comments.append(comment)
            return issue
        }
        do {
            try await noticing.provideScope(for: test, testCase: testCase) {
                try await lab.makeReady()
                try await function()
            }
        } catch is ExpectationFailedError {
            // It has been recorded as an issue.
            failed.note()
        } catch {
            failed.note()
            Issue.record(error, comment)
        }
        if failed.value {
            await Artifacts.keep(lab, in: directory, since: began)
            lab.needsRenewal = true
        }
    }
}

extension Trait where Self == LabScope {
    package static func lab(_ shape: LabShape) -> LabScope { LabScope(shape: shape) }
}

extension Trait where Self == KeepingLogs {
    package static var keepingLogs: KeepingLogs { KeepingLogs() }
}
