import Dispatch
import Model

/// What the events of a QEMU say about its guest, in the order in which things happened (answers to commands stand
/// between them in that order too).
struct GuestCourse {
    /// nil: nothing has been heard yet.
    private(set) var isRunning: Bool?
    /// It ran, or was reset, since `markStopped`.
    private(set) var hasChanged = false
    /// It was stopped since `expectStop`.
    private(set) var hasStopped = false

    mutating func note(quotedEvent name: UnsafeRawBufferPointer) {
        if name.elementsEqual("\"STOP\"".utf8) {
            isRunning = false
            hasStopped = true
        } else if name.elementsEqual("\"RESUME\"".utf8) {
            isRunning = true
            hasChanged = true
        } else if name.elementsEqual("\"RESET\"".utf8) {
            hasChanged = true
        } else if name.elementsEqual("\"SUSPEND\"".utf8) {
            // The guest's own sleep (ACPI S3), which QEMU reports without STOP and RESUME.
            isRunning = false
        } else if name.elementsEqual("\"WAKEUP\"".utf8) {
            isRunning = true
            hasChanged = true
        }
    }

    mutating func learn(isRunning: Bool) { self.isRunning = isRunning }
    mutating func expectStop() { hasStopped = false }
    mutating func markStopped() { hasChanged = false }
}

/// The commands of an epoch.
extension QMPConnection {
    package func stop(timeoutMilliseconds: Int) throws {
        let deadline = MonotonicDeadline(millisecondsFromNow: timeoutMilliseconds)
        try withTurn(deadline) {
            begin("{\"execute\":\"stop\"}\n")
            try sendOutput(deadline)
            _ = try reply(to: "stop", deadline)
            course.markStopped()
        }
    }

    package func cont(timeoutMilliseconds: Int) throws {
        try cont(timeoutMilliseconds: timeoutMilliseconds, attending: nil, meanwhile: {})
    }

    package func cont(
        timeoutMilliseconds: Int, attending: (any MonitorAttendant)?, meanwhile: () -> Void
    ) throws {
        let deadline = MonotonicDeadline(millisecondsFromNow: timeoutMilliseconds)
        var isDone = false
        defer { if !isDone { meanwhile() } }
        try withTurn(deadline, attending: attending) {
            // Asleep: its answer to the command before has put us on QEMU's CPU, and it goes on when we leave it.
            begin("{\"execute\":\"cont\"}\n")
            try sendOutput(deadline)
            isDone = true
            meanwhile()
            _ = try reply(to: "cont", deadline)
        }
    }

    package func saveDeviceState(path: String, timeoutMilliseconds: Int) throws {
        let deadline = MonotonicDeadline(millisecondsFromNow: timeoutMilliseconds)
        try withTurn(deadline) {
            begin("")
            appendSave(path: path)
            try sendOutput(deadline)
            _ = try reply(to: Self.saveCommand, deadline)
        }
    }

    private static let saveCommand = "xen-save-devices-state"

    private func appendSave(path: String) {
        append("{\"execute\":\"xen-save-devices-state\",\"arguments\":{\"filename\":")
        append(quoting: path)
        append(",\"live\":false}}\n")
    }

    /// Costs one look into the socket: QEMU says when it stops and when it goes on, before it answers whoever wanted it.
    package func isRunning(attending: (any MonitorAttendant)?) throws -> Bool {
        let deadline = MonotonicDeadline(millisecondsFromNow: MonitorTimeout.defaultMilliseconds)
        return try withTurn(deadline, attending: attending) {
            try lookForEvents()
            if course.isRunning == nil {
                begin("{\"execute\":\"query-status\"}\n")
                try sendOutput(deadline)
                let value = try reply(to: "query-status", deadline)
                let state = try MonitorReply(json: input.text(value)).decode(QEMURunState.self)
                course.learn(isRunning: state.running)
            }
            let isRunning = course.isRunning ?? false
            if !isRunning { course.markStopped() }
            return isRunning
        }
    }

    /// Costs one look into the socket: QEMU reports RESUME before the first CPU runs
    /// (`vm_prepare_start` in softmmu/cpus.c).
    package func hasChangedSinceStop() throws -> Bool {
        let deadline = MonotonicDeadline(millisecondsFromNow: MonitorTimeout.defaultMilliseconds)
        return try withTurn(deadline) {
            try lookForEvents()
            return course.hasChanged
        }
    }

    /// Both commands go out together. QEMU reports STOP before it answers a `stop` that has stopped something; a guest
    /// that stood still already makes no event (`do_vm_stop` in softmmu/cpus.c).
    package func stopAndSave(
        path: String, timeoutMilliseconds: Int, attending: (any MonitorAttendant)?,
        whileSaving: (_ isSaved: () -> Bool) throws -> Void
    ) throws -> Bool {
        let stopDeadline = MonotonicDeadline(millisecondsFromNow: timeoutMilliseconds)
        return try withTurn(stopDeadline, attending: attending) {
            input.staysAwake = true
            defer { input.staysAwake = false }
            begin("{\"execute\":\"stop\"}\n")
            appendSave(path: path)
            course.expectStop()
            try sendOutput(stopDeadline)
            var failure: (any Error)?
            do {
                _ = try reply(to: "stop", owed: 2, stopDeadline)
                course.markStopped()
            } catch let error as FtvmError where isUsable {
                // Refused. The other answer comes all the same.
                if error.code == .timedOut { throw error }
                failure = error
            }
            let hasStopped = failure == nil && course.hasStopped
            if hasStopped {
                do {
                    try whileSaving({ input.isReadable() })
                } catch {
                    failure = error
                }
            }
            let saveDeadline = MonotonicDeadline(millisecondsFromNow: timeoutMilliseconds)
            do {
                _ = try reply(to: Self.saveCommand, saveDeadline)
            } catch let error as FtvmError {
                guard isUsable, error.code != .timedOut else { throw error }
                if hasStopped, failure == nil { failure = error }
            }
            if let failure { throw failure }
            return hasStopped
        }
    }
}

extension DispatchSemaphore {
    /// Waits until the deadline, and looks after the attendant meanwhile.
    func wait(
        _ deadline: MonotonicDeadline, attending: (any MonitorAttendant)?
    ) -> DispatchTimeoutResult {
        while true {
            let left = deadline.remainingMicroseconds
            let slice = attending == nil ? left : min(left, 500)
            let result = wait(timeout: .now() + .microseconds(Int(slice)))
            if result == .success || deadline.hasPassed { return result }
            attending?.attend()
        }
    }
}
