import ClusterStore
import Foundation
import Glibc
import Heartbeat
import Hypervisor
import MemoryPool
import Model
import PairLogic
import Protection

/// This host among the others: its registration, its lease, who hears it, and its own end.
extension Agent {
    private static let registrationPause = Duration.milliseconds(500)
    /// Without an answer for so long the store says nothing of anybody.
    private static let storeBlindNanoseconds: UInt64 = 1_500_000_000
    private static let renewTries = 4

    var hasSelfFence: Bool { environment.cluster.selfFence.enabled }

    // MARK: - Registration

    /// Makes this start of ftvmd the one that counts. What a predecessor that was fenced has left running is ended
    /// first: others may go on from its guests already.
    func register() async {
        var told = false
        while !Task.isCancelled {
            do {
                if try await tryToRegister() { return }
                continue
            } catch {
                if !told {
                    logger.warning("cannot register this host yet", metadata: ["error": "\(error)"])
                }
                told = true
            }
            try? await Task.sleep(for: Self.registrationPause)
        }
    }

    /// - Returns: false when it has to be tried again at once.
    private func tryToRegister() async throws -> Bool {
        let sentAt = BootClock.now()
        let present = try await environment.members.read(host)
        if let fence = present?.record.fence, fence.incarnation == present?.record.incarnation {
            emit(.fenced, "an earlier ftvmd of \(host) was fenced: its guests end", pair: nil)
            try await endEveryQEMU(try await environment.pairs.list().records.map(\.record))
        }
        var member = HostMembership(
            name: host, incarnation: environment.incarnation,
            hasSelfFence: environment.watchdog != nil)
        member.lease = (present?.record.lease ?? 0) + 1
        guard let revision = try await swap(present, member) else { return false }
        remember(Versioned(record: member, revision: revision))
        cluster.selfFence.renewed(sentAt: sentAt)
        cluster.isRegistered = true
        return true
    }

    /// - Returns: nil when somebody else was first.
    private func swap(
        _ present: Versioned<HostMembership>?, _ member: HostMembership
    ) async throws -> UInt64? {
        guard let present else {
            do {
                return try await environment.members.create(member)
            } catch {
                guard error.code == .alreadyExists else { throw error }
                return nil
            }
        }
        guard present.record.incarnation < environment.incarnation else {
            throw FtvmError(
                .conflict, "another ftvmd is registered as host \(host)",
                cause: "its incarnation \(present.record.incarnation) is not below ours",
                advice: "give every host a name of its own")
        }
        return try await environment.members.replace(host, present, by: member)
    }

    /// Kills and waits.
    private func endEveryQEMU(_ pairs: [PairRecord]) async throws {
        for pair in pairs {
            while let process = try? QEMUProcess.find(domain: pair.name.text, uuid: pair.uuid) {
                logger.notice("ending a fenced QEMU", metadata: ["pair": "\(pair.name)"])
                try await blocking { try process.kill() }
            }
        }
    }

    // MARK: - What the store says

    func remember(_ member: Versioned<HostMembership>) {
        let name = member.record.name
        if let known = cluster.members[name], known.revision >= member.revision { return }
        cluster.members[name] = member
        storeHasAnswered()
    }

    func storeHasAnswered() {
        cluster.answeredAt = MonotonicClock.nowNanoseconds()
        cluster.hasFreshLeases = true
        let members = cluster.members.values.map(\.record)
        let incarnations = Dictionary(
            uniqueKeysWithValues: members.map { ($0.name, $0.incarnation) })
        let fencing = FencingView(
            kernelPeers: cluster.fencing.kernelPeers, fences: members.compactMap(\.fence),
            incarnations: incarnations)
        environment.network?.setPeers(incarnations)
        if fencing != cluster.fencing {
            cluster.fencing = fencing
            poke()
        }
        guard cluster.isRegistered, let mine = cluster.members[host]?.record else { return }
        if mine.fence?.incarnation == environment.incarnation
            || mine.incarnation > environment.incarnation
        {
            cluster.selfFence.fenced()
        }
    }

    private func take(_ listing: StoreListing) {
        guard listing.revision >= cluster.revision else { return }
        cluster.revision = listing.revision
        for member in MemberRecords.decode(listing).records {
            let name = member.record.name
            if let known = cluster.members[name], known.revision >= member.revision { continue }
            cluster.members[name] = member
        }
        storeHasAnswered()
    }

