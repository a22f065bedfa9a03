import CLinux
import Glibc
import Hypervisor
import MemoryPool
import Model

/// Figures of a network gate since it was made.
package struct GateFigures: Sendable, Hashable {
    /// Frames and bytes that wait for their commit or for the network.
    package var heldFrames: UInt64 = 0
    package var heldBytes: UInt64 = 0
    /// Frames that were written to the network.
    package var releasedFrames: UInt64 = 0
    package var releasedBytes: UInt64 = 0
    /// Copies of frames that reached the guest.
    package var mirroredFrames: UInt64 = 0
    /// Frames of the guest that were lost: no room, refused by the tap, damaged, or no frames at all.
    package var droppedFrames: UInt64 = 0
    /// Copies that could not be kept: those frames would not be given again after a failover.
    package var unkeptFrames: UInt64 = 0

    package init() {}
}

/// Tells lengths from frames among the messages of one socket. QEMU sends each frame as two: its length in four bytes,
/// and the frame. A reader that died between two leaves any of them for the next one, but a message is always whole.
package struct GateMessages {
    private var announced: UInt32?

    package init() {}

    package enum Message { case length, frame, junk }

    /// - Parameters:
    ///   - length: the message's bytes; UINT32_MAX when it was cut off.
    ///   - word: its first four bytes as a big-endian number.
    package mutating func take(length: UInt32, word: UInt32) -> Message {
        if length == UInt32.max {
            announced = nil
            return .junk
        }
        if length == 4, announced != 4 {
            announced = word
            return .length
        }
        announced = nil
        return .frame
    }
}

