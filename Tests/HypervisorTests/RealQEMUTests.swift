import CLinux
import Foundation
import Hypervisor
import Model
import Testing

/// A real QEMU with a monitor of ours and no guest, ended with the object.
final class RealQEMU {
    let directory: String
    let process = Process()
    var socket: String { "\(directory)/qmp.sock" }

    init(_ arguments: String...) throws {
        directory = NSTemporaryDirectory() + "ftvm-qemu-\(UUID().uuidString.prefix(8))"
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: true)
        process.executableURL = URL(fileURLWithPath: "/usr/bin/qemu-system-x86_64")
        process.arguments =
            [
                "-M", "pc", "-m", "64", "-display", "none", "-nodefaults", "-S",
                "-qmp", "unix:\(directory)/qmp.sock,server=on,wait=off",
            ] + arguments
        process.standardError = FileHandle.nullDevice
        try process.run()
    }

    deinit {
        kill()
        try? FileManager.default.removeItem(atPath: directory)
    }

    func kill() {
        if process.isRunning { Glibc.kill(process.processIdentifier, SIGKILL) }
        process.waitUntilExit()
    }

    /// A connection; QEMU may not listen yet, so a refusal is tried again.
    func connect(timeoutMilliseconds: Int = 20_000) throws -> QMPConnection {
        let deadline = MonotonicDeadline(millisecondsFromNow: timeoutMilliseconds)
        while true {
            do {
                return try QMPConnection(
                    path: socket, label: "demo",
                    timeoutMilliseconds: deadline.remainingMilliseconds)
            } catch let error as FtvmError where error.code == .unavailable {
                guard !deadline.hasPassed, process.isRunning else { throw error }
                Thread.sleep(forTimeInterval: 0.01)
            }
        }
    }

    /// What /proc says that a file descriptor or mapping is; empty when QEMU is gone.
    var maps: String {
        let path = "/proc/\(process.processIdentifier)/maps"
        return (try? String(decoding: Data(contentsOf: URL(fileURLWithPath: path)), as: UTF8.self))
            ?? ""
    }
}

@Suite(.serialized) struct RealQEMUTests {
    @Test func runsAndStops() throws {
        let qemu = try RealQEMU()
        let monitor = try qemu.connect()
        #expect(try monitor.status() == QEMURunState(status: "prelaunch", running: false))
        try monitor.cont()
        #expect(try monitor.status().running)
        try monitor.stop()
        #expect(try monitor.status() == QEMURunState(status: "paused", running: false))
        let events = try monitor.takeEvents().map(\.name)
        #expect(events.first == "RESUME")
        #expect(events.last == "STOP")
        #expect(try monitor.version() >= QEMUVersion(major: 7, minor: 2, micro: 0))
        #expect(try monitor.humanMonitorCommand("info status").contains("paused"))
        let refused = #expect(throws: FtvmError.self) { try monitor.execute("no-such-command") }
        #expect(refused?.code == .unsupported)
    }

