import BenchmarkSupport
import Foundation
import Glibc
import Hypervisor
import Model

/// The QEMU that everything but the lab is measured with.
struct BenchQEMU {
    let program: String
    let arguments: [String]

    static let machine = BenchQEMU(program: "/usr/bin/qemu-system-x86_64", arguments: [])

    /// FTVM_BENCH_QEMU: a directory with another QEMU, as `Scripts/newer-qemu` unpacks it; empty:
    /// the machine's.
    static let chosen: BenchQEMU = {
        let root = ProcessInfo.processInfo.environment["FTVM_BENCH_QEMU"] ?? ""
        guard !root.isEmpty else { return machine }
        return BenchQEMU(
            program: root + "/usr/bin/qemu-system-x86_64",
            arguments: ["-L", root + "/usr/share/qemu", "-L", "/usr/share/seabios"])
    }()

    static let imageDirectory =
        ProcessInfo.processInfo.environment["FTVM_PEER_CACHE"] ?? "/var/cache/ftvm/guest-peers"
}

/// A QEMU with the guest of this benchmark, without libvirt: one vCPU, a virtio network card on
/// QEMU's own network, through which the benchmark gives its orders.
final class BenchGuest {
    struct Shape {
        var memoryMiB = 512
        var qemu = BenchQEMU.chosen
        /// The guest's memory is this file, shared.
        var memoryFile: String?
        /// Waits for a migration.
        var isIncoming = false
    }

    let port: UInt16
    let monitor: QMPConnection
    /// For what QEMU tells of its own accord.
    let events: QMPConnection
    let qemu: QEMUProcess
    private let process = Process()
    private let errorPath: String
    private let consolePath: String

    init(_ shape: Shape, in directory: URL, name: String) throws {
        port = try Self.freePort()
        errorPath = directory.appendingPathComponent("\(name).stderr").path
        let sockets = ["m", "e"].map { directory.appendingPathComponent("\(name).\($0)").path }
        consolePath = sockets[0] + ".console"
        process.executableURL = URL(fileURLWithPath: shape.qemu.program)
        process.arguments = Self.arguments(shape, port: port, sockets: sockets)
        guard FileManager.default.createFile(atPath: errorPath, contents: nil) else {
            throw FtvmError(.unavailable, "cannot write \(errorPath)")
        }
        process.standardError = FileHandle(forWritingAtPath: errorPath)
        process.standardOutput = FileHandle.nullDevice
        process.standardInput = FileHandle.nullDevice
        try process.run()
        guard let started = QEMUProcess(processID: process.processIdentifier) else {
            throw FtvmError(.unavailable, "QEMU ended at once", cause: Self.text(errorPath))
        }
        qemu = started
        Leftovers.add(pid: started.processID)
        do {
            monitor = try Self.connect(sockets[0], name, started)
            events = try Self.connect(sockets[1], name, started)
        } catch {
            process.terminate()
            throw FtvmError(
                .unavailable, "QEMU has no monitor", cause: "\(error) " + Self.text(errorPath))
        }
    }

    deinit { kill() }

    private static func arguments(_ shape: Shape, port: UInt16, sockets: [String]) -> [String] {
        let images = BenchQEMU.imageDirectory
        var memory = ["-M", "pc"]
        if let file = shape.memoryFile {
            memory = [
                "-object",
                "memory-backend-file,id=pc.ram,mem-path=\(file),share=on,size=\(shape.memoryMiB)M",
                "-M", "pc,memory-backend=pc.ram",
            ]
        }
        return shape.qemu.arguments + memory + [
            "-accel", "tcg,thread=multi", "-m", "\(shape.memoryMiB)", "-smp", "1", "-nodefaults",
            "-display", "none", "-kernel", images + "/vmlinuz", "-initrd", images + "/initrd",
            "-append",
            "console=ttyS0 quiet panic=-1 rdinit=/bench-init ftvm.ip=10.0.2.15/24 ftvm.check_mib=1 "
                + "ftvm.dirty_pages_per_second=0 ftvm.verify_pages_per_second=0",
            "-serial", "file:\(sockets[0]).console", "-netdev",
            "user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:\(port)-10.0.2.15:7790",
            "-device", "virtio-net-pci,netdev=net0,romfile=",
            "-qmp", "unix:\(sockets[0]),server=on,wait=off",
            "-qmp", "unix:\(sockets[1]),server=on,wait=off",
        ] + (shape.isIncoming ? ["-incoming", "defer", "-S"] : [])
    }

