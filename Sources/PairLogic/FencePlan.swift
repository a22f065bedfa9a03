import Model

/// Carries out the fence of one incarnation of a host, level by level: the first level whose devices
/// all succeed is the proof. A value: events in, actions out, times from outside.
///
/// A device has succeeded when it has switched off *and* then answered that it is off (for libvirt:
/// the domain was destroyed and is not there any more). Everything else, a time-out above all, is a
/// failure. After the last level it says so, waits, and begins again.
package struct FencePlan: Sendable, Hashable {
    /// Something that can make certain that a host is off.
    package struct Device: Sendable, Hashable {
        /// `libvirt` or `agent`.
        package var method: FenceMethod
        /// `fence_ipmilan`, or libvirt's URI; for people, and for the runner to find it.
        package var name: String
        /// For switching off and asking for the status together, in nanoseconds.
        package var timeoutNanoseconds: UInt64
        package init(
            method: FenceMethod, name: String, timeoutNanoseconds: UInt64 = 20_000_000_000
        ) {
            precondition(method == .agent || method == .libvirt)
            precondition(timeoutNanoseconds > 0)
            self.method = method
            self.name = name
            self.timeoutNanoseconds = timeoutNanoseconds
        }
        package var text: String { "\(method.rawValue) \(name)" }
    }

    package struct Configuration: Sendable, Hashable {
        /// In the order in which they are tried; the devices of one level must all succeed (two
        /// power supplies, say).
        package var levels: [[Device]]
        /// What a level waits before it begins, for hosts that may come back, in nanoseconds.
        package var delayNanoseconds: UInt64
        /// The wait after all levels have failed; doubled each time up to the maximum.
        package var retryNanoseconds: UInt64
        package var maximumRetryNanoseconds: UInt64
        /// Time in which the host's self-fence and watchdog have certainly acted, counted from the
        /// moment at which enough hosts had noted the fence (`ClusterTiming.proofNanoseconds`);
        /// nil: it has none, or was not known to have it armed.
        package var selfFenceNanoseconds: UInt64?

        package init(
            levels: [[Device]], delayNanoseconds: UInt64 = 0,
            retryNanoseconds: UInt64 = 5_000_000_000,
            maximumRetryNanoseconds: UInt64 = 60_000_000_000, selfFenceNanoseconds: UInt64? = nil
        ) {
            precondition(
                retryNanoseconds > 0 && maximumRetryNanoseconds >= retryNanoseconds)
            precondition(levels.count <= 9 && levels.allSatisfy { !$0.isEmpty })
            self.levels = levels
            self.delayNanoseconds = delayNanoseconds
            self.retryNanoseconds = retryNanoseconds
            self.maximumRetryNanoseconds = maximumRetryNanoseconds
            self.selfFenceNanoseconds = selfFenceNanoseconds
        }
    }

    package enum Result: Sendable, Hashable {
        /// Switched off, and its status said off.
        case off
        case failed(String)
    }

    package enum Event: Sendable, Hashable {
        /// Nothing but that time has passed.
        case look
        case finished(token: UInt64, Result)
        /// Enough hosts have noted the fence.
        case noted
    }

    package enum Action: Sendable, Hashable {
        /// Start the device; answer with `finished` and this token. To be ended when its time is up.
        case run(Device, token: UInt64)
        /// The device's time is up: end it. What it still may say does not count.
        case end(token: UInt64)
        case proven(FenceMethod, detail: String)
        case say(String)
        case roundFailed(String)
    }

    /// What the last try of a device came to, for `ftvm hosts`.
    package struct Attempt: Sendable, Hashable {
        package let level: Int
        package let device: String
        package let result: String
    }

    private enum Phase: Sendable, Hashable {
        case waiting(until: UInt64)
        case running(level: Int, device: Int, token: UInt64, until: UInt64)
        case proven
    }

    package let host: HostName
    package let configuration: Configuration
    private var phase: Phase
    private var nextToken: UInt64 = 1
    private var rounds: UInt64 = 0
    private var notedAt: UInt64?
    /// Newest last, one per device of the present round.
    package private(set) var attempts: [Attempt] = []

    package init(
        host: HostName, configuration: Configuration, at now: MonotonicInstant
    ) {
        self.host = host
        self.configuration = configuration
        self.phase = .waiting(until: saturating(now.nanoseconds, configuration.delayNanoseconds))
    }

    package var isProven: Bool { phase == .proven }

    /// When `look` is due next; nil: nothing to come by itself.
    package var wakeAt: MonotonicInstant? {
        var times: [UInt64] = []
        switch phase {
        case .waiting(let until): times.append(until)
        case .running(_, _, _, let until): times.append(until)
        case .proven: return nil
        }
        if let notedAt, let wait = configuration.selfFenceNanoseconds {
            times.append(saturating(notedAt, wait))
        }
        return times.min().map { MonotonicInstant(nanoseconds: $0) }
    }

    package mutating func handle(_ event: Event, at now: MonotonicInstant) -> [Action] {
        guard phase != .proven else { return [] }
        let time = now.nanoseconds
        var actions: [Action] = []
        switch event {
        case .look: break
        case .noted:
            if notedAt == nil { notedAt = time }
        case .finished(let token, let result):
            guard case .running(let level, let device, token, _) = phase else { return [] }
            actions += finished(level, device, result, time)
        }
        if phase != .proven { actions += look(time) }
        return actions
    }

    private mutating func look(_ time: UInt64) -> [Action] {
        if let notedAt, let wait = configuration.selfFenceNanoseconds,
            time >= saturating(notedAt, wait)
        {
            var actions: [Action] = []
            if case .running(_, _, let token, _) = phase { actions.append(.end(token: token)) }
            phase = .proven
            return actions + [.proven(.selfFence, detail: "its self-fence has had its time")]
        }
        switch phase {
        case .proven: return []
        case .waiting(let until):
            guard time >= until else { return [] }
            attempts = []
            guard !configuration.levels.isEmpty else {
                phase = .waiting(until: saturating(time, configuration.maximumRetryNanoseconds))
                return [.say(nothingConfigured)]
            }
            return [run(0, 0, time)]
        case .running(let level, let device, let token, let until):
            guard time >= until else { return [] }
            return [.end(token: token)] + finished(level, device, .failed("timed out"), time)
        }
    }

    private mutating func run(_ level: Int, _ index: Int, _ time: UInt64) -> Action {
        let device = configuration.levels[level][index]
        let token = nextToken
        nextToken += 1
        phase = .running(
            level: level, device: index, token: token,
            until: saturating(time, device.timeoutNanoseconds))
        return .run(device, token: token)
    }

    private mutating func finished(
        _ level: Int, _ index: Int, _ result: Result, _ time: UInt64
    ) -> [Action] {
        let devices = configuration.levels[level]
        let device = devices[index]
        switch result {
        case .off:
            attempts.append(Attempt(level: level + 1, device: device.text, result: "off"))
            if index + 1 < devices.count { return [run(level, index + 1, time)] }
            phase = .proven
            let names = devices.map(\.text).joined(separator: " and ")
            return [.proven(device.method, detail: names)]
        case .failed(let why):
            attempts.append(Attempt(level: level + 1, device: device.text, result: why))
            if level + 1 < configuration.levels.count {
                let next = run(level + 1, 0, time)
                let name = configuration.levels[level + 1][0].text
                return [.say("\(device.text): \(why), now \(name)"), next]
            }
            let wait = backOff()
            rounds += 1
            phase = .waiting(until: saturating(time, wait))
            let text = "\(device.text): \(why), next try in \(wait / 1_000_000_000) s"
            return [.roundFailed(text)]
        }
    }

    private func backOff() -> UInt64 {
        var wait = configuration.retryNanoseconds
        for _ in 0..<min(rounds, 32) where wait < configuration.maximumRetryNanoseconds {
            wait = wait > .max / 2 ? .max : wait * 2
        }
        return min(wait, configuration.maximumRetryNanoseconds)
    }

    private var nothingConfigured: String {
        if configuration.selfFenceNanoseconds != nil { return "its self-fence is waited for" }
        return "no fence is configured for it; when it is off for certain: "
            + "ftvm hosts fence \(host) --confirm-dead"
    }
}

/// Sum of two times that does not overflow.
func saturating(_ left: UInt64, _ right: UInt64) -> UInt64 {
    let (sum, overflow) = left.addingReportingOverflow(right)
    return overflow ? .max : sum
}
