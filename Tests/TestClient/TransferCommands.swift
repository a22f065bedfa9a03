import ArgumentParser
import Foundation
import GuestClients
import Synchronization

private let transferPort: UInt16 = 7780

struct DownloadCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "download",
        abstract: "Take a long stream over one connection and check every word of it.")
    @OptionGroup var common: CommonOptions
    @Option(help: "Bytes, a multiple of 8; 0: until the end comes.") var bytes: UInt64 = 0
    @Option(help: "Of the pattern.") var seed: UInt64 = 1
    @Option(help: "At most so many MiB a second; 0: as many as come.") var rate = 0
    @Flag(help: "Zeros, which are not checked: the speed of the network and not of the CPUs.")
    var raw = false

    func validate() throws {
        guard !raw || bytes > 0 else { throw ValidationError("--raw needs --bytes.") }
    }

    func run() throws {
        let transfer = Transfer(common, rate: rate)
        if raw {
            return try common.finish(
                transfer.run { guest in
                    try guest.send(Array("raw \(bytes)\n".utf8))
                    return try transfer.receiveRaw(guest, bytes: bytes)
                })
        }
        try common.finish(
            transfer.run { guest in
                try guest.send(Array("get \(seed) \(bytes)\n".utf8))
                return try transfer.receive(guest, seed: seed)
            })
    }
}

struct UploadCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "upload",
        abstract: "Send a long stream over one connection; the guest checks every word of it.")
    @OptionGroup var common: CommonOptions
    @Option(help: "Bytes, a multiple of 65536; 0: until the end comes.") var bytes: UInt64 = 0
    @Option(help: "Of the pattern.") var seed: UInt64 = 1
    @Option(help: "At most so many MiB a second; 0: as many as go.") var rate = 0

    func run() throws {
        let transfer = Transfer(common, rate: rate)
        try common.finish(
            transfer.run { guest in
                try guest.send(Array("put \(seed)\n".utf8))
                return try transfer.send(guest, seed: seed, bytes: bytes)
            })
    }
}

/// One stream, either way, in a thread of its own so that its progress can be told.
private struct Transfer: Sendable {
    let common: CommonOptions
    let rate: Int
    let ending: Ending
    /// In blocks.
    let tally = Tally(1)

    init(_ common: CommonOptions, rate: Int) {
        self.common = common
        self.rate = rate
        ending = common.ending()
    }

    func run(_ body: @escaping @Sendable (Connection) throws -> TransferReport) -> TransferReport {
        let result = Mutex(TransferReport())
        let workers = Workers()
        let began = monotonicNanoseconds()
        workers.start {
            var report = TransferReport()
            do {
                let guest = try Connection(
                    common.address, transferPort, patience: common.patience)
                report = try body(guest)
            } catch {
                report.violations.append("the connection was lost: \(error)")
                report.violationCount += 1
            }
            report.seconds = Double(monotonicNanoseconds() - began) / 1e9
            result.withLock { $0 = report }
        }
        ending.wait(for: workers) { tally.progress }
        return result.withLock { $0 }
    }

    /// The guest's stream, until it says that it is done.
    func receive(_ guest: Connection, seed: UInt64) throws -> TransferReport {
        var report = TransferReport()
        var findings = Findings()
        var pattern = Pattern(seed: seed)
        var checksum: UInt64 = 0
        var clock = Clock(rate)
        var block = [UInt64](repeating: 0, count: Pattern.blockBytes / 8)
        var ended = false
        while true {
            let length = try Self.length(guest)
            if length == 0 { break }
            guard length <= Pattern.blockBytes, length % 8 == 0 else {
                throw ConnectionLost(description: "a block of \(length) bytes")
            }
            try block.withUnsafeMutableBytes { try guest.fill(.init(rebasing: $0[..<length])) }
            for index in 0..<(length / 8) {
                let word = UInt64(bigEndian: block[index])
                checksum = Pattern.add(word, to: checksum)
                if word != pattern.next() {
                    findings.add("the word at byte \(report.bytes + UInt64(index) * 8) is wrong")
                }
            }
            report.bytes += UInt64(length)
            tally.add(0)
            clock.passed(length, &report.gaps)
            if ending.hasCome, !ended {
                guest.endOwnSide()
                ended = true
            }
        }
        try block.withUnsafeMutableBytes { try guest.fill(.init(rebasing: $0[..<16])) }
        if UInt64(bigEndian: block[0]) != report.bytes {
            findings.add(
                "the guest sent \(UInt64(bigEndian: block[0])) bytes, \(report.bytes) came")
        }
        report.checksum = Self.hexadecimal(checksum)
        report.expectedChecksum = Self.hexadecimal(UInt64(bigEndian: block[1]))
        return Self.judged(report, findings, own: Self.hexadecimal(pattern.checksum))
    }

