import CLinux
import Dispatch
import Foundation
import Model
import Synchronization

/// A QMP connection of our own, over a Unix socket that QEMU listens on: for the epochs, and for
/// all that wants to know at once when QEMU is gone. Blocking, on the caller's thread, with a
/// deadline on every call; the commands of an epoch (`QMPConnection+Epoch.swift`) allocate nothing.
///
/// QEMU serves one client of such a socket at a time. A second one connects, and then waits for the
/// greeting until its time is up.
///
/// Safe to share: `turn` admits one caller at a time to everything below it.
package final class QMPConnection: Monitor, @unchecked Sendable {
    package struct Limits: Sendable {
        /// The longest line that is accepted, in bytes.
        package var lineBytes = 8 << 20
        /// Events kept until somebody takes them; the oldest is dropped for a new one.
        package var events = 64
        /// Replies still owed to calls that timed out, after which the connection is given up.
        package var lateReplies = 16
        package init() {}
    }

    package let label: String
    private let descriptor: Int32
    private let limits: Limits
    private let turn = DispatchSemaphore(value: 1)
    private let isInterrupted = Atomic<Bool>(false)

    // Everything below belongs to whoever has the turn.
    var input: QMPInput
    private var output: [UInt8] = []
    private var events: EventRing
    /// What the events so far say about the guest.
    var course = GuestCourse()
    /// Commands whose callers gave up: QEMU answers in order, so as many answers are skipped.
    private var lateReplies = 0
    /// Why the connection is of no use any more.
    private var failure: FtvmError?

    /// Connects and negotiates.
    /// - Parameters:
    ///   - path: the socket that QEMU listens on.
    ///   - label: the domain's name, for messages.
    /// - Throws: `FtvmError(.unavailable)` when nothing listens there, `.timedOut` when there is no
    ///   greeting (QEMU hangs, or another client is connected).
    package init(
        path: String, label: String,
        timeoutMilliseconds: Int = MonitorTimeout.defaultMilliseconds, limits: Limits = Limits()
    ) throws {
        let deadline = MonotonicDeadline(millisecondsFromNow: timeoutMilliseconds)
        self.label = label
        self.limits = limits
        self.descriptor = try Self.connect(path: path, label: label, deadline: deadline)
        self.input = QMPInput(descriptor: descriptor, label: label, lineBytes: limits.lineBytes)
        self.events = EventRing(limit: limits.events)
        output.reserveCapacity(4096)
        do {
            try awaitGreeting(deadline)
            try negotiate(deadline)
        } catch let error as FtvmError where error.code == .timedOut {
            throw FtvmError(
                .timedOut, "QEMU of \(label) does not answer on \(path)",
                cause: "no greeting within \(timeoutMilliseconds) ms",
                advice: "see whether another client is connected to that socket: QEMU serves one")
        }
    }

    deinit {
        input.release()
        _ = ftvm_socket_close(descriptor)
    }

    /// Whoever waits for an answer is told soon when the process that owes it is ending. Large guests take their
    /// time to end, and their sockets stay open till then.
    package func setPeerEnding(_ isEnding: (() -> Bool)?) {
        turn.wait()
        defer { turn.signal() }
        input.isPeerEnding = isEnding
    }

    /// Events dropped because nobody took them in time.
    package var droppedEvents: Int {
        turn.wait()
        defer { turn.signal() }
        return events.dropped
    }

    // MARK: Monitor

    package func execute(
        _ command: String, arguments: String?, descriptor passed: Int32?, timeoutMilliseconds: Int
    ) throws -> MonitorReply {
        let deadline = MonotonicDeadline(millisecondsFromNow: timeoutMilliseconds)
        return try withTurn(deadline) {
            begin("{\"execute\":")
            append(quoting: command)
            if let arguments {
                append(",\"arguments\":")
                output.append(contentsOf: arguments.utf8.lazy.map { $0 == 0x0A ? 0x20 : $0 })
            }
            append("}\n")
            try sendOutput(passed: passed, deadline)
            let value = try reply(to: command, deadline)
            return MonitorReply(json: input.text(value))
        }
    }

    package func interrupt() {
        isInterrupted.store(true, ordering: .releasing)
        // The descriptor is closed only when nobody holds this object any more.
        _ = ftvm_socket_shutdown(descriptor)
    }

    /// Takes the events that came so far, oldest first, after looking for new ones for at most this
    /// long (0: only what is there already).
    /// - Throws: `FtvmError(.unavailable)` when QEMU is gone and no event is left.
    package func takeEvents(waitMilliseconds: Int = 0) throws -> [MonitorEvent] {
        let deadline = MonotonicDeadline(millisecondsFromNow: waitMilliseconds)
        turn.wait()
        defer { turn.signal() }
        if failure == nil {
            do {
                try readEvents(deadline)
            } catch let error as FtvmError where error.code != .timedOut {
                if events.isEmpty { throw error }
            } catch {}
        } else if events.isEmpty, let failure {
            throw failure
        }
        return events.takeAll()
    }

    // MARK: Exchange; only with the turn

    func withTurn<Result>(
        _ deadline: MonotonicDeadline, attending: (any MonitorAttendant)? = nil,
        _ body: () throws -> Result
    ) throws -> Result {
        guard turn.wait(deadline, attending: attending) == .success else {
            throw FtvmError(
                .timedOut, "monitor of \(label) is busy", cause: "another call is under way on it")
        }
        defer { turn.signal() }
        if let failure { throw failure }
        guard let attending else { return try body() }
        input.setAttendant(attending)
        defer { input.setAttendant(nil) }
        return try body()
    }

    /// Begins what `sendOutput` is to send.
    func begin(_ text: StaticString) {
        output.removeAll(keepingCapacity: true)
        append(text)
    }

    func append(_ text: StaticString) {
        output.append(
            contentsOf: UnsafeBufferPointer(start: text.utf8Start, count: text.utf8CodeUnitCount))
    }

    func append(quoting text: String) { JSONText.appendQuoted(text, to: &output) }

    func sendOutput(passed: Int32? = nil, _ deadline: MonotonicDeadline) throws {
        do {
            try send(passed: passed, deadline)
        } catch {
            throw remember(error)
        }
    }

    /// Waits for the answer to the oldest command that has none yet; where its value stands in the input.
    /// - Parameter owed: answers that QEMU owes, this one included; all are given up when the time is up.
    func reply(
        to command: @autoclosure () -> String, owed: Int = 1, _ deadline: MonotonicDeadline
    ) throws -> Range<Int> {
        do {
            while true {
                let line = try input.nextLine(deadline)
                switch line.kind {
                case .event: note(event: line)
                case .greeting: break
                case .success, .failure:
                    if lateReplies > 0 {
                        lateReplies -= 1
                        continue
                    }
                    let value = input.absolute(line.value, of: line)
                    if line.kind == .success { return value }
                    throw FtvmError(refusing: command(), by: label, input.text(value))
                case .garbage: throw remember(input.garbage(line))
                }
            }
        } catch let error as FtvmError where error.code == .timedOut {
            lateReplies += owed
            if lateReplies > limits.lateReplies {
                throw remember(
                    FtvmError(
                        .unavailable, "QEMU of \(label) does not answer any more",
                        cause: "\(lateReplies) commands without an answer"))
            }
            throw FtvmError(
                .timedOut, "QEMU of \(label) does not answer \(command()) in time",
                advice: "QEMU may hang, in its storage for example; see its log")
        } catch let error as FtvmError
            where error.code == .unavailable || error.code == .resourceExhausted
        {
            throw remember(error)
        }
    }

    private func note(event line: QMPInput.Line) {
        events.append(input.bytes(line))
        // The value is the event's name in quotes.
        course.note(quotedEvent: input.bytes(input.absolute(line.value, of: line)))
    }

    /// Notes the events that are there, without waiting for more.
    func lookForEvents() throws {
        guard input.isReadable() else { return }
        do {
            try readEvents(MonotonicDeadline(millisecondsFromNow: 0))
        } catch let error as FtvmError where error.code == .timedOut {}
    }

    private func readEvents(_ deadline: MonotonicDeadline) throws {
        do {
            while true {
                // Without having to wait for more once there is something to return.
                let limit =
                    events.isEmpty ? deadline : MonotonicDeadline(millisecondsFromNow: 0)
                let line = try input.nextLine(limit)
                switch line.kind {
                case .event: note(event: line)
                case .greeting: break
                case .success, .failure: lateReplies = max(0, lateReplies - 1)
                case .garbage: throw input.garbage(line)
                }
            }
        } catch let error as FtvmError where error.code != .timedOut {
            throw remember(error)
        }
    }

    private func awaitGreeting(_ deadline: MonotonicDeadline) throws {
        while true {
            let line = try input.nextLine(deadline)
            if line.kind == .greeting { return }
            if line.kind == .garbage { throw input.garbage(line) }
        }
    }

    /// Begins the conversation. QEMU may still be at a command of a client that died, and gives its answer to us: of
    /// answers only those count that come after the one to our own first command, which is known by its mark.
    private func negotiate(_ deadline: MonotonicDeadline) throws {
        let mark = "\"ftvm-\(UInt64.random(in: .min ... .max))\""
        output.removeAll(keepingCapacity: true)
        append("{\"execute\":\"qmp_capabilities\",\"id\":")
        output.append(contentsOf: mark.utf8)
        append("}\n")
        try send(passed: nil, deadline)
        while true {
            let line = try input.nextLine(deadline)
            switch line.kind {
            case .greeting: continue
            case .event: note(event: line)
            case .garbage: throw input.garbage(line)
            case .success, .failure:
                guard input.text(line.range).contains(mark) else { continue }
                guard line.kind == .failure else { return }
                throw FtvmError(
                    refusing: "qmp_capabilities", by: label,
                    input.text(input.absolute(line.value, of: line)))
            }
        }
    }

    private func send(passed: Int32?, _ deadline: MonotonicDeadline) throws {
        var sent = 0
        while sent < output.count {
            let count = output.withUnsafeBytes { bytes in
                ftvm_socket_send(
                    descriptor, bytes.baseAddress?.advanced(by: sent), bytes.count - sent,
                    sent == 0 ? passed ?? -1 : -1)
            }
            if count > 0 {
                sent += count
            } else if count == -Int(EAGAIN) {
                let ready = ftvm_socket_wait(descriptor, true, deadline.remainingMicroseconds)
                // A command that is sent in part cannot be taken back: this is the end.
                guard ready == 1 || ready == -EINTR || !deadline.hasPassed else {
                    throw FtvmError(
                        .unavailable, "QEMU of \(label) takes no commands any more",
                        cause: "its monitor's socket is full")
                }
            } else if count != -Int(EINTR) {
                throw input.gone(cause: String(cString: strerror(Int32(-count))))
            }
        }
    }

    /// No error so far that no later call can recover from.
    var isUsable: Bool { failure == nil }

    /// Keeps an error that no later call can recover from.
    private func remember(_ error: any Error) -> FtvmError {
        let kept =
            isInterrupted.load(ordering: .acquiring)
            ? FtvmError(
                .unavailable, "monitor connection to \(label) was given up",
                cause: "another part of ftvm interrupted it")
            : FtvmError(wrappingGone: error, label: label)
        failure = kept
        return kept
    }

    private static func connect(
        path: String, label: String, deadline: MonotonicDeadline
    ) throws -> Int32 {
        while true {
            let result = ftvm_socket_connect_unix(path)
            if result >= 0 { return result }
            // The listener's queue is full: QEMU takes the next client when this one leaves.
            if result == -EAGAIN && !deadline.hasPassed {
                Thread.sleep(forTimeInterval: 0.005)
                continue
            }
            throw FtvmError(
                result == -EAGAIN
                    ? .timedOut : result == -EACCES ? .permissionDenied : .unavailable,
                "cannot connect to the monitor of \(label)",
                cause: "\(path): \(String(cString: strerror(-result)))",
                advice: "see whether QEMU of \(label) runs on this host")
        }
    }
}

extension FtvmError {
    /// What makes a connection useless is always `.unavailable`.
    fileprivate init(wrappingGone error: any Error, label: String) {
        if let known = error as? FtvmError, known.code == .unavailable {
            self = known
        } else {
            let cause = (error as? FtvmError).map { $0.cause ?? $0.message } ?? "\(error)"
            self.init(.unavailable, "monitor connection to \(label) is broken", cause: cause)
        }
    }
}
