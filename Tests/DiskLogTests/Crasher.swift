import Foundation
import Testing

/// The executable `disk-crasher`, which SwiftPM builds beside the test bundle, and a directory in
/// shared memory for it to work in.
final class Crasher {
    let directory: String

    init() throws {
        directory = "/dev/shm/ftvm-disk-test-\(UUID().uuidString)"
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: false)
    }

    deinit { try? FileManager.default.removeItem(atPath: directory) }

    static var products: URL {
        let own =
            (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? ""
        return URL(fileURLWithPath: own).deletingLastPathComponent()
    }

    struct Ending {
        var status: Int32
        var output: String
    }

    static func process(_ arguments: [String]) -> Process {
        let process = Process()
        process.executableURL = products.appendingPathComponent("disk-crasher")
        process.arguments = arguments
        return process
    }

    /// Runs it to its end. `VERB DIRECTORY ARGUMENTS`.
    func run(_ verb: String, _ arguments: [String]) throws -> Ending {
        try Tool.run(
            Crasher.products.appendingPathComponent("disk-crasher").path,
            [verb, directory] + arguments)
    }
}

enum Tool {
    /// Runs a program; what it says on either channel.
    static func run(_ path: String, _ arguments: [String]) throws -> Crasher.Ending {
        let process = Process()
        let output = Pipe()
        process.executableURL = URL(fileURLWithPath: path)
        process.arguments = arguments
        process.standardOutput = output
        process.standardError = output
        try process.run()
        let bytes = output.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        return Crasher.Ending(
            status: process.terminationReason == .exit
                ? process.terminationStatus : -process.terminationStatus,
            output: String(decoding: bytes, as: UTF8.self))
    }

    static func exists(_ name: String) -> Bool { access("/usr/bin/\(name)", X_OK) == 0 }
}
