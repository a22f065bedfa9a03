import CLinux
import Glibc
import Hypervisor
import MemoryPool
import Model

/// What a promotion did about the network.
package struct GatePromotionReport: Sendable, Hashable {
    /// Committed frames that were sent, since they were not known to have left.
    package var sentFrames: UInt64 = 0
    /// Frames of the lost epoch that were given to the guest again.
    package var replayedFrames: UInt64 = 0
    /// Frames that QEMU did not take back in time.
    package var refusedFrames: UInt64 = 0
}

extension NetworkGate {
    /// How long a promotion waits for QEMU to take the lost epoch's frames.
    private static let replayTimeoutNanoseconds: UInt64 = 2_000_000_000

    /// A promoted guest, its state loaded and itself standing still, gets its gate: from here on frames are held. What
    /// was committed and not known to have left goes out; what reached the guest after the commit reaches it again.
    /// - Parameter limit: the end of the output log up to which frames may leave.
    func open(
        after committed: LogPositions, upTo limit: UInt64 = .max, monitor: any Monitor
    ) throws -> GatePromotionReport {
        try attachment.setFilters(on: true, monitor: monitor)
        FaultPoint.reached("gate.promotion-switched")
        var report = GatePromotionReport()
        begin()
        let before = figures().releasedFrames
        _ = try release(upTo: limit)
        report.sentFrames = figures().releasedFrames - before
        FaultPoint.reached("gate.promotion-sent")
        // The network knows by QEMU's announcement where the guest is.
        LastInput.close(segment, before: generation)
        replay(after: committed.input, &report)
        FaultPoint.reached("gate.promotion-replayed")
        return report
    }

    private func replay(after position: UInt64, _ report: inout GatePromotionReport) {
        let deadline = MonotonicClock.nowNanoseconds() + Self.replayTimeoutNanoseconds
        let limit = inputLog.head
        var position = position
        // A port that did not take a frame whole gets no more: it would be read as the rest of that one.
        var stuck: Set<Int> = []
        while case .frame(let frame) = inputLog.frame(at: position, before: limit) {
            position = frame.end
            let nic = Self.nic(of: frame)
            guard let port = attachment.ports.first(where: { $0.nic.index == nic }),
                !stuck.contains(nic), replay(frame, to: port, deadline: deadline)
            else {
                report.refusedFrames += 1
                stuck.insert(nic)
                continue
            }
            report.replayedFrames += 1
        }
        // All of it is QEMU's before the guest runs: what comes from the network then comes after it.
        for port in attachment.ports {
            while ftvm_gate_unread(port.replay) > 0,
                MonotonicClock.nowNanoseconds() < deadline
            {
                usleep(50)
            }
        }
    }

    /// Gives one frame of a lost epoch to a guest that stands still; waits no longer than until `deadline`.
    /// - Returns: false when QEMU did not take it; nothing may be sent after it.
    private func replay(_ frame: LoggedFrame, to port: GateAttachment.Port, deadline: UInt64)
        -> Bool
    {
        guard let start = frame.bytes.baseAddress else { return true }
        let wanted = frameHeaderBytes(port)
        let body = frame.bytes.count - frame.headerBytes
        // QEMU's reader ends the connection over a frame that is longer than its buffer, and a NIC its queue over one
        // that is none.
        guard body >= Self.ethernetHeaderBytes, wanted + body <= FrameLog.largestFrameBytes else {
            return true
        }
        header(of: frame, bytes: wanted)
        var length = UInt32(wanted + body).bigEndian
        return withUnsafeBytes(of: &length) { length in
            guard let lengthStart = length.baseAddress else { return false }
            return sendAll(port.replay, lengthStart, 4, deadline)
                && sendAll(port.replay, prefix, wanted, deadline)
                && sendAll(port.replay, start + frame.headerBytes, body, deadline)
        }
    }

    private func sendAll(
        _ socket: Int32, _ bytes: UnsafeRawPointer, _ count: Int, _ deadline: UInt64
    ) -> Bool {
        var done = 0
        while done < count {
            let sent = ftvm_gate_send(socket, bytes + done, count - done, nil, 0)
            if sent > 0 {
                done += sent
            } else if sent == -Int(EAGAIN) {
                guard MonotonicClock.nowNanoseconds() < deadline else { return false }
                _ = ftvm_socket_wait(socket, true, 1_000)
            } else {
                return false
            }
        }
        return true
    }
}