    func followMembers() async {
        for await change in environment.members.watch() {
            if case .current(let listing) = change { take(listing) }
        }
    }

    /// Reads all leases and fences from time to time, and at once while somebody is suspect. What was seen in the pool
    /// before such a reading, and is not fenced in it, is backed by it.
    func readMembers() async {
        for await _ in memberReads.stream {
            let seen = cluster.seen
            guard let listing = try? await environment.store.list(StoreKeys.members) else {
                continue
            }
            take(listing)
            for (name, beat) in seen {
                let fence = cluster.members[name]?.record.fence
                if fence?.incarnation != beat.incarnation { cluster.backed[name] = beat }
            }
        }
    }

    /// One key, so a renewal is refused once there is a fence.
    func renewLease() async {
        let now = MonotonicClock.nowNanoseconds()
        // Who is alone is heard by nobody, and need not say so all the time.
        let isAlone = cluster.members.count < 2
        guard cluster.isRegistered, !cluster.isRenewing,
            !isAlone || now - cluster.renewedAt >= environment.timing.renewalNanoseconds
        else { return }
        cluster.isRenewing = true
        defer { cluster.isRenewing = false }
        for _ in 0..<Self.renewTries {
            let sentAt = BootClock.now()
            do {
                guard let present = cluster.members[host],
                    present.record.incarnation == environment.incarnation,
                    present.record.fence?.incarnation != environment.incarnation
                else { return }
                var next = present.record
                next.lease += 1
                if let revision = try await environment.members.replace(host, present, by: next) {
                    remember(Versioned(record: next, revision: revision))
                    cluster.selfFence.renewed(sentAt: sentAt)
                    cluster.renewedAt = now
                    return
                }
                guard let read = try await environment.members.read(host) else { return }
                remember(read)
            } catch {
                logger.debug("the lease is not renewed", metadata: ["error": "\(error)"])
                return
            }
        }
    }

    // MARK: - Who is heard

    /// One look at all heartbeats, at our own end, and at fences.
    func observeHosts() {
        let now = MonotonicInstant(nanoseconds: MonotonicClock.nowNanoseconds())
        // A host that had to end its guests and hears nothing of anybody must not, by its own voice alone, keep the
        // others from going on with them. (In the pool it goes on: only what is noted there tells it that it may run.)
        let mayBeHeard = !hasSelfFence || cluster.selfFence.mayRunGuests(at: BootClock.now())
        environment.network?.noteAlive(at: mayBeHeard ? now.nanoseconds : nil)
        var readings: [Detector.Reading] = []
        var blind: Set<HeartbeatWay> = []
        if !TestSwitches.poolIsCut, let beats = try? environment.heartbeat.read() {
            readings += beats.map { beat in
                Detector.Reading(
                    host: beat.host, incarnation: beat.incarnation, counter: beat.counter,
                    // A lock tells nothing across machines.
                    processHoldsSlot: beat.processHoldsSlot
                        || !cluster.fencing.lockTells(of: beat.host))
            }
            noteBeats(beats)
        } else {
            blind.insert(.pool)
        }
        readings += environment.network?.readings() ?? []
        if cluster.hasFreshLeases {
            cluster.hasFreshLeases = false
            readings += cluster.members.values.map {
                Detector.Reading(
                    host: $0.record.name, incarnation: $0.record.incarnation,
                    counter: $0.record.lease, processHoldsSlot: true, way: .store)
            }
        }
        let answered = cluster.answeredAt ?? 0
        if now.nanoseconds - min(answered, now.nanoseconds) > Self.storeBlindNanoseconds {
            blind.insert(.store)
        }
        detector.expect(hostRecords.keys, at: now)
        let transitions = detector.observe(readings, blind: blind, at: now)
        for transition in transitions { tell(transition) }
        lookAtOurselves()
        pursueFences()
        if !transitions.isEmpty { poke() }
    }

    private func tell(_ transition: Detector.Transition) {
        logger.notice(
            "host \(transition.to.rawValue)",
            metadata: ["host": "\(transition.host)", "reason": "\(transition.reason)"])
        guard transition.from != nil || transition.to != .online else { return }
        let kind: ClusterEvent.Kind =
            switch transition.to {
            case .online: .hostOnline
            case .suspect: .hostSuspected
            case .dead: .hostDead
            }
        emit(
            kind, "\(transition.host) is \(transition.to.rawValue): \(transition.reason)",
            pair: nil, reason: transition.why)
    }