    /// So many bytes of whatever.
    func receiveRaw(_ guest: Connection, bytes: UInt64) throws -> TransferReport {
        var report = TransferReport()
        var block = [UInt8](repeating: 0, count: Pattern.blockBytes)
        while report.bytes < bytes {
            let length = Int(min(UInt64(block.count), bytes - report.bytes))
            try block.withUnsafeMutableBytes { try guest.fill(.init(rebasing: $0[..<length])) }
            report.bytes += UInt64(length)
            tally.add(0)
        }
        return report
    }

    func send(_ guest: Connection, seed: UInt64, bytes: UInt64) throws -> TransferReport {
        var report = TransferReport()
        var findings = Findings()
        var pattern = Pattern(seed: seed)
        var clock = Clock(rate)
        // The length lies directly before the words.
        var block = [UInt64](repeating: 0, count: 1 + Pattern.blockBytes / 8)
        while !ending.hasCome && (bytes == 0 || report.bytes < bytes) {
            for index in 1..<block.count { block[index] = pattern.next().bigEndian }
            block[0] = UInt64(Pattern.blockBytes).bigEndian
            try block.withUnsafeBytes { try guest.send(.init(rebasing: $0[4...])) }
            report.bytes += UInt64(Pattern.blockBytes)
            tally.add(0)
            clock.passed(Pattern.blockBytes, &report.gaps)
        }
        try guest.send([0, 0, 0, 0])
        let answer = try guest.line().split(separator: " ").map(String.init)
        guard answer.count == 3 else {
            throw ConnectionLost(description: "the guest's account is \(answer)")
        }
        if answer[0] != "\(report.bytes)" {
            findings.add("\(report.bytes) bytes were sent, \(answer[0]) came")
        }
        if answer[2] != "0" { findings.add("\(answer[2]) words arrived wrong") }
        report.checksum = answer[1]
        report.expectedChecksum = Self.hexadecimal(pattern.checksum)
        return Self.judged(report, findings, own: report.expectedChecksum)
    }

    private static func judged(
        _ report: TransferReport, _ found: Findings, own: String
    ) -> TransferReport {
        var report = report
        var findings = found
        if report.checksum != report.expectedChecksum || report.checksum != own {
            findings.add(
                "the checksum is \(report.checksum), not \(report.expectedChecksum) (\(own))")
        }
        report.violations = findings.violations
        report.violationCount = findings.count
        return report
    }

    private static func length(_ guest: Connection) throws -> Int {
        var length: UInt32 = 0
        try withUnsafeMutableBytes(of: &length) { try guest.fill($0) }
        return Int(UInt32(bigEndian: length))
    }

    private static func hexadecimal(_ value: UInt64) -> String {
        let digits = String(value, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }
}

/// Keeps a rate, and notes when nothing came for long.
private struct Clock {
    private let nanosecondsPerByte: Double
    private var due: Double
    private var last = monotonicNanoseconds()

    init(_ mebibytesPerSecond: Int) {
        nanosecondsPerByte = mebibytesPerSecond == 0 ? 0 : 1e9 / Double(mebibytesPerSecond << 20)
        due = Double(last)
    }

    mutating func passed(_ bytes: Int, _ gaps: inout [Gap]) {
        let now = monotonicNanoseconds()
        if now - last > CounterReport.gapThreshold {
            gaps.append(Gap(connection: 0, from: last, to: now))
        }
        // Lost time is not made up for.
        due = max(due + Double(bytes) * nanosecondsPerByte, Double(now) - 1e7)
        if due > Double(now) { usleep(UInt32((due - Double(now)) / 1_000)) }
        last = monotonicNanoseconds()
    }
}
