import CLinux
import DiskLog
import Glibc
import Model

/// The part of ftvmd beside a real nbdkit: commits when it is asked to and from time to time, until
/// its input ends; then says what it has seen. There is no guest to stop: what has been answered at
/// that moment is what the commit covers.
struct Commits {
    private let log: DiskLogFile
    private let controlPath: String
    private var client: DiskServerClient?
    private var seals: [(seal: DiskSeal, at: UInt64)] = []
    private var costs: [UInt64] = []
    private var waits: [UInt64] = []

    static func create(_ path: String, dataBytes: UInt64, _ disks: [String]) throws {
        let descriptor = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw Trouble("cannot make \(path)") }
        defer { close(descriptor) }
        try DiskLogFile.create(
            in: descriptor,
            LogSpecification(
                uuid: [UInt8](repeating: 7, count: 16),
                disks: disks.map { text in
                    let parts = text.split(separator: "=").map(String.init)
                    guard parts.count == 2 else { throw Trouble("'\(text)' is not NAME=BYTES") }
                    return LoggedDisk(
                        name: parts[0], sizeBytes: try Crasher.number(parts[1]))
                }, dataBytes: dataBytes, generation: Generation(1)))
    }

    init(log path: String, control: String) throws {
        log = try DiskLogFile(path: path)
        controlPath = control
    }

    mutating func run(milliseconds: Int) throws {
        print("ready")
        fflush(nil)
        var lastCommit = ftvm_disk_now()
        while true {
            // A plugin that was killed comes back.
            if client == nil { client = try? DiskServerClient(path: controlPath) }
            var polled = [
                pollfd(fd: STDIN_FILENO, events: Int16(POLLIN), revents: 0),
                pollfd(fd: client?.descriptor ?? -1, events: Int16(POLLIN), revents: 0),
            ]
            let passed = Int((ftvm_disk_now() - lastCommit) / 1_000_000)
            _ = poll(&polled, 2, Int32(max(0, milliseconds - passed)))
            if polled[0].revents != 0 { break }
            if let client, (try? client.takeNotices()) == nil { self.client = nil }
            settle()
            let due = ftvm_disk_now() >= lastCommit + UInt64(milliseconds) * 1_000_000
            if due || log.wantsCommit {
                commit()
                lastCommit = ftvm_disk_now()
            }
        }
        commit()
        let deadline = ftvm_disk_now() + 60_000_000_000
        while log.applied < log.head, ftvm_disk_now() < deadline {
            client?.ring()
            usleep(1000)
        }
        settle()
        report()
    }

    private mutating func commit() {
        let start = ftvm_disk_now()
        let seal = log.seal()
        log.publishSealed(seal.position)
        client?.ring()
        costs.append(ftvm_disk_now() - start)
        if seal.durableAt > log.applied, seals.count < 100_000 { seals.append((seal, start)) }
    }

    /// Whose packets could leave now.
    private mutating func settle() {
        let count = seals.prefix { log.isDurable($0.seal) }.count
        let now = ftvm_disk_now()
        waits += seals.prefix(count).map { now - $0.at }
        seals.removeFirst(count)
    }

    private func report() {
        func describe(_ values: [UInt64]) -> String {
            let sorted = values.sorted()
            guard !sorted.isEmpty else { return "none" }
            let us = { (index: Int) in Double(sorted[index]) / 1000 }
            return "\(sorted.count) median \(us(sorted.count / 2)) "
                + "p99 \(us(sorted.count * 99 / 100)) worst \(us(sorted.count - 1)) us"
        }
        let status = log.status
        print("seals \(describe(costs))")
        print("durable \(describe(waits))")
        print(
            "applied \(status.appliedBytes) syncs \(status.syncs) "
                + "held-ms \(status.heldMilliseconds) left \(log.head - log.applied)")
    }
}
