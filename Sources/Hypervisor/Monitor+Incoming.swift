import Foundation
import Model

extension Monitor {
    /// Starts loading a state into a QEMU that waits with `-incoming defer`; returns at once.
    /// - Parameter uri: `fd:NAME` after `giveDescriptor`, `exec:COMMAND`, ...
    package func migrateIncoming(uri: String) throws {
        _ = try execute("migrate-incoming", arguments: "{\"uri\":\(JSONText.quote(uri))}")
    }

    /// Loads a state and waits until the machine is ready for `cont`.
    /// - Throws: `.failedPrecondition` when QEMU says that the state cannot be loaded,
    ///   `.unavailable` when it ends over it (QEMU does that by default), `.timedOut`.
    package func loadIncoming(uri: String, timeoutMilliseconds: Int) throws {
        let deadline = MonotonicDeadline(millisecondsFromNow: timeoutMilliseconds)
        try migrateIncoming(uri: uri)
        while true {
            let state = try status()
            if state.status != "inmigrate" { return }
            if let failure = try incomingFailure() {
                throw FtvmError(
                    .failedPrecondition, "waiting QEMU of \(label) cannot load the device state",
                    cause: failure)
            }
            guard !deadline.hasPassed else {
                throw FtvmError(
                    .timedOut, "waiting QEMU of \(label) has not loaded the device state",
                    cause: "still \(state.status) after \(timeoutMilliseconds) ms")
            }
            // QEMU reports the end of a load only to clients that asked for MIGRATION events
            // beforehand, which libvirt's monitor does not pass on: so it is looked for.
            Thread.sleep(forTimeInterval: 0.000_5)
        }
    }

    private func incomingFailure() throws -> String? {
        let answer = try execute("query-migrate").decode(MigrationAnswer.self)
        guard answer.status == "failed" else { return nil }
        return answer.errorDescription ?? "QEMU does not say why"
    }
}

private struct MigrationAnswer: Decodable {
    let status: String?
    let errorDescription: String?
    enum CodingKeys: String, CodingKey {
        case status
        case errorDescription = "error-desc"
    }
}