/// Holds what the guest sends until its epoch is committed, and keeps what reached it since the last commit
/// (`Documentation/NetworkGate.md`). One thread at a time, except for `figures`. Collecting and releasing allocate
/// nothing.
package final class NetworkGate: PacketGate, @unchecked Sendable {
    let attachment: GateAttachment
    let segment: Segment
    let generation: Generation
    let outputLog: FrameLog
    let inputLog: FrameLog
    package let descriptors: [Int32]

    /// The last digits of our generation, which each frame in the logs carries.
    private let writer: Int
    /// Where our own frames begin in the output log.
    private var firstOwn: UInt64
    private var messages: [GateMessages]
    /// Of each port, as the tap had it last.
    private var tapHeaders: [Int]
    private let slots: UnsafeMutableRawPointer
    private let lengths: UnsafeMutablePointer<UInt32>
    let prefix: UnsafeMutableRawPointer
    private let counters: UnsafeMutablePointer<UInt64>

    private enum Counter: Int, CaseIterable {
        case collected, collectedBytes, releasedFrames, releasedBytes, mirrored, dropped, unkept
    }

    /// Room for one message: the largest frame, and one byte that shows a larger one.
    private static let slotBytes = 72 << 10
    private static let prefixBytes = 64
    /// A stopped guest's socket is empty after fewer rounds; a running guest cannot keep us here for ever.
    private static let roundLimit = 4_096
    /// Destination, source and type.
    static let ethernetHeaderBytes = 14

    /// - Throws: `.unsupported` for a segment of format 1.0.
    package init(
        _ attachment: GateAttachment, segment: Segment, generation: Generation
    ) throws {
        guard let outputLog = segment.outputLog, let inputLog = segment.inputLog else {
            throw FtvmError(
                .unsupported, "segment '\(segment.name)' has no logs for the network",
                cause: "it was made by an older ftvm",
                advice: "disable the pair and enable it again")
        }
        self.attachment = attachment
        self.segment = segment
        self.generation = generation
        self.outputLog = outputLog
        self.inputLog = inputLog
        let ports = attachment.ports
        writer = Int(generation.number & 0xff)
        firstOwn = outputLog.head
        descriptors = ports.flatMap { [$0.output, $0.input] }
        messages = Array(repeating: GateMessages(), count: 2 * ports.count)
        tapHeaders = Array(repeating: 0, count: ports.count)
        slots = .allocate(byteCount: Self.slotBytes * Int(FTVM_GATE_BATCH), alignment: 64)
        lengths = .allocate(capacity: Int(FTVM_GATE_BATCH))
        prefix = .allocate(byteCount: Self.prefixBytes, alignment: 16)
        counters = .allocate(capacity: Counter.allCases.count)
        counters.initialize(repeating: 0, count: Counter.allCases.count)
        countHeld()
    }

    deinit {
        slots.deallocate()
        lengths.deallocate()
        prefix.deallocate()
        counters.deallocate()
    }

    /// The log has been cut to the last commit: what is behind that is ours.
    func begin() { firstOwn = min(firstOwn, outputLog.head) }

    static func nic(of frame: LoggedFrame) -> Int { frame.nic & 0xff }

    private func reachesEnd(_ position: UInt64, _ limit: UInt64) -> Bool {
        if case .end = outputLog.frame(at: position, before: limit) { true } else { false }
    }

    private func recountHeld() {
        ftvm_atomic_store_u64(
            counters + Counter.collected.rawValue, value(.releasedFrames))
        ftvm_atomic_store_u64(
            counters + Counter.collectedBytes.rawValue, value(.releasedBytes))
        countHeld()
    }

    /// What a former ftvmd has collected and not released.
    private func countHeld() {
        var position = segment.releasedOutput
        while case .frame(let frame) = outputLog.frame(at: position, before: outputLog.head) {
            count(.collected)
            count(.collectedBytes, UInt64(frame.bytes.count))
            position = frame.end
        }
    }

    func close() { attachment.closeAll() }

    // MARK: - Figures

    private func count(_ counter: Counter, _ number: UInt64 = 1) {
        _ = ftvm_atomic_fetch_add_u64(counters + counter.rawValue, number)
    }

    private func value(_ counter: Counter) -> UInt64 {
        ftvm_atomic_load_u64(counters + counter.rawValue)
    }

    package var heldFrames: UInt64 {
        // Read in this order, released never is ahead; unless somebody else wrote to the log (a lie of a fence).
        let released = value(.releasedFrames)
        let collected = value(.collected)
        return collected - min(collected, released)
    }

    /// Any thread may ask.
    package func figures() -> GateFigures {
        var figures = GateFigures()
        figures.releasedFrames = value(.releasedFrames)
        figures.releasedBytes = value(.releasedBytes)
        let (collected, collectedBytes) = (value(.collected), value(.collectedBytes))
        figures.heldFrames = collected - min(collected, figures.releasedFrames)
        figures.heldBytes = collectedBytes - min(collectedBytes, figures.releasedBytes)
        figures.mirroredFrames = value(.mirrored)
        figures.droppedFrames = value(.dropped)
        figures.unkeptFrames = value(.unkept)
        return figures
    }

    // MARK: - Collecting

    package var positions: LogPositions {
        LogPositions(output: outputLog.head, input: inputLog.head)
    }

    package func collect() throws -> GateDemand {
        for index in attachment.ports.indices {
            try collect(index, from: attachment.ports[index].output, isOutput: true)
            try collect(index, from: attachment.ports[index].input, isOutput: false)
        }
        return demand
    }

    /// What waits wants: with a log half full of what the running epoch made, at once.
    private var demand: GateDemand {
        let committed = segment.committedLogs ?? LogPositions()
        let output = outputLog.head
        if output > committed.output, output &- segment.releasedOutput > outputLog.capacityBytes / 2
        {
            return .now
        }
        if inputLog.head &- committed.input > inputLog.capacityBytes / 2 { return .now }
        return output > committed.output ? .soon : .none
    }

    private func collect(_ index: Int, from socket: Int32, isOutput: Bool) throws {
        let port = attachment.ports[index]
        var headerBytes = -1
        for _ in 0..<Self.roundLimit {
            let got = ftvm_gate_receive(socket, slots, Self.slotBytes, lengths)
            guard got >= 0 else {
                throw FtvmError(
                    .unavailable, "QEMU has closed its end of the network gate",
                    cause: "interface \(port.nic.macText): \(String(cString: strerror(-got)))")
            }
            if got == 0 { return }
            FaultPoint.reached("gate.received")
            if headerBytes < 0 { headerBytes = frameHeaderBytes(port) }
            for slot in 0..<Int(got) {
                let bytes = slots + slot * Self.slotBytes
                let length = lengths[slot]
                let word = bytes.loadUnaligned(as: UInt32.self).bigEndian
                switch messages[isOutput ? 2 * index : 2 * index + 1].take(
                    length: length, word: word)
                {
                case .length: continue
                case .junk: count(isOutput ? .dropped : .unkept)
                case .frame:
                    log(bytes, Int(length), port.nic, headerBytes, isOutput: isOutput)
                }
            }
            if got < Int32(FTVM_GATE_BATCH) { return }
        }
    }

    /// What waits for a QEMU that runs nothing any more, in its sockets and its taps, goes to the input log.
    func collectFromTaps() {
        _ = try? collect()
        for port in attachment.ports {
            let tapHeader = tapHeaderBytes(port)
            let headerBytes = port.nic.usesHeader ? tapHeader : 0
            for _ in 0..<Self.roundLimit {
                let length = Int(ftvm_gate_read(port.tap, slots, Self.slotBytes))
                guard length > tapHeader else { break }
                let skipped = tapHeader - headerBytes
                log(slots + skipped, length - skipped, port.nic, headerBytes, isOutput: false)
            }
        }
    }

    /// The virtio-net header of frames as QEMU passes them through filters.
    func frameHeaderBytes(_ port: GateAttachment.Port) -> Int {
        port.nic.usesHeader ? tapHeaderBytes(port) : 0
    }

    /// 0 as well for a tap that is gone: what is written to it fails.
    private func tapHeaderBytes(_ port: GateAttachment.Port) -> Int {
        min(Self.prefixBytes, max(0, Int(ftvm_tap_header_bytes(port.tap))))
    }

    private func log(
        _ bytes: UnsafeRawPointer, _ length: Int, _ nic: GuestNIC, _ headerBytes: Int,
        isOutput: Bool
    ) {
        guard length >= headerBytes + Self.ethernetHeaderBytes,
            length <= FrameLog.largestFrameBytes
        else {
            // QEMU's own announcement does not pass the header; it is nothing that the guest sent.
            count(isOutput ? .dropped : .unkept)
            return
        }
        if headerBytes > 0, Self.isAnnouncement(bytes, length, nic) { return }
        let number = nic.index | writer << 8
        if isOutput {
            // Who has been fenced, and goes on, must not write among the frames of whoever goes on in its place.
            guard segment.position.generation == generation else { return count(.dropped) }
            let tail = segment.releasedOutput
            guard
                outputLog.append(
                    bytes, count: length, nic: number, headerBytes: headerBytes,
                    keepingFrom: tail)
            else { return count(.dropped) }
            count(.collectedBytes, UInt64(length))
            count(.collected)
        } else {
            let tail = segment.committedLogs?.input ?? 0
            guard
                inputLog.append(
                    bytes, count: length, nic: number, headerBytes: headerBytes,
                    keepingFrom: tail)
            else { return count(.unkept) }
            count(.mirrored)
        }
    }

    /// Whether it is QEMU's own announcement (QEMU: net/announce.c), which goes through filters without the header: a
    /// reverse ARP request of 60 bytes to all. With a header it would begin with flags, never with 0xff.
    package static func isAnnouncement(_ bytes: UnsafeRawPointer, _ length: Int, _ nic: GuestNIC)
        -> Bool
    {
        guard length == 60 else { return false }
        for index in 0..<6 {
            guard bytes.load(fromByteOffset: index, as: UInt8.self) == 0xff,
                bytes.load(fromByteOffset: 6 + index, as: UInt8.self) == nic.mac[index]
            else { return false }
        }
        return bytes.load(fromByteOffset: 12, as: UInt8.self) == 0x80
            && bytes.load(fromByteOffset: 13, as: UInt8.self) == 0x35
    }

    // MARK: - Releasing

    package func release(upTo limit: UInt64) throws -> Bool {
        let present = segment.position
        guard present.generation == generation else {
            throw FtvmError(
                .conflict, "generation \(generation) has been fenced",
                cause: "the segment is at \(present)",
                advice: "this primary must end and release nothing")
        }
        guard let committed = segment.committedLogs else { return true }
        return send(upTo: min(limit, committed.output))
    }

    /// Sends everything, committed or not: for a guest whose state is not rolled back any more.
    func releaseUncommitted() -> Bool { send(upTo: outputLog.head) }

    private func send(upTo limit: UInt64) -> Bool {
        var position = segment.releasedOutput
        guard position < limit else { return true }
        for index in attachment.ports.indices {
            tapHeaders[index] = tapHeaderBytes(attachment.ports[index])
        }
        while true {
            guard case .frame(let frame) = outputLog.frame(at: position, before: limit) else {
                let isDamaged = position < limit && !reachesEnd(position, limit)
                segment.releasedOutput = limit
                if isDamaged {
                    // How many frames were there is not known any more.
                    count(.dropped)
                    recountHeld()
                }
                return true
            }
            guard write(frame) else { return false }
            FaultPoint.reached("gate.frame-written")
            position = frame.end
            segment.releasedOutput = position
            count(.releasedBytes, UInt64(frame.bytes.count))
            count(.releasedFrames)
            FaultPoint.reached("gate.frame-released")
        }
    }

    /// - Returns: false when the tap takes nothing now.
    private func write(_ frame: LoggedFrame) -> Bool {
        // One that stood still between the look at the generation and its write may have left something here.
        let isOurs = frame.start < firstOwn || frame.nic >> 8 == writer
        guard isOurs,
            let index = attachment.ports.firstIndex(where: { $0.nic.index == Self.nic(of: frame) }),
            let start = frame.bytes.baseAddress
        else {
            count(.dropped)
            return true
        }
        let tap = attachment.ports[index].tap
        let wanted = tapHeaders[index]
        let result: Int
        if wanted == frame.headerBytes {
            result = ftvm_gate_write(tap, start, frame.bytes.count, nil, 0)
        } else {
            header(of: frame, bytes: wanted)
            result = ftvm_gate_write(
                tap, prefix, wanted, start + frame.headerBytes,
                frame.bytes.count - frame.headerBytes)
        }
        if result == -Int(EAGAIN) { return false }
        // A tap whose link is down, or gone: the frame is lost, as on any wire that is cut.
        if result < 0 { count(.dropped) }
        return true
    }

    /// The frame's header in a size that the guest's driver has changed since: what is missing is 0.
    func header(of frame: LoggedFrame, bytes wanted: Int) {
        precondition(wanted <= Self.prefixBytes, "a virtio-net header")
        memset(prefix, 0, Self.prefixBytes)
        if let start = frame.bytes.baseAddress {
            memcpy(prefix, start, min(wanted, frame.headerBytes))
        }
    }
}
