import CLinux
import Dispatch
import Glibc
import Model
import Synchronization

/// The thread of `UDPHeartbeat` and what it shares with others.
final class UDPHeartbeatLoop: @unchecked Sendable {
    // @unchecked: what is not under `shared`'s lock is used by the thread only.
    private struct Shared {
        var peers: [HeartbeatPeer] = []
        var peersChanged = false
        var notes: [HostName: UInt64] = [:]
        var counters = UDPHeartbeatCounters()
    }

    /// What the thread knows of a peer.
    private struct Known {
        var peer: HeartbeatPeer
        var mark: UInt64
        var incarnation: UInt64 = 0
        var sequence: UInt64 = 0
        var heardNanoseconds: UInt64 = 0
    }

    private let settings: UDPHeartbeat.Settings
    private let socket: CInt
    private let permit: @Sendable () -> Bool
    private let onArrival: @Sendable (HeartbeatArrival) -> Void
    private let seal: UDPDatagram.Seal
    private let mark: UInt64
    private let shared = Mutex(Shared())
    private let stopped = Atomic<Bool>(false)
    private let ended = DispatchSemaphore(value: 0)

    private var known: [Known] = []
    private var sequence: UInt64 = 0
    /// When the last so many were sent, by sequence number.
    private var sentAt = [UInt64](repeating: 0, count: 64)
    private let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 512, alignment: 8)
    /// Datagrams that are received before it is looked whether sending is due.
    private static let burst = 64

    init(
        _ settings: UDPHeartbeat.Settings, socket: CInt, permit: @escaping @Sendable () -> Bool,
        onArrival: @escaping @Sendable (HeartbeatArrival) -> Void
    ) {
        self.settings = settings
        self.socket = socket
        self.permit = permit
        self.onArrival = onArrival
        seal = UDPDatagram.Seal(cluster: settings.cluster, key: settings.key)
        mark = UDPDatagram.mark(settings.host.text)
    }

    deinit {
        buffer.deallocate()
        close(socket)
    }

    var counters: UDPHeartbeatCounters { shared.withLock { $0.counters } }

    func setPeers(_ peers: [HeartbeatPeer]) {
        shared.withLock {
            $0.peers = peers
            $0.peersChanged = true
            let names = Set(peers.map(\.host))
            $0.notes = $0.notes.filter { names.contains($0.key) }
        }
    }

    func setNote(_ note: UInt64, for host: HostName) {
        shared.withLock { shared in
            guard shared.peers.contains(where: { $0.host == host }) else { return }
            shared.notes[host] = note
        }
    }

    func stop() {
        guard !stopped.exchange(true, ordering: .sequentiallyConsistent) else { return }
        // Ends the wait of the thread; an unconnected socket says that it is not connected, and
        // does.
        shutdown(socket, CInt(SHUT_RDWR))
        ended.wait()
    }

    // MARK: The thread

    func run() {
        var next = now()
        while !stopped.load(ordering: .sequentiallyConsistent) {
            takePeers()
            let time = now()
            if time >= next {
                if permit() { send(time) }
                // After having been stopped for long, go on from now instead of in a burst.
                next = max(next + settings.periodNanoseconds, now())
            }
            receive()
            let left = Int64(next) - Int64(now())
            // The limit is for `stop`, should the socket not wake us.
            if left > 0 { _ = ftvm_socket_wait(socket, false, min(left / 1_000 + 1, 100_000)) }
        }
        ended.signal()
    }

    private func now() -> UInt64 { DispatchTime.now().uptimeNanoseconds }

    private func takePeers() {
        let peers = shared.withLock { shared -> [HeartbeatPeer]? in
            defer { shared.peersChanged = false }
            return shared.peersChanged ? shared.peers : nil
        }
        guard let peers else { return }
        known = peers.map { peer in
            var entry =
                known.first { $0.peer.host == peer.host }
                ?? Known(peer: peer, mark: UDPDatagram.mark(peer.host.text))
            entry.peer = peer
            return entry
        }
    }

    private func send(_ time: UInt64) {
        sequence += 1
        sentAt[Int(sequence % UInt64(sentAt.count))] = time
        var sent: UInt64 = 0
        var failed: UInt64 = 0
        let notes = shared.withLock { $0.notes }
        let bytes = UnsafeMutableRawBufferPointer(rebasing: buffer[..<UDPDatagram.byteCount])
        for entry in known {
            let echo =
                entry.incarnation == 0
                ? nil
                : UDPDatagram.Echo(
                    incarnation: entry.incarnation, sequence: entry.sequence,
                    ageNanoseconds: time - min(time, entry.heardNanoseconds))
            UDPDatagram(
                sender: settings.host, incarnation: settings.incarnation, sequence: sequence,
                sentNanoseconds: time, echo: echo, note: notes[entry.peer.host] ?? 0
            ).write(to: bytes, recipient: entry.mark, seal: seal)
            let count = entry.peer.endpoint.with { address, length in
                sendto(
                    socket, bytes.baseAddress, bytes.count, CInt(MSG_NOSIGNAL), address,
                    length)
            }
            if count == bytes.count { sent += 1 } else { failed += 1 }
        }
        shared.withLock {
            $0.counters.sent += sent
            $0.counters.sendFailures += failed
        }
    }

    private func receive() {
        for _ in 0..<Self.burst {
            let count = recv(socket, buffer.baseAddress, buffer.count, 0)
            // An error of an earlier datagram (ICMP) may be told here: the next call is free of it.
            if count < 0 && errno != EAGAIN && errno != EINTR { continue }
            guard count >= 0, !stopped.load(ordering: .relaxed) else { return }
            take(UnsafeRawBufferPointer(rebasing: buffer[..<count]), at: now())
        }
    }

    private func take(_ bytes: UnsafeRawBufferPointer, at time: UInt64) {
        let datagram: UDPDatagram
        do throws(UDPDatagram.Refusal) {
            datagram = try UDPDatagram(bytes, recipient: mark, seal: seal)
        } catch {
            count(
                {
                    switch error {
                    case .foreign: \.foreign
                    case .forged: \.forged
                    case .misdirected: \.misdirected
                    }
                }())
            return
        }
        guard let index = known.firstIndex(where: { $0.peer.host == datagram.sender }) else {
            count(\.unknown)
            return
        }
        let entry = known[index]
        let newest = max(entry.incarnation, entry.peer.incarnationMinimum)
        guard
            datagram.incarnation > newest
                || (datagram.incarnation == newest
                    && (entry.incarnation != newest || datagram.sequence > entry.sequence))
        else {
            count(\.replayed)
            return
        }
        known[index].incarnation = datagram.incarnation
        known[index].sequence = datagram.sequence
        known[index].heardNanoseconds = time
        count(\.received)
        onArrival(
            HeartbeatArrival(
                host: datagram.sender, incarnation: datagram.incarnation,
                sequence: datagram.sequence, arrivedNanoseconds: time,
                sentNanoseconds: datagram.sentNanoseconds,
                heardUs: datagram.echo.flatMap { heard($0, at: time) }, note: datagram.note))
    }

    /// An echo of this incarnation of ours.
    private func heard(_ echo: UDPDatagram.Echo, at time: UInt64) -> HeartbeatArrival.Heard? {
        guard echo.incarnation == settings.incarnation, echo.sequence <= sequence else {
            return nil
        }
        var roundTrip: UInt64?
        if sequence - echo.sequence < UInt64(sentAt.count) {
            let passed = time - min(time, sentAt[Int(echo.sequence % UInt64(sentAt.count))])
            roundTrip = passed - min(passed, echo.ageNanoseconds)
        }
        return HeartbeatArrival.Heard(
            sequence: echo.sequence, ageNanoseconds: echo.ageNanoseconds,
            roundTripNanoseconds: roundTrip)
    }

    private func count(_ which: WritableKeyPath<UDPHeartbeatCounters, UInt64>) {
        shared.withLock { $0.counters[keyPath: which] += 1 }
    }
}
