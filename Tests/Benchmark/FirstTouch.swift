import CLinux
import Foundation
import Glibc
import GuestSupport
import Hypervisor
import Injection
import MemoryPool
import Model
import Protection

/// The process whose first touches are timed: private memory, into which the segment is mapped as into a QEMU.
enum TouchChild {
    static let bytes = 64 << 20

    static func run() {
        guard
            let memory = mmap(
                nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
            memory != MAP_FAILED
        else { exit(1) }
        say("\(UInt(bitPattern: memory))")
        let pages = bytes / 4096
        while let line = readLine() {
            // A step that visits every page once: neighbours with 1, never neighbours with a large odd one.
            let step = line == "ordered" ? 1 : 7919
            var page = 0
            let began = MonotonicClock.nowNanoseconds()
            for _ in 0..<pages {
                (memory + page * 4096).storeBytes(of: 1, as: UInt8.self)
                page = (page + step) % pages
            }
            say("\(Double(MonotonicClock.nowNanoseconds() - began) / Double(pages) / 1_000)")
        }
    }

    private static func say(_ text: String) {
        FileHandle.standardOutput.write(Data((text + "\n").utf8))
    }
}

/// Microseconds that the first write to a 4-KiB page takes with the undo log on, as the writer sees it.
struct FirstTouchBenchmark {
    private static let rounds = 9

    func run(_ report: BenchmarkReport) throws {
        let workspace = try Workspace(pool: .tmpfs)
        defer { workspace.remove() }
        let segment = try workspace.pool.createSegment(
            SegmentSpecification(
                name: "touch", uuid: "00000000-0000-0000-0000-000000000002",
                memoryBytes: UInt64(TouchChild.bytes), undoLogBytes: UInt64(TouchChild.bytes)))
        try segment.takeManagerLock()
        let child = try Child()
        defer { child.end() }
        let memory = GuestMemory(
            hostAddress: child.address, lengthBytes: UInt64(TouchChild.bytes))
        guard let process = QEMUProcess(processID: child.pid) else { return }
        let device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC)
        defer { close(device) }
        let results = try GuestQEMU.injector.run(
            in: process,
            [
                .mapFile(
                    descriptor: segment.ramDescriptor, address: child.address,
                    length: memory.lengthBytes, writable: true, offset: 0),
                .userfaultfd(device: device),
            ])
        let uffd = try process.duplicate(descriptor: Int32(results[1]))
        defer { close(uffd) }
        guard ftvm_uffd_api(uffd, ftvm_uffd_features()) == 0 else { return }
        let tracker = try PageTracker(
            process: process, memory: memory, uffd: uffd, pageSizeBytes: 4096,
            purpose: .undoLog(segment))
        try tracker.protectAll()
        try tracker.start(epoch: Epoch(1))
        defer { tracker.stop() }
        var epoch = Epoch(1)
        for order in ["scattered", "ordered"] {
            var figures: [Double] = []
            for _ in 0..<Self.rounds {
                figures.append(try child.touch(order))
                // A commit's protection, and the log's space again.
                try tracker.withLock {
                    _ = try tracker.protectTouchedLocked()
                    _ = try segment.publish(
                        epoch: epoch, generation: segment.position.generation, stateLength: 0)
                    epoch = epoch.next
                    tracker.beginEpochLocked(epoch)
                }
            }
            report.add(
                "first touch of a 4-KiB page, \(order)", Distribution(figures).text("us"),
                promise: order == "scattered" ? "under 12 us" : "")
        }
    }

    private final class Child {
        private let process = Process()
        private let input = Pipe()
        private let output = Pipe()
        let address: UInt64
        var pid: pid_t { process.processIdentifier }

        init() throws {
            process.executableURL = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
            process.arguments = ["--touch"]
            process.standardInput = input
            process.standardOutput = output
            try process.run()
            address = UInt64(Self.line(output)) ?? 0
        }

        func touch(_ order: String) throws -> Double {
            input.fileHandleForWriting.write(Data((order + "\n").utf8))
            return Double(Self.line(output)) ?? .nan
        }

        func end() {
            try? input.fileHandleForWriting.close()
            process.waitUntilExit()
        }

        private static func line(_ pipe: Pipe) -> String {
            var text = ""
            while let byte = try? pipe.fileHandleForReading.read(upToCount: 1),
                let first = byte.first,
                first != UInt8(ascii: "\n")
            {
                text.unicodeScalars.append(Unicode.Scalar(first))
            }
            return text
        }
    }
}
