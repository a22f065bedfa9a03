import CLinux
import Foundation
import Glibc
import GuestSupport
import Hypervisor
import MemoryPool
import Model
import Protection
import Testing

/// The gate's own logic, with sockets in the place of QEMU and of the taps.
@Suite struct GateUnitTests {
    // MARK: - Messages

    @Test func lengthsAreToldFromFrames() {
        var messages = GateMessages()
        #expect(messages.take(length: 4, word: 60) == .length)
        #expect(messages.take(length: 60, word: 0xffff_ffff) == .frame)
        // The reader before died between the two: a frame without its length.
        #expect(messages.take(length: 1_500, word: 0) == .frame)
        #expect(messages.take(length: 4, word: 70) == .length)
        // It died after taking a frame, and the length of the next one: two lengths follow each other.
        #expect(messages.take(length: 4, word: 80) == .length)
        #expect(messages.take(length: 80, word: 0) == .frame)
        // A frame of four bytes is one where it was announced.
        #expect(messages.take(length: 4, word: 4) == .length)
        #expect(messages.take(length: 4, word: 99) == .frame)
        #expect(messages.take(length: 4, word: 99) == .length)
        #expect(messages.take(length: UInt32.max, word: 0) == .junk)
        #expect(messages.take(length: 4, word: 61) == .length)
        #expect(messages.take(length: 61, word: 0) == .frame)
    }

    @Test func namesOfSocketsSayWhatTheyAreFor() throws {
        let nic = GuestNIC(
            index: 3, netdev: "hostua-front/1", hostDevice: "vnet12",
            mac: [0x52, 0x54, 0, 0xab, 1, 0xff], usesHeader: true)
        for purpose in GateSocketName.Purpose.allCases {
            let name = GateSocketName(purpose: purpose, nic: nic, random: 0xdead_beef)
            #expect(GateSocketName(name.text) == name)
        }
        #expect(GateSocketName("ftvm-gate/3/out") == nil)
        #expect(GateSocketName("") == nil)
        #expect(GateSocketName("other/0/out/tap0/525400000001/plain/1/hostnet0") == nil)
    }

    @Test func announcementsAreKnown() {
        let nic = GuestNIC(
            index: 0, netdev: "hostnet0", hostDevice: "tap0",
            mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
            usesHeader: true)
        var frame = [UInt8](repeating: 0, count: 60)
        frame.replaceSubrange(0..<6, with: [UInt8](repeating: 0xff, count: 6))
        frame.replaceSubrange(6..<12, with: nic.mac)
        frame.replaceSubrange(12..<14, with: [0x80, 0x35])
        #expect(NetworkGate.isAnnouncement(frame, 60, nic))
        for index in [0, 11, 12, 13] {
            var other = frame
            other[index] ^= 1
            #expect(!NetworkGate.isAnnouncement(other, 60, nic))
        }
    }

    // MARK: - A gate of sockets

    /// Two NICs; the test has the other ends.
    final class Bench {
        let workspace: Workspace
        let segment: Segment
        let gate: NetworkGate
        let attachment: GateAttachment
        /// QEMU's ends, by NIC: output, input; and what the taps were given.
        var output: [Int32] = []
        var input: [Int32] = []
        var network: [Int32] = []
        var replay: [Int32] = []

        init(outputLogBytes: UInt64 = 256 << 10, tapBytes: Int32 = 4 << 20) throws {
            workspace = try Workspace(pool: .tmpfs)
            segment = try workspace.pool.createSegment(
                SegmentSpecification(
                    name: "gate", uuid: "00000000-0000-0000-0000-000000000001",
                    memoryBytes: 1 << 20, undoLogBytes: 1 << 20, outputLogBytes: outputLogBytes,
                    inputLogBytes: 256 << 10))
            var ports: [GateAttachment.Port] = []
            for index in 0..<2 {
                func pair(_ other: inout [Int32], _ type: Int32, _ bytes: Int32) -> Int32 {
                    var ends: [Int32] = [-1, -1]
                    precondition(ftvm_gate_socketpair(type, bytes, &ends) == 0)
                    other.append(ends[1])
                    return ends[0]
                }
                let packets = ftvm_gate_seqpacket()
                let tap = pair(&network, packets, tapBytes)
                _ = fcntl(tap, F_SETFL, O_NONBLOCK)
                ports.append(
                    GateAttachment.Port(
                        nic: GuestNIC(
                            index: index, netdev: "hostnet\(index)", hostDevice: "tap\(index)",
                            mac: [2, 0, 0, 0, 0, UInt8(index)], usesHeader: false),
                        output: pair(&output, packets, 4 << 20),
                        input: pair(&input, packets, 4 << 20),
                        replay: pair(&replay, ftvm_gate_stream(), 4 << 20), tap: tap))
            }
            attachment = GateAttachment(ports: ports)
            gate = try NetworkGate(attachment, segment: segment, generation: Generation(1))
        }

