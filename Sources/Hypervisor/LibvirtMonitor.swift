import CLibvirt
import Dispatch
import Foundation
import Model
import Synchronization

/// The monitor of a running domain through libvirt, for domains that were not started with a socket
/// of ours. Slower than `QMPConnection` (libvirt in between), and libvirt marks the domain as
/// tainted.
///
/// libvirt's call has no time limit of its own, so it runs on a queue of its own and is abandoned
/// when its time is up; it then still occupies the queue until libvirt returns. Time in which libvirt keeps
/// the domain for another call does not count: `detach-device`, say, waits for the guest for up to 5 s, and a guest that
/// we have stopped does not answer it before QEMU has had our `cont`.
package final class LibvirtMonitor: Monitor {
    /// Calls that may wait for libvirt at a time.
    private static let maximumPending = 8

    private struct State {
        var pending: [ObjectIdentifier: DispatchSemaphore] = [:]
        var isInterrupted = false
    }

    package let label: String
    private let domain: LibvirtDomain
    private let queue: DispatchQueue
    /// For asking libvirt what it does with the domain while a call waits.
    private let inquiries: DispatchQueue
    private let state = Mutex(State())

    init(domain: LibvirtDomain) {
        self.label = domain.name
        self.domain = domain
        self.queue = DispatchQueue(label: "ftvm.libvirt-monitor.\(domain.name)")
        self.inquiries = DispatchQueue(label: "ftvm.libvirt-monitor.\(domain.name).inquiries")
    }

    package func execute(
        _ command: String, arguments: String?, descriptor: Int32?, timeoutMilliseconds: Int
    ) throws -> MonitorReply {
        try run(
            command, arguments: arguments, descriptor: descriptor,
            timeoutMilliseconds: timeoutMilliseconds, attending: nil)
    }

    private func run(
        _ command: String, arguments: String? = nil, descriptor: Int32? = nil,
        timeoutMilliseconds: Int, attending: (any MonitorAttendant)?
    ) throws -> MonitorReply {
        var line = "{\"execute\":\(JSONText.quote(command))"
        if let arguments { line += ",\"arguments\":\(arguments)" }
        line += "}"
        // The call may outlive this function when it is abandoned: it gets a descriptor of its own.
        let passed = try descriptor.map { try OwnedDescriptor(duplicating: $0) }
        let text = try call(timeoutMilliseconds, command, attending) { [domain, label, line] in
            try Self.command(line, command, domain, label, passed)
        }
        return try Self.reply(text, to: command, label)
    }

    package func stop(timeoutMilliseconds: Int) throws {
        _ = try execute("stop", timeoutMilliseconds: timeoutMilliseconds)
    }

    package func cont(timeoutMilliseconds: Int) throws {
        _ = try execute("cont", timeoutMilliseconds: timeoutMilliseconds)
    }

    package func saveDeviceState(path: String, timeoutMilliseconds: Int) throws {
        _ = try execute(
            "xen-save-devices-state",
            arguments: "{\"filename\":\(JSONText.quote(path)),\"live\":false}",
            timeoutMilliseconds: timeoutMilliseconds)
    }

    package func isRunning(attending: (any MonitorAttendant)?) throws -> Bool {
        try run(
            "query-status", timeoutMilliseconds: MonitorTimeout.defaultMilliseconds,
            attending: attending
        ).decode(QEMURunState.self).running
    }

    package var savesInPassing: Bool { true }

    /// One after the other: libvirt passes one command at a time.
    package func stopAndSave(
        path: String, timeoutMilliseconds: Int, attending: (any MonitorAttendant)?,
        whileSaving: (_ isSaved: () -> Bool) throws -> Void
    ) throws -> Bool {
        _ = try run("stop", timeoutMilliseconds: timeoutMilliseconds, attending: attending)
        try whileSaving({ false })
        try saveDeviceState(path: path, timeoutMilliseconds: timeoutMilliseconds)
        return true
    }

    package func cont(
        timeoutMilliseconds: Int, attending: (any MonitorAttendant)?, meanwhile: () -> Void
    ) throws {
        defer { meanwhile() }
        _ = try run("cont", timeoutMilliseconds: timeoutMilliseconds, attending: attending)
    }

    package func interrupt() {
        state.withLock { state in
            state.isInterrupted = true
            for semaphore in state.pending.values { semaphore.signal() }
        }
    }

    private static func command(
        _ line: String, _ command: String, _ domain: LibvirtDomain, _ label: String,
        _ passed: OwnedDescriptor?
    ) throws -> String {
        var result: UnsafeMutablePointer<CChar>?
        let status: Int32
        if let passed {
            var number = passed.number
            status = virDomainQemuMonitorCommandWithFiles(
                domain.pointer, line, 1, &number, nil, nil, &result, 0)
        } else {
            status = virDomainQemuMonitorCommand(domain.pointer, line, &result, 0)
        }
        guard status == 0, let result else {
            let error = LibvirtError.last("cannot run \(command) in the monitor of \(label)")
            // "domain is not running": QEMU is gone, the same as on a direct connection.
            guard virDomainIsActive(domain.pointer) != 1 else { throw error }
            throw FtvmError(.unavailable, "QEMU of \(label) is gone", cause: error.cause)
        }
        defer { free(result) }
        return String(cString: result)
    }

    private static func reply(
        _ text: String, to command: String, _ label: String
    ) throws -> MonitorReply {
        var text = text
        return try text.withUTF8 { utf8 in
            let bytes = UnsafeRawBufferPointer(utf8)
            let line = QMPLine(bytes)
            let value = String(decoding: bytes[line.value], as: UTF8.self)
            switch line.kind {
            case .success: return MonitorReply(json: value)
            case .failure: throw FtvmError(refusing: command, by: label, value)
            case .event, .greeting, .garbage:
                throw FtvmError(
                    .unavailable, "monitor of \(label) answered something unexpected",
                    cause: String(decoding: bytes.prefix(200), as: UTF8.self))
            }
        }
    }

    /// Runs `body` on the queue and waits for it no longer than allowed.
    private func call(
        _ timeoutMilliseconds: Int, _ command: String, _ attendant: (any MonitorAttendant)?,
        _ body: @escaping @Sendable () throws -> String
    ) throws -> String {
        let outcome = Outcome<Result<String, any Error>>()
        let key = ObjectIdentifier(outcome)
        try state.withLock { state in
            guard !state.isInterrupted else { throw interrupted }
            guard state.pending.count < Self.maximumPending else {
                throw FtvmError(
                    .unavailable, "monitor of \(label) does not answer through libvirt",
                    cause: "\(state.pending.count) commands wait already")
            }
            state.pending[key] = outcome.done
        }
        queue.async { [self] in
            let result = Result { try body() }
            state.withLock { $0.pending[key] = nil }
            outcome.end(with: result)
        }
        var isDone = outcome.done.wait(
            MonotonicDeadline(millisecondsFromNow: timeoutMilliseconds), attending: attendant)
        let end = MonotonicDeadline(
            millisecondsFromNow: Self.maximumHeldMilliseconds + timeoutMilliseconds)
        while isDone == .timedOut, !end.hasPassed,
            let left = millisecondsLeft(of: timeoutMilliseconds)
        {
            isDone = outcome.done.wait(
                MonotonicDeadline(millisecondsFromNow: left), attending: attendant)
        }
        if let result = outcome.result { return try result.get() }
        guard isDone == .timedOut else { throw interrupted }
        throw FtvmError(
            .timedOut, "QEMU of \(label) does not answer \(command) in time",
            cause: "nothing through libvirt within \(timeoutMilliseconds) ms",
            advice: "QEMU or libvirtd may hang")
    }

    /// How long libvirt lets a call wait for the domain before it refuses it.
    private static let maximumHeldMilliseconds = 30_000
    /// Between two looks at a domain that is kept from us.
    private static let lookMilliseconds = 100
    /// How long libvirt's answer to what it does may take; it needs neither QEMU nor the domain for it.
    private static let inquiryMilliseconds = 1_000

    /// How much longer a call may wait whose time is up; nil when QEMU has had a command for all that time, or libvirt
    /// says nothing.
    private func millisecondsLeft(of timeoutMilliseconds: Int) -> Int? {
        let answer = Outcome<DomainControl>()
        inquiries.async { [domain] in answer.end(with: DomainControl(domain)) }
        _ = answer.done.wait(timeout: .now() + .milliseconds(Self.inquiryMilliseconds))
        switch answer.result {
        case .inMonitor(let milliseconds):
            let left = timeoutMilliseconds - milliseconds
            return left > 0 ? left : nil
        case .kept: return Self.lookMilliseconds
        case .unusable, nil: return nil
        }
    }

    private var interrupted: FtvmError {
        FtvmError(
            .unavailable, "monitor connection to \(label) was given up",
            cause: "another part of ftvm interrupted it")
    }
}

