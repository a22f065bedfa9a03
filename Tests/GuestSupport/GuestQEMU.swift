import Foundation
import Glibc
import Hypervisor
import MemoryPool
import Model
import Protection

/// A real QEMU with the test guest (Scripts/guest-image), without libvirt and without a network: a checker in
/// the guest rewrites and verifies memory all the time and reports on the serial console.
package final class GuestQEMU {
    package struct Shape: Sendable, CustomStringConvertible {
        package var memoryMiB = 256
        package var vcpus = 1
        package var dirtyPagesPerSecond = 20_000
        package var checkMiB = 48
        /// On the guest's kernel command line.
        package var kernelArguments: [String] = []
        /// For QEMU.
        package var arguments: [String] = []
        /// Path of a network namespace for QEMU to be in; nil: the test's own.
        package var networkNamespace: String?
        package init() {}
        package var description: String { "\(memoryMiB) MiB, \(vcpus) vCPU" }
    }

    package let directory: URL
    package let process: Process
    package let monitor: QMPConnection
    package let serialPath: String
    /// Another monitor's socket, for what a user does behind our back.
    package let userSocketPath: String
    package let qemu: QEMUProcess

    package static var guestDirectory: String {
        ProcessInfo.processInfo.environment["FTVM_CACHE"] ?? "/var/cache/ftvm/guest"
    }

    /// FTVM_PRODUCTS: where the build puts executables.
    package static var injector: InjectorProcess {
        let products =
            ProcessInfo.processInfo.environment["FTVM_PRODUCTS"]
            ?? FileManager.default.currentDirectoryPath + "/.build/release"
        return InjectorProcess(path: products + "/ftvm-inject")
    }

    /// - Parameter waiting: started with `-incoming defer`, as a secondary.
    package init(_ shape: Shape, in directory: URL, number: Int, waiting: Bool = false) throws {
        self.directory = directory
        let socket = directory.appendingPathComponent("q\(number).sock").path
        userSocketPath = directory.appendingPathComponent("u\(number).sock").path
        serialPath = directory.appendingPathComponent("serial\(number).log").path
        let guest = Self.guestDirectory
        process = Process()
        let program = "/usr/bin/qemu-system-x86_64"
        process.executableURL = URL(
            fileURLWithPath: shape.networkNamespace == nil ? program : "/usr/bin/nsenter")
        process.arguments =
            (shape.networkNamespace.map { ["--net=" + $0, program] } ?? []) + [
                "-M", "pc", "-accel", "tcg,thread=multi", "-m", "\(shape.memoryMiB)",
                "-smp", "\(shape.vcpus)", "-nodefaults", "-display", "none",
                "-kernel", guest + "/vmlinuz", "-initrd", guest + "/initrd",
                "-append",
                "console=ttyS0 quiet ftvm.check_mib=\(shape.checkMiB) "
                    + "ftvm.dirty_pages_per_second=\(shape.dirtyPagesPerSecond) "
                    + shape.kernelArguments.joined(separator: " "),
                "-serial", "file:" + serialPath, "-device", "virtio-rng-pci",
                "-qmp", "unix:\(socket),server=on,wait=off",
                "-qmp", "unix:\(userSocketPath),server=on,wait=off",
            ] + shape.arguments + (waiting ? ["-incoming", "defer", "-S"] : [])
        process.standardError = FileHandle(
            forWritingAtPath: "/dev/null")
        try process.run()
        guard let started = QEMUProcess(processID: process.processIdentifier) else {
            throw FtvmError(.unavailable, "the test's QEMU ended at once")
        }
        qemu = started
        let deadline = Date().addingTimeInterval(10)
        // The file is there before anybody listens at it.
        var connected: QMPConnection?
        while connected == nil {
            do {
                connected = try QMPConnection(path: socket, label: "test guest \(number)")
            } catch let error as FtvmError where error.code == .unavailable && Date() < deadline {
                usleep(2_000)
            }
        }
        guard let connected else { throw FtvmError(.unavailable, "no monitor at \(socket)") }
        monitor = connected
    }

    deinit { kill() }

    /// SIGKILL, and gone when this returns.
    package func kill() {
        guard process.isRunning else { return }
        Glibc.kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
    }

    package struct Report: Decodable {
        package struct Checker: Decodable {
            package let bad: UInt64
            package let rounds: UInt64
            package let writes: UInt64
        }
        package let uptimeSeconds: Double
        package let counter: UInt64
        package let checker: Checker
        enum CodingKeys: String, CodingKey {
            case uptimeSeconds = "uptime_seconds"
            case counter, checker
        }
    }

    /// The guest's last whole report on its console.
    package func lastReport() -> Report? {
        guard let text = try? String(contentsOfFile: serialPath, encoding: .utf8) else {
            return nil
        }
        for line in text.split(whereSeparator: \.isNewline).reversed() {
            guard let brace = line.firstIndex(of: "{") else { continue }
            if let report = try? JSONDecoder().decode(Report.self, from: Data(line[brace...].utf8))
            {
                return report
            }
        }
        return nil
    }

    package func waitForReport(seconds: Double = 60) throws -> Report {
        let deadline = Date().addingTimeInterval(seconds)
        while Date() < deadline {
            if let report = lastReport() { return report }
            usleep(50_000)
        }
        let text = (try? String(contentsOfFile: serialPath, encoding: .utf8)) ?? "no console"
        throw FtvmError(.timedOut, "the guest did not report", cause: String(text.suffix(2_000)))
    }
}