    /// Of the loopback; somebody else may take it until QEMU does, and QEMU says so then.
    private static func freePort() throws -> UInt16 {
        let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        defer { close(descriptor) }
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        var size = socklen_t(MemoryLayout<sockaddr_in>.size)
        let bound = withUnsafeMutablePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, size) == 0 && getsockname(descriptor, $0, &size) == 0
            }
        }
        guard bound else {
            throw FtvmError(.resourceExhausted, "no port is free on the loopback")
        }
        return UInt16(bigEndian: address.sin_port)
    }

    private static func connect(
        _ path: String, _ name: String, _ qemu: QEMUProcess
    ) throws -> QMPConnection {
        var limits = QMPConnection.Limits()
        limits.events = 100_000
        let deadline = Date().addingTimeInterval(10)
        while true {
            do {
                return try QMPConnection(path: path, label: name, limits: limits)
            } catch let error as FtvmError
                where error.code == .unavailable && Date() < deadline && qemu.isRunning
            {
                usleep(2_000)
            }
        }
    }

    private static func text(_ path: String) -> String {
        (try? String(contentsOfFile: path, encoding: .utf8)) ?? ""
    }

    /// What QEMU has complained about.
    var complaints: String { String(Self.text(errorPath).suffix(600)) }

    /// The last of what the guest has printed.
    private var console: String { String(Self.text(consolePath).suffix(400)) }

    func waitForControl(seconds: Double = 30) throws -> GuestControl {
        do {
            return try GuestControl.first(port: port, within: seconds)
        } catch {
            throw FtvmError(
                .timedOut, "the guest does not answer",
                cause: "\(error) \(complaints) console: \(console)")
        }
    }

    /// SIGKILL; returns when it is gone.
    func kill() {
        guard process.isRunning else { return }
        Glibc.kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
        Leftovers.remove(pid: qemu.processID)
    }

    // MARK: - Monitor

    func command(
        _ name: String, _ arguments: String? = nil, descriptor: Int32? = nil,
        milliseconds: Int = 30_000
    ) throws {
        _ = try monitor.execute(
            name, arguments: arguments, descriptor: descriptor, timeoutMilliseconds: milliseconds)
    }

    func setCapabilities(_ names: String...) throws {
        let list = names.map { "{\"capability\":\"\($0)\",\"state\":true}" }
        try command(
            "migrate-set-capabilities", "{\"capabilities\":[\(list.joined(separator: ","))]}")
    }

    func migration() throws -> MonitorText.Migration {
        try monitor.execute(
            "query-migrate", arguments: nil, descriptor: nil, timeoutMilliseconds: 30_000
        ).decode(MonitorText.Migration.self)
    }

    /// Polls until the migration goes no further by itself.
    func awaitMigration(seconds: Double) throws -> MonitorText.Migration {
        let deadline = Date().addingTimeInterval(seconds)
        while Date() < deadline {
            let migration = try migration()
            if migration.hasEnded { return migration }
            usleep(1_000)
        }
        throw FtvmError(
            .timedOut, "the migration does not end", cause: "\(try migration()) \(complaints)")
    }

    /// Events so far, with their times on the wall clock.
    func takeEvents() throws -> [(name: String, seconds: Double)] {
        try events.takeEvents().compactMap { MonitorText.time(ofEvent: $0.json) }
    }
}
