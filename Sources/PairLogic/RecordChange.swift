import Model

/// What an action does to the pair's record.
package enum RecordChange: Sendable, Hashable {
    package struct Event: Sendable, Hashable {
        package let kind: ClusterEvent.Kind
        package let message: String
        init(_ kind: ClusterEvent.Kind, _ message: String) {
            self.kind = kind
            self.message = message
        }
    }

    /// Nothing: the action is work on this host.
    case none
    /// The record has moved on since the decision: do nothing, decide again.
    case outdated
    /// Write this, by compare-and-swap; then append the event, if there is one.
    case update(PairRecord, Event?)
    /// Delete the record, by compare-and-swap; then append the event.
    case delete(Event)
}

extension PairAction {
    /// What this action, decided by `me`, does to the record as it stands *now* in the store. To be
    /// called again for every try of the compare-and-swap: what the decision rested on is checked
    /// again here.
    package func change(to present: PairRecord, by me: HostName) -> RecordChange {
        var record = present
        let isPrimary = record.primary == me && record.promoting == nil && !record.primaryLost
        let name = record.name
        var event: RecordChange.Event?
        switch self {
        case .startEnabling, .cancelEnabling, .adoptPrimary, .createSecondary, .adoptSecondary,
            .promote, .raiseSegmentGeneration, .handOver, .awaitHandOver, .startDisabling,
            .cleanUpStale, .removeSegment:
            return .none
        case .finishDisable:
            guard record.state == .disabled, isPrimary else { return .outdated }
            return .delete(.init(.disabled, "\(name) is an ordinary domain of \(me) again"))

        case .beginEnabling:
            guard isPrimary, record.isNotYetProtected, record.desired == .protected,
                let generation = record.nextGeneration
            else { return .outdated }
            // A new term: a claim that was decided on before the guest shut down must not fit now.
            record.generation = generation
            record.state = .starting
            record.reason = ""
            record.progress = nil
        case .reportEnabled:
            guard isPrimary, record.isNotYetProtected else { return .outdated }
            record.state = .needSecondary
            record.reason = ""
            record.lastError = nil
            record.progress = nil
            event = .init(.enabled, "\(name) commits its epochs on \(me)")
        case .reportEnablingFailed(let error):
            guard isPrimary, record.isNotYetProtected else { return .outdated }
            record.state = .unprotected
            record.reason = error.message
            record.lastError = error
            record.progress = nil
            event = .init(.failed, "\(name) could not be enabled: \(error)")
        case .reportUnprotected(let reason):
            guard record.promoting == nil, record.isNotYetProtected else { return .outdated }
            record.state = .unprotected
            record.reason = reason
            record.progress = nil
            event = .init(.unprotected, "\(name) is not protected: \(reason)")
        case .reportLostUnprotected:
            guard record.promoting == nil, record.isNotYetProtected else { return .outdated }
            let error = FtvmError(
                .unavailable, "\(record.primary) died before \(name) was protected",
                advice: "it is protected when that host is back and the guest runs there")
            record.state = .unprotected
            record.reason = error.message
            record.lastError = error
            record.progress = nil
            event = .init(.unprotected, "\(name) is not protected: \(record.reason)")
        case .guestShutDown:
            guard isPrimary, record.isUnderProtection else { return .outdated }
            record.state = .unprotected
            record.reason = PairReason.guestShutDown
            record.secondary = nil
            record.secondaryReady = false
            record.promotionRequested = false
            record.endSwitchover(.failed, record.reason)
            record.progress = nil
            event = .init(.unprotected, "\(name) is not protected: \(record.reason)")

        case .reportDevicesChanged(let what):
            guard isPrimary, record.isUnderProtection, record.state != .failingOver else {
                return .outdated
            }
            record.state = .unprotected
            record.reason = PairReason.devicesChanged(what)
            record.secondary = nil
            record.secondaryReady = false
            record.promotionRequested = false
            record.endSwitchover(.failed, record.reason)
            record.progress = nil
            event = .init(.unprotected, "\(name) is not protected: \(record.reason)")

        case .noteReason(let reason):
            record.reason = reason
        case .noteError(let error):
            record.lastError = error
            event = .init(.failed, "\(name) on \(me): \(error)")
        case .declinePromotion(let reason):
            guard record.promotionRequested, record.promoting == nil else { return .outdated }
            record.promotionRequested = false
            event = .init(.refused, "the promotion of \(name) by hand is refused: \(reason)")
        case .beginDisable:
            guard isPrimary, record.desired == .disabled, record.state != .disabled else {
                return .outdated
            }
            record.state = .disabled
            record.reason = PairReason.disabling
            record.promotionRequested = false
            record.endSwitchover(.cancelled, PairReason.disabling)
            record.progress = nil

        case .armSwitchover, .disarmSwitchover, .beginSwitchover, .endSwitchover:
            guard changeSwitchover(of: &record, by: me, isPrimary, &event) else { return .outdated }
        case .placeSecondary, .replaceSecondary, .reportSecondaryReady, .reportSecondaryLost:
            guard changeSecondary(of: &record, by: me, isPrimary, &event) else { return .outdated }
        case .reportPrimaryLost, .reportPrimaryRunning, .claimPromotion, .claimFenced, .claimByHand,
            .giveUp, .confirmPrimaryGone, .releaseClaim, .reportPromoted, .waitForFence,
            .reportStuck:
            guard changePrimary(of: &record, by: me, isPrimary, &event) else { return .outdated }
        }
        return .update(record, event)
    }