    @Test func ramBlocksHaveTheirTrueAddresses() throws {
        let qemu = try RealQEMU()
        let monitor = try qemu.connect()
        let blocks = try monitor.ramBlocksWithAddresses()
        let main = try #require(blocks.first { $0.name == "pc.ram" })
        #expect(main.totalBytes == 64 << 20)
        let address = try #require(main.hostAddress)
        // The BIOS's reset vector, ten bytes from the end of its ROM: a far jump.
        let bios = try #require(blocks.first { $0.name == "pc.bios" }?.hostAddress)
        let memory = try FileHandle(
            forReadingFrom: URL(fileURLWithPath: "/proc/\(qemu.process.processIdentifier)/mem"))
        try memory.seek(toOffset: bios + (256 << 10) - 16)
        #expect(try memory.read(upToCount: 1) == Data([0xEA]))
        // The main memory is one mapping of its own size at least.
        let ranges = qemu.maps.split(separator: "\n").compactMap { line -> Range<UInt64>? in
            let bounds = line.prefix { $0 != " " }.split(separator: "-")
            guard let start = UInt64(bounds[0], radix: 16), let end = UInt64(bounds[1], radix: 16)
            else { return nil }
            return start..<end
        }
        #expect(
            ranges.contains {
                $0.lowerBound <= address && $0.upperBound >= address + (64 << 20)
            })
        #expect(try monitor.hostAddress(ofGuestAddress: 0)?.host == address)
        #expect(try monitor.hostAddress(ofGuestAddress: 1 << 40) == nil)
    }

    @Test(arguments: [false, true])
    func savedStateLoadsIntoAWaitingQEMU(throughDescriptorSet: Bool) throws {
        let primary = try RealQEMU()
        let path = "\(primary.directory)/state"
        let monitor = try primary.connect()
        try monitor.cont()
        try monitor.stop()
        if throughDescriptorSet {
            let file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0o600)
            defer { close(file) }
            #expect(try monitor.addDescriptor(file, toSet: 1) >= 0)
            // Every save begins where the descriptor stands, which both processes share.
            for _ in 0..<3 {
                lseek(file, 0, SEEK_SET)
                try monitor.saveDeviceState(path: "/dev/fdset/1")
            }
            try monitor.removeDescriptorSet(1)
        } else {
            try monitor.saveDeviceState(path: path)
        }
        let size = try FileManager.default.attributesOfItem(atPath: path)[.size] as? Int ?? 0
        #expect(size > 4096)
        try load(path)
    }

    private func load(_ path: String) throws {
        let secondary = try RealQEMU(
            "-incoming", "defer", "-global", "migration.send-configuration=off")
        let waiting = try secondary.connect()
        #expect(try waiting.status().status == "inmigrate")
        let file = open(path, O_RDONLY | O_CLOEXEC)
        try waiting.giveDescriptor(file, name: "state")
        close(file)
        try waiting.loadIncoming(uri: "fd:state", timeoutMilliseconds: 20_000)
        #expect(try waiting.status() == QEMURunState(status: "paused", running: false))
        try waiting.cont()
        #expect(try waiting.status().running)
    }

    @Test func aDamagedStateIsAnError() throws {
        let secondary = try RealQEMU(
            "-incoming", "defer", "-global", "migration.send-configuration=off")
        let waiting = try secondary.connect()
        let path = "\(secondary.directory)/state"
        try Data(repeating: 0x5A, count: 10_000).write(to: URL(fileURLWithPath: path))
        let file = open(path, O_RDONLY | O_CLOEXEC)
        defer { close(file) }
        try waiting.giveDescriptor(file, name: "state")
        let error = #expect(throws: FtvmError.self) {
            try waiting.loadIncoming(uri: "fd:state", timeoutMilliseconds: 20_000)
        }
        // QEMU 7.2 ends over it; later ones may stay and say why.
        #expect(error?.code == .unavailable || error?.code == .failedPrecondition)
    }

    @Test func descriptorsAreGivenAndClosed() throws {
        let qemu = try RealQEMU()
        let monitor = try qemu.connect()
        let file = open("/dev/null", O_RDONLY | O_CLOEXEC)
        defer { close(file) }
        try monitor.giveDescriptor(file, name: "a")
        try monitor.giveDescriptor(file, name: "a")
        try monitor.closeDescriptor(name: "a")
        #expect(throws: FtvmError.self) { try monitor.closeDescriptor(name: "a") }
    }

    @Test func theEndOfQEMUIsSeen() throws {
        let qemu = try RealQEMU()
        let monitor = try qemu.connect()
        qemu.kill()
        let error = #expect(throws: FtvmError.self) { try monitor.stop() }
        #expect(error?.code == .unavailable)
        #expect(error?.message == "QEMU of demo is gone")
    }

    @Test func quitIsASuccess() throws {
        let qemu = try RealQEMU()
        try qemu.connect().quit()
        qemu.process.waitUntilExit()
        #expect(qemu.process.terminationStatus == 0)
    }

    @Test func aSecondClientTimesOut() throws {
        let qemu = try RealQEMU()
        let first = try qemu.connect()
        let error = #expect(throws: FtvmError.self) { try qemu.connect(timeoutMilliseconds: 200) }
        #expect(error?.code == .timedOut)
        #expect(try first.status().status == "prelaunch")
    }

    @Test func aFrozenQEMUTimesOutAndCatchesUp() throws {
        let qemu = try RealQEMU()
        let monitor = try qemu.connect()
        Glibc.kill(qemu.process.processIdentifier, SIGSTOP)
        let error = #expect(throws: FtvmError.self) { try monitor.cont(timeoutMilliseconds: 100) }
        #expect(error?.code == .timedOut)
        Glibc.kill(qemu.process.processIdentifier, SIGCONT)
        // The answer to `cont` comes first and must not be taken for this one's.
        #expect(try monitor.status().running)
    }
}
