import Foundation
import MemoryPool
import Model
import Testing
import segment_crasher

/// The executable `segment-crasher`, which SwiftPM builds beside the test bundle.
enum CrasherProcess {
    enum Ending: Equatable {
        case finished
        case killed
        case other(String)
    }

    static var executable: URL {
        let own =
            (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? ""
        return URL(fileURLWithPath: own).deletingLastPathComponent()
            .appendingPathComponent("segment-crasher")
    }

    static func process(_ arguments: [String], trace: String? = nil) -> Process {
        let process = Process()
        process.executableURL = executable
        process.arguments = arguments
        if let trace { process.environment = ["TRACE": trace] }
        return process
    }

    /// What the process says, if it ends well.
    static func output(_ arguments: [String]) throws -> String {
        let process = process(arguments)
        let output = Pipe()
        process.standardOutput = output
        try process.run()
        let bytes = output.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        guard process.terminationStatus == 0, process.terminationReason == .exit else {
            throw TestTrouble("\(arguments) ended with status \(process.terminationStatus)")
        }
        return String(decoding: bytes, as: UTF8.self).trimmingCharacters(in: .newlines)
    }

    static func run(_ arguments: [String], trace: String? = nil) throws -> Ending {
        let process = process(arguments, trace: trace)
        let errors = Pipe()
        process.standardError = errors
        try process.run()
        let message = String(
            decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        switch (process.terminationReason, process.terminationStatus) {
        case (.exit, 0): return .finished
        case (.uncaughtSignal, SIGKILL): return .killed
        default: return .other("status \(process.terminationStatus): \(message)")
        }
    }
}

/// Demands that RAM and device state are exactly those of the commit of an epoch.
func expectCommit(
    _ epoch: Epoch, of workload: Workload, in segment: Segment, _ comment: String,
    sourceLocation: SourceLocation = #_sourceLocation
) throws {
    let expected = workload.snapshots[Int(epoch.number)]
    let wrong = (0..<segment.pageCount).filter { page in
        !workload.matches(
            segment.ram + Int(page) * segment.pageSizeBytes, words: segment.pageSizeBytes / 8,
            page: page, version: expected[Int(page)])
    }
    #expect(
        wrong == [], "pages that are not of epoch \(epoch); \(comment)",
        sourceLocation: sourceLocation)
    let commit = try #require(try segment.latestCommit(), sourceLocation: sourceLocation)
    #expect(commit.epoch == epoch, "\(comment)", sourceLocation: sourceLocation)
    let state = try segment.withDeviceState(of: commit) { [UInt8]($0) }
    #expect(
        state == workload.deviceState(epoch), "device state; \(comment)",
        sourceLocation: sourceLocation)
}

/// Another process that holds a lock of a segment.
final class LockHolder {
    private let process: Process
    private let input = Pipe()

    init(_ home: TestPool, _ segment: String, _ byte: SegmentLockByte) throws {
        process = CrasherProcess.process([
            "hold", home.directory, home.pool.configuration.kind.rawValue, segment,
            "\(byte.rawValue)",
        ])
        let output = Pipe()
        process.standardOutput = output
        process.standardInput = input
        try process.run()
        let said = String(decoding: output.fileHandleForReading.availableData, as: UTF8.self)
        guard said == "locked\n" else { throw TestTrouble("the lock was not free: \(said)") }
    }

    func kill() {
        Foundation.kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
    }

    deinit { if process.isRunning { kill() } }
}