    /// False: outdated.
    private func changeSecondary(
        of record: inout PairRecord, by me: HostName, _ isPrimary: Bool,
        _ event: inout RecordChange.Event?
    ) -> Bool {
        let name = record.name
        switch self {
        case .placeSecondary(let host):
            guard isPrimary, record.secondary == nil, host != me, record.isUnderProtection else {
                return false
            }
            record.secondary = host
            record.secondaryReady = false
            record.state = .needSecondary
            record.reason = "\(host) makes the secondary"
        case .replaceSecondary(let old, let new):
            // The old one's own host may say so as well: it is being emptied.
            guard isPrimary || old == me, record.secondary == old, new != record.primary,
                new != old, record.isUnderProtection, record.state != .failingOver,
                record.promoting == nil, !record.primaryLost
            else { return false }
            record.secondary = new
            record.secondaryReady = false
            record.state = .needSecondary
            record.reason = PairReason.replacing(old, by: new)
            record.switchover?.armed = false
        case .reportSecondaryReady(let generation):
            guard record.generation == generation, record.secondary == me, record.promoting == nil,
                record.isUnderProtection, !record.secondaryReady
            else { return false }
            record.secondaryReady = true
            record.lastError = nil
            if record.state != .failingOver {
                record.state = .protected
                record.reason = ""
            }
            event = .init(.protected, "\(name) is protected: the secondary on \(me) is ready")
        case .reportSecondaryLost(let host, let reason, let error):
            guard record.secondary == host, record.promoting != host else { return false }
            record.secondary = nil
            record.secondaryReady = false
            if let error { record.lastError = error }
            if record.switchover?.target == host {
                let why = error?.message ?? reason
                record.endSwitchover(.failed, "the secondary on \(host) was lost: \(why)")
            }
            if record.state == .protected || record.state == .needSecondary {
                record.state = .needSecondary
                record.reason = reason
            }
            // While the pair is given back, that is as it should be.
            guard record.state != .disabled else { break }
            event = .init(.secondaryLost, "\(name) has lost its secondary on \(host): \(reason)")
        default:
            preconditionFailure("not about the secondary: \(self)")
        }
        return true
    }

