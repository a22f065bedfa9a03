import GuestClients
import Testing

/// The judges of the end-to-end tests find what they are there to find.
@Suite struct JudgeTests {
    private func judged(_ answers: [String]) -> NumberJudge {
        var judge = NumberJudge(connection: 3)
        for answer in answers {
            let question = judge.nextQuestion()
            judge.judge("\(answer) \(question) boot"[...])
        }
        return judge
    }

    @Test func numbersInOrderPass() {
        let judge = judged(["1 1", "4 2", "9 3"])
        #expect(judge.findings.count == 0)
        #expect(judge.globals == [1, 4, 9] && judge.boot == "boot")
    }

    @Test(arguments: [["5 1", "5 2"], ["5 1", "4 2"], ["5 1", "6 1"], ["5 1", "6 3"], ["5 2"]])
    func numbersTakenBackAreFound(answers: [String]) {
        #expect(judged(answers).findings.count == 1)
    }

    @Test func otherAnswersAreFound() {
        var judge = NumberJudge(connection: 0)
        let first = judge.nextQuestion()
        judge.judge("1 1 \(first) boot")
        judge.judge("nonsense")
        #expect(judge.findings.count == 1)
        judge.judge("2 2 \(first)x boot")
        #expect(judge.findings.count == 2)
        judge.judge("3 3 \(first) other")
        #expect(judge.findings.count == 3)
    }

    @Test func connectionsTogetherLeaveNothingOut() {
        #expect(NumberJudge.judgeTogether([[7, 9], [8, 10, 11]]).count == 0)
        #expect(
            NumberJudge.judgeTogether([[1, 3], [4]]).violations == [
                "the numbers 2 to 2 were given to nobody"
            ])
        #expect(
            NumberJudge.judgeTogether([[1, 2], [2, 3]]).violations == [
                "the number 2 was given twice"
            ])
    }

    private func beacon(_ sequence: UInt64, nonce: UInt64, boot: String = "b") throws -> Beacon {
        var bytes = Array("ftvm-bcn".utf8)
        for word in [0, sequence, nonce, 5, 1_000] {
            bytes += withUnsafeBytes(of: word.bigEndian) { Array($0) }
        }
        bytes += Array(boot.utf8)
        bytes += Array(repeating: 0, count: Beacon.bytes - bytes.count)
        return try #require(Beacon(bytes))
    }

    @Test func aBeaconIsRead() throws {
        let beacon = try beacon(17, nonce: 99, boot: "a-b")
        #expect(beacon.sequence == 17 && beacon.nonce == [99, 5] && beacon.bootID == "a-b")
        #expect(beacon.uptimeNanoseconds == 1_000)
        #expect(Beacon([1, 2, 3]) == nil)
    }

    @Test func aBeaconSentAgainIsTheSame() throws {
        var judge = BeaconJudge()
        for (sequence, nonce) in [(1, 11), (2, 12), (4, 14), (2, 12)] {
            judge.judge(try beacon(UInt64(sequence), nonce: UInt64(nonce)))
        }
        #expect(judge.findings.count == 0)
        #expect(judge.count == 4 && judge.repeated == 1 && judge.missing == 1)
        // The guest went back behind 4, which had been seen.
        judge.judge(try beacon(3, nonce: 13))
        judge.judge(try beacon(4, nonce: 15))
        #expect(judge.findings.count == 1)
        // After a boot all begins anew.
        judge.judge(try beacon(1, nonce: 7, boot: "c"))
        #expect(judge.findings.count == 1)
    }

    @Test func bytesSentAgainAreTheSame() {
        let flow = StreamJudge.Flow(addresses: 1, ports: 2)
        var judge = StreamJudge()
        // Over the end of the 32-bit numbers.
        judge.begin(flow, at: 0xffff_fffe)
        judge.judge(flow, at: 0xffff_fffe, Array("abcd".utf8)[...])
        judge.judge(flow, at: 2, Array("efgh".utf8)[...])
        judge.judge(flow, at: 0, Array("cdef".utf8)[...])
        #expect(judge.findings.count == 0 && judge.repeatedBytes == 4)
        judge.judge(flow, at: 2, Array("efgX".utf8)[...])
        #expect(judge.findings.count == 1)
        // Another connection's bytes are its own.
        judge.judge(.init(addresses: 1, ports: 3), at: 2, Array("XXXX".utf8)[...])
        // New bytes after a repetition are new.
        judge.judge(flow, at: 4, Array("ghij".utf8)[...])
        judge.judge(flow, at: 6, Array("ij".utf8)[...])
        #expect(judge.findings.count == 1)
    }

    @Test func aPortThatComesUpAgainShows() {
        var judge = PortJudge()
        for (time, port) in ["h1", "h1", "h2", "h1"].enumerated() {
            judge.judge(port: port, at: UInt64(time))
        }
        #expect(judge.stretches.map(\.port) == ["h1", "h2", "h1"])
        #expect(judge.stretches[0].frames == 2 && judge.stretches[0].to == 1)
    }

    @Test func datagramsMayBeLostButNotTakenBack() {
        var judge = DatagramJudge()
        for line in ["1 1 b", "3 4 b", "2 3 b", "3 4 b"] { judge.judge(line[...]) }
        #expect(judge.findings.count == 0 && judge.repeated == 1 && judge.answered == 3)
        judge.judge("4 4 b")
        #expect(judge.doubled == 1 && judge.findings.count == 0)
        judge.judge("3 5 b")
        #expect(judge.findings.count == 1)
    }

    @Test func latenciesAreRanked() {
        let report = LatencyReport(microseconds: (1...1_000).map { $0 * 1_000 })
        #expect(report.count == 1_000 && report.maximum == 1_000)
        #expect(report.p50 == 501 && report.p99 == 991)
        #expect(LatencyReport(microseconds: []).count == 0)
    }

    @Test func aPatternFollowsFromItsSeed() {
        var one = Pattern(seed: 1)
        var two = Pattern(seed: 2)
        let first = (0..<20_000).map { _ in one.next() }
        let second = (0..<20_000).map { _ in two.next() }
        #expect(Set(first).count == first.count && Set(first).isDisjoint(with: second))
        #expect(one.checksum != two.checksum && one.position == 20_000)
    }
}
