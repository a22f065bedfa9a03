import Foundation
import Model

/// What a monitor command returned.
package struct MonitorReply: Hashable, Sendable {
    /// The JSON text of the returned value.
    package let json: String

    package init(json: String) { self.json = json }

    /// The returned value.
    /// - Throws: `FtvmError(.unavailable)` when it is not of this type.
    package func decode<Value: Decodable>(_ type: Value.Type) throws -> Value {
        do {
            return try JSONDecoder().decode(type, from: Data(json.utf8))
        } catch {
            throw FtvmError(
                .unavailable, "QEMU's monitor answered something unexpected",
                cause: "\(json.prefix(200)): \(error)")
        }
    }
}

/// Something that QEMU reported of its own accord.
package struct MonitorEvent: Hashable, Sendable {
    /// STOP, RESUME, SHUTDOWN, RESET, GUEST_PANICKED, ...
    package let name: String
    /// The whole event as JSON text.
    package let json: String

    package init(name: String, json: String) {
        self.name = name
        self.json = json
    }
}

/// What the caller of a monitor has to do while it waits for QEMU. QEMU's main thread serves the monitor, and may itself
/// be waiting until somebody reads what it sends elsewhere: whoever should read that and waits for the monitor instead
/// waits for ever.
package protocol MonitorAttendant: AnyObject {
    /// Readable when there is something to do.
    var descriptors: [Int32] { get }
    /// Called on the waiting thread; must not block.
    func attend()
}

/// A way to talk to one QEMU's monitor. Calls block the caller's thread, at most for the time
/// given; one call is under way at a time, a second one waits for its turn within its own time.
///
/// Every call throws `FtvmError`: `.unavailable` when QEMU is gone (the connection stays so),
/// `.timedOut` when it does not answer in time, and the code that fits when QEMU refuses.
package protocol Monitor: AnyObject, Sendable {
    /// The domain's name, for messages.
    var label: String { get }

    /// Runs a QMP command.
    /// - Parameters:
    ///   - arguments: a JSON object as text; nil for none.
    ///   - descriptor: an open file to hand over with the command (`getfd`, `add-fd`); the caller
    ///     keeps its own.
    func execute(
        _ command: String, arguments: String?, descriptor: Int32?, timeoutMilliseconds: Int
    ) throws -> MonitorReply

    /// Pauses the guest and drains block I/O (QMP `stop`).
    func stop(timeoutMilliseconds: Int) throws
    /// Lets the guest run (QMP `cont`).
    func cont(timeoutMilliseconds: Int) throws
    /// Whether the guest has run or was reset since `stop` returned last, by whose word ever:
    /// libvirt takes a guest that we have stopped for paused, and lets its users resume it.
    func hasChangedSinceStop() throws -> Bool
    /// Saves CPU and device state without RAM to a path as QEMU sees it, such as `/dev/fdset/1`
    /// (QMP `xen-save-devices-state` with `live: false`; the guest must be stopped).
    func saveDeviceState(path: String, timeoutMilliseconds: Int) throws

    /// Whether the guest runs. When it does not, `hasChangedSinceStop` counts from here.
    func isRunning(attending: (any MonitorAttendant)?) throws -> Bool
    /// `stop` and `saveDeviceState`, each with the whole time. Where the way to QEMU allows it QEMU has both commands at
    /// once, and saves while `whileSaving` runs, which is called when the guest stands still; it can ask whether
    /// QEMU has finished.
    /// - Returns: whether the guest ran; if not, `whileSaving` was not called and what was saved is of no use. Where that
    ///   cannot be told it is what `isRunning` has said before.
    /// - Throws: also when `whileSaving` does; QEMU has finished then all the same.
    func stopAndSave(
        path: String, timeoutMilliseconds: Int, attending: (any MonitorAttendant)?,
        whileSaving: (_ isSaved: () -> Bool) throws -> Void
    ) throws -> Bool
    /// Whether commands are so slow that `saveInPassing` pays.
    var savesInPassing: Bool { get }
    /// `cont`; `meanwhile` is called in any case, where possible while QEMU is at it.
    func cont(
        timeoutMilliseconds: Int, attending: (any MonitorAttendant)?, meanwhile: () -> Void
    ) throws

    /// Makes the call that is under way, and every later one, fail with `.unavailable`. May be
    /// called from any thread.
    func interrupt()
}

/// The time that calls get when nothing else is said, in milliseconds.
package enum MonitorTimeout {
    package static let defaultMilliseconds = 5_000
}

/// How QEMU's machine runs (QMP `query-status`).
package struct QEMURunState: Hashable, Sendable, Decodable {
    /// running, paused, inmigrate, prelaunch, shutdown, internal-error, guest-panicked, ...
    package let status: String
    package let running: Bool

    package init(status: String, running: Bool) {
        self.status = status
        self.running = running
    }
}

package struct QEMUVersion: Hashable, Sendable, Comparable, Decodable, CustomStringConvertible {
    package let major: Int
    package let minor: Int
    package let micro: Int

    package init(major: Int, minor: Int, micro: Int) {
        self.major = major
        self.minor = minor
        self.micro = micro
    }

    package var description: String { "\(major).\(minor).\(micro)" }
    package static func < (left: QEMUVersion, right: QEMUVersion) -> Bool {
        (left.major, left.minor, left.micro) < (right.major, right.minor, right.micro)
    }
}