    /// False: outdated.
    private func changeSwitchover(
        of record: inout PairRecord, by me: HostName, _ isPrimary: Bool,
        _ event: inout RecordChange.Event?
    ) -> Bool {
        let name = record.name
        switch self {
        case .armSwitchover:
            guard let switchover = record.switchover,
                record.awaitsHandOver(on: me, to: switchover)
            else { return false }
            record.switchover?.armed = true
        case .disarmSwitchover:
            guard record.switchover?.target == me, record.promoting == nil else { return false }
            record.switchover?.armed = false
        case .beginSwitchover(let target):
            guard isPrimary, record.promotionRequested, record.switchover == nil,
                record.secondary == target, record.secondaryReady, record.isUnderProtection
            else { return false }
            record.switchover = Switchover(
                id: "promotion-\(record.generation)", target: target, requestedBy: "ftvm promote")
            event = .init(
                .switchoverRequested, "\(name) is to move to \(target) (ftvm promote)")
        case .endSwitchover(let result, let reason):
            guard isPrimary, let target = record.switchover?.target else { return false }
            record.endSwitchover(result, reason)
            event = .init(
                result == .refused ? .refused : .failed,
                "the switchover of \(name) to \(target) is \(result.rawValue): \(reason)")
        default:
            preconditionFailure("not about a switchover: \(self)")
        }
        return true
    }

    /// False: outdated.
    private func changePrimary(
        of record: inout PairRecord, by me: HostName, _ isPrimary: Bool,
        _ event: inout RecordChange.Event?
    ) -> Bool {
        let name = record.name
        switch self {
        case .reportPrimaryLost(let reason):
            guard isPrimary, record.isUnderProtection else { return false }
            record.primaryLost = true
            record.primaryGone = .ownHost
            record.state = .failingOver
            record.reason = reason
            event = .init(.primaryLost, "\(name) has lost its primary on \(me): \(reason)")
        case .reportPrimaryRunning:
            let isTakenBack = record.state == .failingOver && record.promoting == nil
            guard isPrimary || (isTakenBack && !record.primaryLost), record.isUnderProtection
            else { return false }
            // The primary's own word is marked, so that it is not doubted again at once.
            record.reason = isPrimary && isTakenBack ? PairReason.refuted : ""
            record.state = record.secondaryReady ? .protected : .needSecondary
            event = .init(.adopted, "\(name) goes on under its primary on \(record.primary)")
        case .confirmPrimaryGone:
            guard record.primary == me, record.primaryLost, record.primaryGone == nil else {
                return false
            }
            record.primaryGone = .ownHost
        case .claimPromotion(let generation), .claimFenced(let generation, _),
            .claimByHand(let generation):
            // Every claim raises the generation, so an unchanged one means: nobody has claimed
            // since.
            guard record.generation.number + 1 == generation.number, record.isUnderProtection else {
                return false
            }
            record.generation = generation
            record.promoting = me
            switch self {
            case .claimByHand: break
            case .claimFenced(_, let method): record.primaryGone = record.primaryGone ?? method
            default: record.primaryGone = record.primaryGone ?? .primaryLock
            }
            // Whatever still runs under an older generation is history, also if it should come
            // back.
            record.primaryLost = true
            record.state = .failingOver
            record.reason = "\(me) is being promoted"
            if let target = record.switchover?.target, target != me {
                record.endSwitchover(.failed, "\(me) is promoted in the place of \(target)")
            }
            event = .init(
                .promotionStarted, "\(me) promotes \(name), generation \(generation)")
        case .giveUp(let generation):
            guard record.generation.number + 1 == generation.number, record.isToBeGivenUp else {
                return false
            }
            record.generation = generation
            record.primary = me
            record.promoting = nil
            record.primaryLost = false
            record.primaryGone = nil
            if record.secondary == me { record.secondary = nil }
            record.secondaryReady = false
            record.state = .disabled
            record.reason = PairReason.givenUp.message
            record.endSwitchover(.failed, record.reason)
            event = .init(
                .unprotected,
                "\(name): what its guest had in memory is given up, as its user wished")
        case .releaseClaim(let error):
            guard record.promoting == me else { return false }
            record.promoting = nil
            record.lastError = error
            record.reason = "the promotion on \(me) failed: \(error.message)"
            if record.secondary == me {
                record.secondary = nil
                record.secondaryReady = false
            }
            record.endSwitchover(.failed, record.reason)
            event = .init(.failed, "the promotion of \(name) on \(me) failed: \(error)")
        case .reportPromoted:
            guard record.promoting == me else { return false }
            let from = record.primary
            let isPlanned = record.switchover?.armed == true
            record.primary = me
            record.promoting = nil
            record.primaryLost = false
            record.endSwitchover(.done, "")
            record.primaryGone = nil
            record.promotionRequested = false
            record.secondary = nil
            record.secondaryReady = false
            record.lastError = nil
            record.state = .needSecondary
            record.reason = ""
            event =
                isPlanned
                ? .init(
                    .switchedOver,
                    "\(name) has moved from \(from) to \(me), generation \(record.generation)")
                : .init(.promoted, "\(name) goes on on \(me), generation \(record.generation)")
        case .waitForFence(let suspects, let reason):
            guard record.isUnderProtection,
                record.promoting == nil || record.promoting == me
                    || suspects.contains(where: { $0 == record.promoting })
            else { return false }
            record.state = .failingOver
            record.reason = PairReason.waiting(for: suspects, reason)
            event = .init(.waitingForFence, "\(name) is \(record.reason)")
        case .reportStuck(let reason):
            guard record.isUnderProtection,
                record.state == .failingOver || !PairReason.isRefuted(record.reason)
            else { return false }
            record.state = .failingOver
            record.reason = reason
            event = .init(.failed, "\(name) cannot go on: \(reason)")
        default:
            preconditionFailure("not about the primary: \(self)")
        }
        return true
    }
}

