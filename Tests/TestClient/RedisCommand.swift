import ArgumentParser
import Foundation
import GuestClients
import Synchronization

struct RedisCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "redis",
        abstract: "Write to a redis server, note what it has acknowledged, and look for it.",
        discussion: """
            Each connection raises a counter of its own and the key 'shared', and sets keys in turn. At the end \
            every acknowledged write is read again over a new connection.
            """)
    @OptionGroup var common: CommonOptions
    @Option(help: "Connections.") var connections = 4
    @Option(help: "Keys that each connection sets in turn.") var keys = 2_000
    @Option var port: UInt16 = 6379

    func validate() throws {
        guard (1...32).contains(connections), (1...100_000).contains(keys) else {
            throw ValidationError("--connections 1 to 32, --keys 1 to 100000.")
        }
    }

    func run() throws {
        let ending = common.ending()
        let results = Mutex<[RedisWriter]>([])
        let tally = Tally(connections)
        let workers = Workers()
        for number in 0..<connections {
            workers.start { [self] in
                var writer = RedisWriter(connection: number, keys: keys)
                writer.run(common, port, ending, tally)
                let done = writer
                results.withLock { $0.append(done) }
            }
        }
        ending.wait(for: workers) { tally.progress }
        try common.finish(report(results.withLock { $0 }))
    }

    private func report(_ writers: [RedisWriter]) -> RedisReport {
        var report = RedisReport()
        var findings = Findings()
        for writer in writers {
            findings.add(writer.findings)
            report.acknowledgedWrites += writer.acknowledged
            report.increments += Int(writer.increments)
            if writer.lost { report.lostConnections += 1 }
        }
        report.latency = LatencyReport(microseconds: writers.flatMap(\.latencies))
        if report.lostConnections == 0 {
            findings.add(NumberJudge.judgeTogether(writers.map(\.shared)))
        }
        report.shared = Int(writers.flatMap(\.shared).max() ?? 0)
        do {
            let guest = try Connection(common.address, port, patience: common.patience)
            for writer in writers { report.verifiedKeys += try writer.verify(guest, &findings) }
        } catch {
            findings.add("what was written cannot be read: \(error)")
        }
        report.violations = findings.violations
        report.violationCount = findings.count
        return report
    }
}

/// One connection's writes, and what it knows to have been acknowledged.
private struct RedisWriter: Sendable {
    let connection: Int
    let keys: Int
    var findings = Findings()
    var acknowledged = 0
    var increments: UInt64 = 0
    var shared: [UInt64] = []
    /// The last acknowledged value of each key.
    var values: [Int: String] = [:]
    var latencies: [UInt32] = []
    var lost = false
    /// A key whose last write was not acknowledged may have either value.
    private var open: Int?

    init(connection: Int, keys: Int) {
        self.connection = connection
        self.keys = keys
    }

    mutating func run(_ options: CommonOptions, _ port: UInt16, _ ending: Ending, _ tally: Tally) {
        do {
            let guest = try Connection(options.address, port, patience: options.patience)
            while !ending.hasCome {
                try round(guest)
                tally.add(connection)
            }
        } catch {
            lost = true
            findings.add("connection \(connection) was lost: \(error)")
        }
    }

    private mutating func round(_ guest: Connection) throws {
        let own = try ask(guest, ["INCR", "counter:\(connection)"])
        if own != ":\(increments + 1)" {
            findings.add("counter:\(connection) is \(own) after \(increments)")
        }
        increments = UInt64(own.dropFirst()) ?? increments
        let together = try ask(guest, ["INCR", "shared"])
        if let number = UInt64(together.dropFirst()) {
            if let last = shared.last, number <= last {
                findings.add("shared is \(number) after \(last)")
            }
            shared.append(number)
        } else {
            findings.add("INCR shared is answered '\(together)'")
        }
        let key = Int(increments) % keys
        let value = "\(connection):\(increments)"
        open = key
        let answer = try ask(guest, ["SET", name(key), value])
        if answer != "+OK" { findings.add("SET is answered '\(answer)'") }
        open = nil
        values[key] = value
        acknowledged += 3
    }

    private func name(_ key: Int) -> String { "key:\(connection):\(key)" }

    private mutating func ask(_ guest: Connection, _ words: [String]) throws -> Substring {
        let asked = monotonicNanoseconds()
        try guest.send(Self.encoded(words))
        let answer = try guest.line()
        latencies.append(UInt32(clamping: (monotonicNanoseconds() - asked) / 1_000))
        return answer
    }

    private static func encoded(_ words: [String]) -> [UInt8] {
        var text = "*\(words.count)\r\n"
        for word in words { text += "$\(word.utf8.count)\r\n\(word)\r\n" }
        return Array(text.utf8)
    }

    /// Reads everything again; gives the number of keys that were looked for.
    func verify(_ guest: Connection, _ findings: inout Findings) throws -> Int {
        func read(_ key: String) throws -> String? {
            try guest.send(Self.encoded(["GET", key]))
            let head = try guest.line()
            guard head.first == "$", let length = Int(head.dropFirst()), length >= 0 else {
                return nil
            }
            return String(decoding: try guest.bytes(length + 2).dropLast(2), as: UTF8.self)
        }
        let counter = try read("counter:\(connection)") ?? "0"
        // A lost connection's last write may have been done without our hearing it.
        let allowed = lost ? [increments, increments + 1] : [increments]
        if !allowed.map(String.init).contains(counter) {
            findings.add("counter:\(connection) is \(counter), acknowledged was \(increments)")
        }
        for (key, value) in values where key != open {
            let found = try read(name(key))
            if found != value {
                findings.add(
                    "\(name(key)) is \(found ?? "not there"), acknowledged was \(value)")
            }
        }
        return values.count + 1
    }
}