/// What libvirt does with a running domain (`virDomainGetControlInfo`, libvirt 9 to 11).
private enum DomainControl: Sendable {
    /// QEMU has had a command for so long.
    case inMonitor(milliseconds: Int)
    /// Nothing, or a call has the domain that waits for something else than QEMU's answer. libvirt calls that an internal
    /// error.
    case kept
    /// A job for minutes (`dump`, `save`), or no domain and no answer.
    case unusable

    init(_ domain: LibvirtDomain) {
        var info = virDomainControlInfo()
        guard virDomainGetControlInfo(domain.pointer, &info, 0) == 0 else {
            self = .unusable
            return
        }
        switch virDomainControlState(rawValue: info.state) {
        case VIR_DOMAIN_CONTROL_OCCUPIED: self = .inMonitor(milliseconds: Int(info.stateTime))
        case VIR_DOMAIN_CONTROL_OK: self = .kept
        case VIR_DOMAIN_CONTROL_ERROR
        where virDomainControlErrorReason(rawValue: info.details)
            == VIR_DOMAIN_CONTROL_ERROR_REASON_INTERNAL:
            self = .kept
        default: self = .unusable
        }
    }
}

/// A duplicate of a descriptor, closed with the last reference.
private final class OwnedDescriptor: Sendable {
    let number: Int32

    init(duplicating descriptor: Int32) throws {
        number = fcntl(descriptor, F_DUPFD_CLOEXEC, 3)
        guard number >= 0 else {
            throw FtvmError(
                .resourceExhausted, "cannot duplicate a descriptor",
                cause: String(cString: strerror(errno)))
        }
    }

    deinit { close(number) }
}
