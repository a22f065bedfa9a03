import CLibvirt

/// How a domain stands with libvirt.
package struct DomainStatus: Hashable, Sendable {
    package var name: String
    /// Lower case with dashes.
    package var uuid: String
    package var state: DomainState
    /// Why it is in this state, in libvirt's words: booted, user, migration, crashed, ...
    package var reason: String
    /// There is a QEMU process.
    package var isActive: Bool
    /// libvirt keeps it when it is shut off.
    package var isPersistent: Bool

    package init(
        name: String, uuid: String, state: DomainState, reason: String, isActive: Bool,
        isPersistent: Bool
    ) {
        self.name = name
        self.uuid = uuid
        self.state = state
        self.reason = reason
        self.isActive = isActive
        self.isPersistent = isPersistent
    }
}

/// libvirt's states of a domain; the raw value is the word that `virsh` prints.
package enum DomainState: String, Sendable, CaseIterable {
    case noState = "no state"
    case running
    case idle
    case paused
    case inShutdown = "in shutdown"
    case shutOff = "shut off"
    case crashed
    case suspended = "pmsuspended"

    package init(number: Int32) {
        self =
            switch virDomainState(rawValue: UInt32(bitPattern: number)) {
            case VIR_DOMAIN_RUNNING: .running
            case VIR_DOMAIN_BLOCKED: .idle
            case VIR_DOMAIN_PAUSED: .paused
            case VIR_DOMAIN_SHUTDOWN: .inShutdown
            case VIR_DOMAIN_SHUTOFF: .shutOff
            case VIR_DOMAIN_CRASHED: .crashed
            case VIR_DOMAIN_PMSUSPENDED: .suspended
            default: .noState
            }
    }

    /// The word for a reason's number, as `virsh domstate --reason` has it (libvirt-domain.h, the
    /// enumerations below `virDomainState`).
    package func reason(number: Int32) -> String {
        let words: [String] =
            switch self {
            case .running:
                [
                    "unknown", "booted", "migrated", "restored", "from snapshot", "unpaused",
                    "migration canceled", "save canceled", "event wakeup", "crashed", "post-copy",
                    "post-copy failed",
                ]
            case .paused:
                [
                    "unknown", "user", "migrating", "saving", "dumping", "I/O error", "watchdog",
                    "from snapshot", "shutting down", "creating snapshot", "crashed", "starting up",
                    "post-copy", "post-copy failed", "api error",
                ]
            case .inShutdown: ["unknown", "user"]
            case .shutOff:
                [
                    "unknown", "shutdown", "destroyed", "crashed", "migrated", "saved", "failed",
                    "from snapshot", "daemon",
                ]
            case .crashed: ["unknown", "panicked"]
            case .noState, .idle, .suspended: ["unknown"]
            }
        return words.indices.contains(Int(number)) ? words[Int(number)] : "unknown"
    }
}
