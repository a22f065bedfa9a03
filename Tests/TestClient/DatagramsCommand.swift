import ArgumentParser
import Foundation
import GuestClients

struct DatagramsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "datagrams",
        abstract: "Ask for numbers by datagrams; no number may be given twice.")
    @OptionGroup var common: CommonOptions
    @Option(help: "Milliseconds between questions.") var pause = 10
    private static let port: UInt16 = 7781

    func run() throws {
        let ending = common.ending()
        let descriptor = socket(
            AF_INET, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        defer { close(descriptor) }
        var target = sockaddr_in()
        target.sin_family = sa_family_t(AF_INET)
        target.sin_port = Self.port.bigEndian
        inet_pton(AF_INET, common.address, &target.sin_addr)
        let result = withUnsafePointer(to: &target) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard result == 0 else { throw ConnectionLost(description: "no socket") }
        var judge = DatagramJudge()
        var sent = 0
        while !ending.hasCome {
            sent += 1
            let question = Array("\(sent)\n".utf8)
            // A guest that is away answers nothing, or the kernel says so: both are part of the game.
            _ = send(descriptor, question, question.count, Int32(MSG_DONTWAIT | MSG_NOSIGNAL))
            Self.receive(descriptor, milliseconds: pause, &judge)
            if common.attended, sent % 16 == 0 {
                tell(ClientProgress(least: judge.answered, total: judge.answered))
            }
        }
        Self.receive(descriptor, milliseconds: 500, &judge)
        var report = DatagramReport()
        report.sent = sent
        report.answered = judge.answered
        report.repeated = judge.repeated
        report.doubled = judge.doubled
        report.violations = judge.findings.violations
        report.violationCount = judge.findings.count
        try common.finish(report)
    }

    /// Takes answers for so long.
    private static func receive(
        _ descriptor: Int32, milliseconds: Int, _ judge: inout DatagramJudge
    ) {
        let until = monotonicNanoseconds() + UInt64(milliseconds) * 1_000_000
        while true {
            let now = monotonicNanoseconds()
            guard now < until else { return }
            var poller = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            guard poll(&poller, 1, Int32((until - now) / 1_000_000) + 1) > 0 else { continue }
            var buffer = [UInt8](repeating: 0, count: 2048)
            let got = recv(descriptor, &buffer, buffer.count, Int32(MSG_DONTWAIT))
            guard got > 0 else { continue }
            let text = String(decoding: buffer[..<got], as: UTF8.self)
            judge.judge(text.trimmingSuffix { $0.isNewline })
        }
    }
}

extension String {
    fileprivate func trimmingSuffix(while condition: (Character) -> Bool) -> Substring {
        var text = self[...]
        while let last = text.last, condition(last) { text.removeLast() }
        return text
    }
}