extension PairRecord {
    /// The segment is what to go on from.
    package var isUnderProtection: Bool {
        state == .protected || state == .needSecondary || state == .failingOver
    }

    /// nil when all generations (2^24) are used up.
    package var nextGeneration: Generation? {
        generation.number < Generation.maximum ? generation.next : nil
    }

    /// Protected, and nothing is to be done about it.
    package var isSettled: Bool {
        state == .protected && desired == .protected && secondaryReady && !primaryLost
            && promoting == nil && switchover == nil
    }

    /// There is no segment to go on from yet.
    var isNotYetProtected: Bool { state == .starting || state == .unprotected }
}

/// Texts that are compared as well as shown.
enum PairReason {
    static let guestShutDown = "the guest shut down"
    static func devicesChanged(_ what: String) -> String {
        "its devices were changed (\(what)); it is enabled anew with them"
    }
    static let givenUp = FtvmError(
        .failedPrecondition, "the guest's last state is given up", cause: "its user has said so")
    /// For a guest that cannot go on.
    static func wayOut(_ pair: PairName) -> String {
        " ('ftvm disable \(pair) --discard-state' ends the waiting, and what the guest had in memory)"
    }
    static let disabling = "it is being given back to libvirt"
    static func replacing(_ old: HostName, by new: HostName) -> String {
        "\(new) makes the secondary, in the place of \(old)"
    }
    static func handedOver(to target: HostName) -> String { "handed over to \(target)" }
    static func waiting(for hosts: [HostName], _ reason: String) -> String {
        let names = hosts.map(\.text).joined(separator: " or ")
        return "\(waitingPrefix)\(names) (\(reason))"
    }
    static func isWaiting(_ reason: String) -> Bool { reason.hasPrefix(waitingPrefix) }
    /// The primary's host, alone as far as it sees, has answered to being taken for dead.
    static let refuted = "it goes on although its host was taken for dead"
    static func isRefuted(_ reason: String) -> Bool { reason.hasPrefix(refuted) }
    private static let waitingPrefix = "waiting for a fence of "
}