        deinit {
            for end in output + input + network + replay { close(end) }
            workspace.remove()
        }

        /// As QEMU's filters do it.
        func guestSends(_ frame: [UInt8], nic: Int) { send(frame, output[nic]) }
        func guestGets(_ frame: [UInt8], nic: Int) { send(frame, input[nic]) }

        private func send(_ frame: [UInt8], _ socket: Int32) {
            var length = UInt32(frame.count).bigEndian
            precondition(ftvm_gate_send(socket, &length, 4, nil, 0) == 4)
            precondition(ftvm_gate_send(socket, frame, frame.count, nil, 0) == frame.count)
        }

        /// What the tap was given since.
        func left(nic: Int) -> [[UInt8]] {
            var frames: [[UInt8]] = []
            var buffer = [UInt8](repeating: 0, count: 80_000)
            while true {
                let got = recv(network[nic], &buffer, buffer.count, Int32(MSG_DONTWAIT))
                if got <= 0 { return frames }
                frames.append(Array(buffer[..<got]))
            }
        }

        func commit() throws {
            try segment.publish(
                epoch: segment.position.epoch.next, generation: Generation(1), stateLength: 0,
                logs: gate.positions)
        }
    }

    private func frame(_ number: Int, _ length: Int = 100) -> [UInt8] {
        (0..<length).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ number) }
    }

    @Test func framesWaitForTheirCommitAndKeepTheirOrder() throws {
        let bench = try Bench()
        #expect(try bench.gate.collect() == .none)
        #expect(try bench.gate.release())
        for number in 0..<200 { bench.guestSends(frame(number), nic: number % 2) }
        #expect(try bench.gate.collect() == .soon)
        #expect(bench.gate.heldFrames == 200)
        #expect(try bench.gate.release())
        #expect(bench.left(nic: 0) == [] && bench.left(nic: 1) == [])
        try bench.commit()
        // What came after the commit's positions were taken is of the next epoch.
        bench.guestSends(frame(999), nic: 0)
        #expect(try bench.gate.collect() == .soon)
        #expect(try bench.gate.release())
        #expect(bench.left(nic: 0) == stride(from: 0, to: 200, by: 2).map { frame($0) })
        #expect(bench.left(nic: 1) == stride(from: 1, to: 200, by: 2).map { frame($0) })
        #expect(bench.gate.heldFrames == 1)
        try bench.commit()
        #expect(try bench.gate.release())
        #expect(bench.left(nic: 0) == [frame(999)])
        let figures = bench.gate.figures()
        #expect(figures.heldFrames == 0 && figures.heldBytes == 0)
        #expect(figures.releasedFrames == 201 && figures.droppedFrames == 0)
    }

    /// What comes for a dead primary until the next one has told where it is counts, and nothing after that.
    @Test func theLastInputIsKeptUntilTheNextPrimaryIsKnown() throws {
        let bench = try Bench()
        try bench.commit()
        let inputLog = try #require(bench.segment.inputLog)
        func sendFromNetwork(_ number: Int) {
            let bytes = frame(number)
            // A tap that is closed by now takes nothing.
            _ = send(bench.network[0], bytes, bytes.count, Int32(MSG_NOSIGNAL))
        }
        func kept() -> [[UInt8]] {
            var frames: [[UInt8]] = []
            var position: UInt64 = 0
            while case .frame(let one) = inputLog.frame(at: position, before: inputLog.head) {
                frames.append(Array(one.bytes))
                position = one.end
            }
            return frames
        }
        sendFromNetwork(1)
        bench.guestGets(frame(2), nic: 1)
        LastInput.start(bench.gate)
        #expect(try bench.segment.isLocked(.input))
        #expect(kept().count == 2)
        // The next primary's generation is there already, and it does not run yet.
        try bench.segment.raiseGeneration(to: Generation(2))
        sendFromNetwork(3)
        let deadline = ContinuousClock.now + .seconds(1)
        while kept().count < 3, ContinuousClock.now < deadline { usleep(1_000) }
        #expect(kept().last == frame(3))
        LastInput.close(bench.segment, before: Generation(2))
        #expect(try !bench.segment.isLocked(.input))
        #expect(bench.segment.isInputClosed(Generation(1)))
        #expect(!bench.segment.isInputClosed(Generation(2)))
        sendFromNetwork(4)
        usleep(20_000)
        #expect(kept().count == 3)
        // There is nobody to wait for any more.
        LastInput.close(bench.segment, before: Generation(2))
    }

    @Test func aFencedGateReleasesNothing() throws {
        let bench = try Bench()
        bench.guestSends(frame(1), nic: 0)
        _ = try bench.gate.collect()
        try bench.commit()
        try bench.segment.raiseGeneration(to: Generation(2))
        let error = #expect(throws: FtvmError.self) { try bench.gate.release() }
        #expect(error?.code == .conflict)
        #expect(bench.left(nic: 0) == [])
    }

    /// It was frozen, and goes on although its successor runs: nothing of its guest gets among the successor's frames.
    @Test func aFencedGateWritesNothing() throws {
        let bench = try Bench()
        try bench.commit()
        try bench.segment.raiseGeneration(to: Generation(2))
        let next = try NetworkGate(
            bench.attachment, segment: bench.segment, generation: Generation(2))
        let log = try #require(bench.segment.outputLog)
        let head = log.head
        bench.guestSends(frame(1), nic: 0)
        _ = try bench.gate.collect()
        #expect(log.head == head)
        // It had looked at the generation just before it was frozen.
        let late = frame(2)
        #expect(log.append(late, count: late.count, nic: 1 << 8, headerBytes: 0, keepingFrom: head))
        bench.guestSends(frame(3), nic: 0)
        _ = try next.collect()
        try bench.segment.publish(
            epoch: bench.segment.position.epoch.next, generation: Generation(2), stateLength: 0,
            logs: next.positions)
        #expect(try next.release())
        #expect(bench.left(nic: 0) == [frame(3)])
        #expect(next.heldFrames == 0)
    }

    @Test func aSlowNetworkGetsTheRestLater() throws {
        let bench = try Bench(outputLogBytes: 2 << 20, tapBytes: 64 << 10)
        let frames = (0..<1_000).map { frame($0, 1_000) }
        for one in frames { bench.guestSends(one, nic: 0) }
        _ = try bench.gate.collect()
        try bench.commit()
        var left: [[UInt8]] = []
        var rounds = 0
        while true {
            let done = try bench.gate.release()
            left += bench.left(nic: 0)
            if done { break }
            rounds += 1
            // Another epoch is committed meanwhile.
            if rounds == 1 {
                bench.guestSends(frame(5_000), nic: 1)
                _ = try bench.gate.collect()
                try bench.commit()
            }
            try #require(rounds < 2_000)
        }
        #expect(rounds > 2)
        #expect(left == frames)
        #expect(bench.left(nic: 1) == [frame(5_000)])
        #expect(bench.segment.releasedOutput == bench.segment.outputLog?.head)
    }

    @Test func aFullLogAsksForACommitThenDrops() throws {
        let bench = try Bench()
        var demands: [GateDemand] = []
        for number in 0..<300 {
            bench.guestSends(frame(number, 1_000), nic: 0)
            demands.append(try bench.gate.collect())
        }
        #expect(demands[10] == .soon)
        #expect(demands[140] == .now)
        let dropped = bench.gate.figures().droppedFrames
        #expect(dropped > 30 && dropped < 50)
        try bench.commit()
        #expect(try bench.gate.release())
        #expect(bench.left(nic: 0) == (0..<300 - Int(dropped)).map { frame($0, 1_000) })
        // And goes on.
        bench.guestSends(frame(1), nic: 0)
        #expect(try bench.gate.collect() == .soon)
        #expect(bench.gate.heldFrames == 1)
        // Input is kept since the last commit only.
        for number in 0..<150 { bench.guestGets(frame(number, 1_000), nic: 1) }
        #expect(try bench.gate.collect() == .now)
        try bench.commit()
        for number in 0..<150 { bench.guestGets(frame(number, 1_000), nic: 1) }
        #expect(try bench.gate.collect() == .now)
        #expect(bench.gate.figures().unkeptFrames == 0)
        #expect(bench.gate.figures().mirroredFrames == 300)
    }

    /// A frame at a time of which some are damaged: the others before it left, and it goes on after it.
    @Test func aDamagedLogLosesFramesAndNothingElse() throws {
        let bench = try Bench()
        for number in 0..<10 { bench.guestSends(frame(number), nic: 0) }
        _ = try bench.gate.collect()
        try bench.commit()
        let path = bench.workspace.directory.appendingPathComponent("pool/segments/gate/control")
        let file = try FileHandle(forUpdating: path)
        try file.seek(toOffset: bench.segment.header.outputLog.offset + 128 * 4 + 50)
        try file.write(contentsOf: Data([0x99]))
        try file.close()
        #expect(try bench.gate.release())
        #expect(bench.left(nic: 0) == (0..<4).map { frame($0) })
        #expect(bench.gate.figures().droppedFrames == 1)
        #expect(bench.gate.heldFrames == 0)
        bench.guestSends(frame(77), nic: 0)
        _ = try bench.gate.collect()
        try bench.commit()
        #expect(try bench.gate.release())
        #expect(bench.left(nic: 0) == [frame(77)])
    }

    @Test func whatIsNoFrameIsDropped() throws {
        let bench = try Bench()
        bench.guestSends([1, 2, 3, 4], nic: 0)
        bench.guestSends(frame(1, 13), nic: 0)
        bench.guestSends(frame(1, 69_633), nic: 0)
        bench.guestSends(frame(1, 14), nic: 0)
        bench.guestSends(frame(2, 69_632), nic: 0)
        _ = try bench.gate.collect()
        try bench.commit()
        #expect(try bench.gate.release())
        #expect(bench.left(nic: 0) == [frame(1, 14), frame(2, 69_632)])
        #expect(bench.gate.figures().droppedFrames == 3)
    }

    @Test func aQEMUThatIsGoneIsNoticed() throws {
        let bench = try Bench()
        bench.guestSends(frame(1), nic: 1)
        close(bench.output[1])
        bench.output.remove(at: 1)
        #expect(try bench.gate.collect() == .soon)
        let error = #expect(throws: FtvmError.self) { try bench.gate.collect() }
        #expect(error?.code == .unavailable)
        // What it had sent is there.
        #expect(bench.gate.heldFrames == 1)
    }

    /// A successor counts and sends what is in the log.
    @Test func aSuccessorGoesOn() throws {
        let bench = try Bench(outputLogBytes: 2 << 20, tapBytes: 64 << 10)
        let frames = (0..<300).map { frame($0, 1_000) }
        for one in frames { bench.guestSends(one, nic: 0) }
        _ = try bench.gate.collect()
        try bench.commit()
        #expect(try !bench.gate.release())
        var left = bench.left(nic: 0)
        #expect(left.count > 0 && left.count < 300)
        let second = try Bench(outputLogBytes: 2 << 20)
        // The same segment, seen by another process's gate: here another one with sockets of its own.
        let successor = try NetworkGate(
            second.attachment, segment: bench.segment, generation: Generation(1))
        #expect(successor.heldFrames == UInt64(300 - left.count))
        #expect(try successor.release())
        left += second.left(nic: 0)
        #expect(left == frames)
        #expect(successor.heldFrames == 0)
    }

    /// What a frame costs on the epoch thread, the system calls included; sockets stand for the taps. Printed, and
    /// compared with a limit that only a defect exceeds.
    @Test(arguments: [(60, 64), (1_514, 64), (1_514, 2_048), (65_226, 64)])
    func costOfFrames(length: Int, batch: Int) throws {
        let bench = try Bench(outputLogBytes: 32 << 20, tapBytes: 32 << 20)
        let one = frame(1, length)
        var collecting: UInt64 = 0
        var releasing: UInt64 = 0
        var frames: UInt64 = 0
        for _ in 0..<max(4, 20_000 / batch) {
            // As many as QEMU's sockets take.
            let count = min(batch, 3_000_000 / max(length, 2_000))
            for _ in 0..<count { bench.guestSends(one, nic: 0) }
            let began = MonotonicClock.nowNanoseconds()
            _ = try bench.gate.collect()
            let collected = MonotonicClock.nowNanoseconds()
            try bench.commit()
            let committed = MonotonicClock.nowNanoseconds()
            #expect(try bench.gate.release())
            releasing += MonotonicClock.nowNanoseconds() - committed
            collecting += collected - began
            frames += UInt64(count)
            #expect(bench.left(nic: 0).count == count)
        }
        let perFrame = Double(collecting + releasing) / Double(frames)
        print(
            "gate: frames of \(length) bytes, \(batch) at a time: collect",
            collecting / frames, "ns, release", releasing / frames, "ns a frame,",
            Int(Double(length) * 1_000 / perFrame), "MB/s")
        #expect(perFrame < 500_000)
    }
}