extension Monitor {
    package func execute(
        _ command: String, arguments: String? = nil,
        timeoutMilliseconds: Int = MonitorTimeout.defaultMilliseconds
    ) throws -> MonitorReply {
        try execute(
            command, arguments: arguments, descriptor: nil,
            timeoutMilliseconds: timeoutMilliseconds)
    }

    package func stop() throws {
        try stop(timeoutMilliseconds: MonitorTimeout.defaultMilliseconds)
    }

    package func cont() throws {
        try cont(timeoutMilliseconds: MonitorTimeout.defaultMilliseconds)
    }

    package func saveDeviceState(path: String) throws {
        try saveDeviceState(
            path: path, timeoutMilliseconds: MonitorTimeout.defaultMilliseconds)
    }

    package var savesInPassing: Bool { false }

    /// Looks at its state, which tells the same but for a guest that was stopped again. One that was
    /// reset is in `prelaunch`.
    package func hasChangedSinceStop() throws -> Bool { try status().status != "paused" }

    package func isRunning(attending: (any MonitorAttendant)? = nil) throws -> Bool {
        try status().running
    }

    package func stopAndSave(
        path: String, timeoutMilliseconds: Int, attending: (any MonitorAttendant)?,
        whileSaving: (_ isSaved: () -> Bool) throws -> Void
    ) throws -> Bool {
        try stop(timeoutMilliseconds: timeoutMilliseconds)
        try whileSaving({ false })
        try saveDeviceState(path: path, timeoutMilliseconds: timeoutMilliseconds)
        return true
    }

    package func cont(
        timeoutMilliseconds: Int, attending: (any MonitorAttendant)?, meanwhile: () -> Void
    ) throws {
        defer { meanwhile() }
        try cont(timeoutMilliseconds: timeoutMilliseconds)
    }

    package func status() throws -> QEMURunState {
        try execute("query-status").decode(QEMURunState.self)
    }

    package func version() throws -> QEMUVersion {
        try execute("query-version").decode(VersionAnswer.self).qemu
    }

    /// Runs a command of the human monitor; its output, with line feeds only.
    package func humanMonitorCommand(
        _ line: String, timeoutMilliseconds: Int = MonitorTimeout.defaultMilliseconds
    ) throws -> String {
        let reply = try execute(
            "human-monitor-command", arguments: "{\"command-line\":\(JSONText.quote(line))}",
            timeoutMilliseconds: timeoutMilliseconds)
        return try reply.decode(String.self).replacing("\r\n", with: "\n")
    }

    /// Hands an open file to QEMU under a name, for `fd:NAME` addresses (QMP `getfd`). A file of
    /// the same name is replaced.
    package func giveDescriptor(_ descriptor: Int32, name: String) throws {
        _ = try execute(
            "getfd", arguments: "{\"fdname\":\(JSONText.quote(name))}", descriptor: descriptor,
            timeoutMilliseconds: MonitorTimeout.defaultMilliseconds)
    }

    /// Closes a file that `giveDescriptor` gave and nothing has taken.
    package func closeDescriptor(name: String) throws {
        _ = try execute("closefd", arguments: "{\"fdname\":\(JSONText.quote(name))}")
    }

    /// Adds an open file to a descriptor set, which QEMU then opens as `/dev/fdset/<set>` (QMP
    /// `add-fd`). It must have been opened with the access mode that QEMU is going to ask for:
    /// `O_WRONLY` for `saveDeviceState`; with another one QEMU says "Permission denied". The file
    /// offset is shared with the caller's, and QEMU neither rewinds nor truncates. Returns the
    /// number that the descriptor has in QEMU.
    package func addDescriptor(_ descriptor: Int32, toSet set: Int) throws -> Int32 {
        try execute(
            "add-fd", arguments: "{\"fdset-id\":\(set)}", descriptor: descriptor,
            timeoutMilliseconds: MonitorTimeout.defaultMilliseconds
        ).decode(DescriptorAnswer.self).fd
    }

    package func removeDescriptorSet(_ set: Int) throws {
        _ = try execute("remove-fd", arguments: "{\"fdset-id\":\(set)}")
    }

    /// Ends QEMU in an orderly way (QMP `quit`); that the connection ends is a success.
    package func quit() throws {
        do {
            _ = try execute("quit")
        } catch let error as FtvmError where error.code == .unavailable {}
    }
}

extension FtvmError {
    /// The error that QEMU answered a command with.
    /// - Parameter json: the value of `error`: an object with `class` and `desc`.
    init(refusing command: String, by label: String, _ json: String) {
        let answer = try? JSONDecoder().decode(ErrorAnswer.self, from: Data(json.utf8))
        let code: FtvmError.Code =
            switch answer?.class {
            case "CommandNotFound": .unsupported
            case "DeviceNotFound": .notFound
            default: .failedPrecondition
            }
        self.init(
            code, "QEMU of \(label) refuses \(command)", cause: answer?.desc ?? json)
    }
}

private struct ErrorAnswer: Decodable {
    let `class`: String
    let desc: String
}

private struct VersionAnswer: Decodable {
    let qemu: QEMUVersion
}

private struct DescriptorAnswer: Decodable {
    let fd: Int32
}
