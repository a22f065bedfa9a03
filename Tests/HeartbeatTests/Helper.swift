import Foundation
import Glibc
import Testing

/// A process of the test helper; killed at the latest when the test lets go of it.
final class Helper {
    private let process = Process()
    private let output = Pipe()
    private let input = Pipe()
    var pid: pid_t { process.processIdentifier }

    init(_ arguments: String...) throws {
        let directory = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
            .deletingLastPathComponent()
        process.executableURL = directory.appendingPathComponent("cluster-test-helper")
        process.arguments = arguments
        process.standardOutput = output
        process.standardInput = input
        try process.run()
    }

    /// The next output; empty when it has ended.
    func said() -> String {
        String(decoding: output.fileHandleForReading.availableData, as: UTF8.self)
    }

    /// Everything until it ends by itself.
    func sayAll() -> String {
        let text = String(
            decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        return text
    }

    func signal(_ number: CInt) { kill(pid, number) }

    /// SIGKILL, and wait until the kernel has taken it apart.
    func end() {
        signal(SIGKILL)
        process.waitUntilExit()
    }

    deinit { if process.isRunning { end() } }
}

/// A directory of its own for each test, on tmpfs as a pool is.
final class Directory: Sendable {
    let path: String
    init(under parent: String = "/dev/shm") throws {
        path = "\(parent)/ftvm-test-\(UUID().uuidString)"
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: false)
    }
    deinit { try? FileManager.default.removeItem(atPath: path) }
}