    /// Takes note of the others' beats in the pool, and of who took note of ours.
    private func noteBeats(_ beats: [HeartbeatReading]) {
        let notes = environment.heartbeat.notes
        let mySlot = environment.heartbeat.slot
        let lookedAt = BootClock.now()
        for beat in beats {
            if beat.host == host {
                guard beat.slot == mySlot else { continue }
                // It was made after the look before.
                if beat.counter != cluster.ownBeat.counter {
                    cluster.selfFence.beat(beat.counter, at: cluster.ownBeat.lookedAt)
                }
                cluster.ownBeat = (beat.counter, lookedAt)
                continue
            }
            if let old = cluster.seen[beat.host], old.incarnation > beat.incarnation { continue }
            cluster.seen[beat.host] = ClusterState.Beat(
                incarnation: beat.incarnation, counter: beat.counter, slot: beat.slot)
            if let note = notes.read(row: beat.slot, column: mySlot),
                note.incarnation == environment.incarnation
            {
                cluster.selfFence.acknowledged(by: beat.host, note.seen, backedByStore: false)
                if note.backed > 0 {
                    cluster.selfFence.acknowledged(by: beat.host, note.backed, backedByStore: true)
                }
            }
        }
        for (name, beat) in cluster.seen where cluster.refused[name] != beat.incarnation {
            let backed = cluster.backed[name]
            let counter = backed?.incarnation == beat.incarnation ? backed?.counter ?? 0 : 0
            notes.write(
                HeartbeatNotes.Note(
                    incarnation: beat.incarnation, seen: beat.counter, backed: counter),
                row: mySlot, column: beat.slot)
        }
    }

    // MARK: - Our own end

    private func lookAtOurselves() {
        guard cluster.isRegistered else { return }
        for action in cluster.selfFence.look(at: BootClock.now()) {
            switch action {
            case .renew: Task { await renewLease() }
            case .pet:
                petPermit.permit()
                cluster.stopTold = false
            case .stopGuests(let why):
                guard hasSelfFence || cluster.selfFence.isFencedNow else { continue }
                stopGuests(why)
                // Nothing is left that the watchdog would have to end: the host need not be reset.
                if recordsKnown, ownWriters() == 0 { petPermit.permit() }
            }
        }
    }

    /// Ends every QEMU of a pair on this host, and every disk server; asked again until none is left.
    func stopGuests(_ why: String) {
        let processes = ownQEMUs()
        if !cluster.stopTold, !processes.isEmpty || cluster.selfFence.isFencedNow {
            cluster.stopTold = true
            emit(
                .fenced, "\(host) stops its guests: \(why)", pair: nil, reason: .selfFenced(why))
        }
        for (name, process) in processes {
            runtime(of: name).endedByUs = true
            // SIGKILL alone, and no waiting: this very loop must not stand still.
            Glibc.kill(process.processID, SIGKILL)
        }
        for runtime in runtimes.values {
            // Or they would be started again.
            runtime.driver?.disks?.close(endingPlugin: false)
            runtime.secondary?.disks?.close(endingPlugin: false)
        }
        for server in diskServers() { Glibc.kill(server, SIGKILL) }
    }

    /// Disk servers of this host. They bring committed writes into images for as long as they live, and once another host
    /// goes on with these, it does that.
    func diskServers() -> [pid_t] {
        DiskPlugin.processes(in: environment.configuration.diskDirectory)
    }

    /// QEMUs of pairs on this host: those that we drive, and whatever else bears a pair's name.
    func ownQEMUs() -> [(PairName, QEMUProcess)] {
        var found: [Int32: (PairName, QEMUProcess)] = [:]
        for (name, runtime) in runtimes {
            for process in [runtime.driver?.process, runtime.secondary?.process] {
                if let process, process.isRunning { found[process.processID] = (name, process) }
            }
        }
        for (name, record) in records {
            if let process = try? QEMUProcess.find(domain: name.text, uuid: record.record.uuid) {
                found[process.processID] = (name, process)
            }
        }
        return Array(found.values)
    }
}
