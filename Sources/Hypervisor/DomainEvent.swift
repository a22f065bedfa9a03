import CLibvirt

/// Something that libvirt reported about one of its domains.
package struct DomainEvent: Hashable, Sendable {
    package var name: String
    /// Lower case with dashes.
    package var uuid: String
    package var kind: Kind

    package init(name: String, uuid: String, kind: Kind) {
        self.name = name
        self.uuid = uuid
        self.kind = kind
    }

    package enum Kind: Hashable, Sendable {
        /// The persistent definition is new, or has changed.
        case defined
        case undefined
        case started(StartReason)
        case suspended(SuspendReason)
        case resumed(ResumeReason)
        /// QEMU is gone.
        case stopped(StopReason)
        /// The guest has shut down, or QEMU was told to end; it may still be there. `stopped`
        /// follows.
        case shutdown(ShutdownReason)
        /// The guest has suspended itself to memory or disk.
        case powerManagementSuspended
        /// The guest says that it has crashed (pvpanic).
        case crashed
        /// The guest was reset.
        case rebooted
    }

    package enum StartReason: String, Sendable {
        case booted, migrated, restored, fromSnapshot, wokeUp, unknown
    }

    package enum SuspendReason: String, Sendable {
        case paused, migrated, ioError, watchdog, restored, fromSnapshot, apiError, postCopy
        case postCopyFailed, unknown
    }

    package enum ResumeReason: String, Sendable {
        case unpaused, migrated, fromSnapshot, postCopy, postCopyFailed, unknown
    }

    package enum ShutdownReason: String, Sendable {
        /// QEMU does not say which of the two.
        case finished
        case byGuest
        /// By a signal or command from the host.
        case byHost
        case unknown
    }

    package enum StopReason: String, Sendable {
        /// The guest shut itself down.
        case shutdown
        /// Somebody ended it through libvirt.
        case destroyed
        /// QEMU ended by itself, or the guest crashed.
        case crashed
        case migrated, saved
        /// libvirt lost it: QEMU could not start, or its monitor is gone.
        case failed
        case fromSnapshot, unknown
    }
}

/// What comes out of `LibvirtHost.events()`.
package enum HostEvent: Hashable, Sendable {
    /// A connection was opened: events before it may have been missed, so look at the domains anew.
    case connected
    /// libvirt is gone, or its connection; the next call tries to open a new one.
    case disconnected(reason: String)
    case domain(DomainEvent)
}

extension DomainEvent.Kind {
    /// A lifecycle event by libvirt's numbers; nil for one that a newer libvirt has added.
    /// Numbers: libvirt-domain.h, `virDomainEventType` and the details below it.
    package init?(event: Int32, detail: Int32) {
        switch virDomainEventType(rawValue: UInt32(bitPattern: event)) {
        case VIR_DOMAIN_EVENT_DEFINED: self = .defined
        case VIR_DOMAIN_EVENT_UNDEFINED: self = .undefined
        case VIR_DOMAIN_EVENT_STARTED:
            self = .started(
                pick(detail, [.booted, .migrated, .restored, .fromSnapshot, .wokeUp], .unknown))
        case VIR_DOMAIN_EVENT_SUSPENDED:
            self = .suspended(
                pick(
                    detail,
                    [
                        .paused, .migrated, .ioError, .watchdog, .restored, .fromSnapshot,
                        .apiError, .postCopy, .postCopyFailed,
                    ], .unknown))
        case VIR_DOMAIN_EVENT_RESUMED:
            self = .resumed(
                pick(
                    detail, [.unpaused, .migrated, .fromSnapshot, .postCopy, .postCopyFailed],
                    .unknown))
        case VIR_DOMAIN_EVENT_STOPPED:
            self = .stopped(
                pick(
                    detail,
                    [.shutdown, .destroyed, .crashed, .migrated, .saved, .failed, .fromSnapshot],
                    .unknown))
        case VIR_DOMAIN_EVENT_SHUTDOWN:
            self = .shutdown(pick(detail, [.finished, .byGuest, .byHost], .unknown))
        case VIR_DOMAIN_EVENT_PMSUSPENDED: self = .powerManagementSuspended
        case VIR_DOMAIN_EVENT_CRASHED: self = .crashed
        default: return nil
        }
    }
}

private func pick<Value>(_ detail: Int32, _ values: [Value], _ other: Value) -> Value {
    values.indices.contains(Int(detail)) ? values[Int(detail)] : other
}
