import Foundation
import Glibc
import Heartbeat
import Model
import Synchronization
import Testing

private let key = try! ClusterKey(bytes: [UInt8](repeating: 7, count: 32))

/// Collects arrivals.
private final class Arrivals: Sendable {
    private let state = Mutex([HeartbeatArrival]())
    var all: [HeartbeatArrival] { state.withLock { $0 } }
    func take(_ arrival: HeartbeatArrival) { state.withLock { $0.append(arrival) } }
}

/// A plain socket on loopback: somebody on the network.
private final class Plain {
    let descriptor: CInt
    let endpoint: UDPEndpoint

    init() throws {
        descriptor = socket(AF_INET, CInt(SOCK_DGRAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = inet_addr("127.0.0.1")
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let descriptor = descriptor
        withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                precondition(bind(descriptor, $0, length) == 0)
                precondition(getsockname(descriptor, $0, &length) == 0)
            }
        }
        endpoint = try UDPEndpoint(
            address: "127.0.0.1", port: UInt16(bigEndian: address.sin_port))
        var limit = timeval(tv_sec: 5, tv_usec: 0)
        setsockopt(
            descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    }
    deinit { close(descriptor) }

    func receive() throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 2_000)
        let count = recv(descriptor, &bytes, bytes.count, 0)
        try #require(count > 0)
        return Array(bytes[..<count])
    }

    func send(_ bytes: [UInt8], to endpoint: UDPEndpoint) {
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = inet_addr(endpoint.address)
        address.sin_port = endpoint.port.bigEndian
        let count = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                sendto(
                    descriptor, bytes, bytes.count, 0, $0,
                    socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        #expect(count == bytes.count)
    }
}

/// With a port that the kernel chooses.
private func loopback(_ address: String = "127.0.0.1") throws -> UDPEndpoint {
    try UDPEndpoint(address: address, port: 0)
}

private func wait(
    _ what: String = "", line: SourceLocation = #_sourceLocation, _ condition: () -> Bool
) async throws {
    for _ in 0..<2_000 where !condition() { try await Task.sleep(for: .milliseconds(5)) }
    #expect(condition(), "\(what)", sourceLocation: line)
}

@Suite struct UDPHeartbeatTests {
    private func settings(
        _ host: String, _ local: UDPEndpoint, incarnation: UInt64 = 1, cluster: String = "test",
        key: ClusterKey = key, milliseconds: UInt64 = 10
    ) -> UDPHeartbeat.Settings {
        UDPHeartbeat.Settings(
            cluster: cluster, key: key, host: HostName(host), incarnation: incarnation,
            local: local, periodNanoseconds: milliseconds * 1_000_000)
    }

    private func peer(_ host: String, _ endpoint: UDPEndpoint, from: UInt64 = 0) -> HeartbeatPeer {
        HeartbeatPeer(host: HostName(host), endpoint: endpoint, incarnationMinimum: from)
    }

    @Test(arguments: ["127.0.0.1", "::1"])
    func hostsHearEachOtherAndKnowIt(address: String) async throws {
        let heard = (0..<3).map { _ in Arrivals() }
        let hosts = try (0..<3).map { index in
            try UDPHeartbeat(
                settings("h\(index)", try loopback(address), incarnation: UInt64(10 + index)),
                onArrival: heard[index].take)
        }
        let ends = hosts.map(\.local)
        let start = DispatchTime.now().uptimeNanoseconds
        for index in ends.indices {
            hosts[index].setPeers(
                ends.indices.filter { $0 != index }.map { peer("h\($0)", ends[$0]) })
        }
        for index in ends.indices {
            for other in ends.indices where other != index {
                try await wait("h\(index) hears that h\(other) hears it") {
                    heard[index].all.contains {
                        $0.host == HostName("h\(other)") && $0.incarnation == UInt64(10 + other)
                            && ($0.heardUs?.sequence ?? 0) > 3
                    }
                }
            }
        }
        // What one has to say to another gets there, and only there.
        hosts[0].setNote(4_711, for: HostName("h1"))
        hosts[0].setNote(1, for: HostName("nobody"))
        try await wait { heard[1].all.contains { $0.note == 4_711 && $0.host == HostName("h0") } }
        #expect(heard[2].all.allSatisfy { $0.note == 0 })
        for host in hosts { host.stop() }
        for arrivals in heard {
            let all = arrivals.all
            for pair in zip(all, all.dropFirst()) where pair.0.host == pair.1.host {
                #expect(pair.0.sequence < pair.1.sequence)
            }
            #expect(all.allSatisfy { $0.arrivedNanoseconds > start })
            // One machine has one clock here.
            #expect(all.allSatisfy { $0.arrivedNanoseconds >= $0.sentNanoseconds })
            let trips = all.compactMap(\.heardUs?.roundTripNanoseconds)
            #expect(!trips.isEmpty && trips.allSatisfy { $0 < 5_000_000_000 })
        }
        for host in hosts {
            let counters = host.counters
            #expect(counters.received > 0 && counters.sent > 0 && counters.sendFailures == 0)
            #expect(counters.forged == 0 && counters.misdirected == 0 && counters.replayed == 0)
        }
        // Stopped is silent.
        let count = heard[0].all.count
        try await Task.sleep(for: .milliseconds(50))
        #expect(heard[0].all.count == count)
    }

    @Test func whatIsNotAPeersNewHeartbeatIsCountedAndDropped() async throws {
        let heard = Arrivals()
        let host = try UDPHeartbeat(settings("h1", try loopback()), onArrival: heard.take)
        let local = host.local
        let network = try Plain()
        host.setPeers([peer("h2", network.endpoint, from: 5)])

        /// A genuine datagram of another host, caught on its way.
        func datagrams(
            of name: String, to recipient: String = "h1", incarnation: UInt64 = 5,
            cluster: String = "test", key: ClusterKey = key, count: Int = 1
        ) throws -> [[UInt8]] {
            let catcher = try Plain()
            let sender = try UDPHeartbeat(
                settings(
                    name, try loopback(), incarnation: incarnation, cluster: cluster, key: key)
            ) { _ in }
            sender.setPeers([peer(recipient, catcher.endpoint)])
            defer { sender.stop() }
            return try (0..<count).map { _ in try catcher.receive() }
        }

        let good = try datagrams(of: "h2", count: 3)
        #expect(good[0].count == 168)
        network.send(good[1], to: local)
        try await wait { host.counters.received == 1 }
        network.send(good[1], to: local)
        network.send(good[0], to: local)
        try await wait { host.counters.replayed == 2 }
        network.send(try datagrams(of: "h2", incarnation: 4)[0], to: local)
        try await wait { host.counters.replayed == 3 }
        network.send(try datagrams(of: "h3")[0], to: local)
        try await wait { host.counters.unknown == 1 }
        network.send(try datagrams(of: "h2", to: "h9")[0], to: local)
        try await wait { host.counters.misdirected == 1 }
        let other = try ClusterKey(bytes: [UInt8](repeating: 8, count: 32))
        network.send(try datagrams(of: "h2", key: other)[0], to: local)
        try await wait { host.counters.forged == 1 }
        network.send(try datagrams(of: "h2", cluster: "another")[0], to: local)
        for length in [0, 1, 167, 169, 512, 1_400] {
            network.send(
                Array((good[2] + [UInt8](repeating: 0, count: 1_400))[..<length]), to: local)
        }
        try await wait { host.counters.foreign == 7 }
        // Any one bit changed is found.
        for index in good[2].indices {
            var changed = good[2]
            changed[index] ^= 1 << (index % 8)
            network.send(changed, to: local)
            // One at a time: a socket's buffer is small.
            let seen = UInt64(index + 1)
            try await wait { host.counters.forged + host.counters.foreign == 8 + seen }
        }
        #expect(host.counters.received == 1)
        #expect(heard.all.map(\.incarnation) == [5])
        network.send(good[2], to: local)
        try await wait { host.counters.received == 2 }
        // A restarted host counts from one again.
        let restarted = try datagrams(of: "h2", incarnation: 6)[0]
        network.send(restarted, to: local)
        try await wait { host.counters.received == 3 }
        network.send(good[2], to: local)
        try await wait { host.counters.replayed == 4 }
        host.stop()
    }

    /// The thread lives, the daemon does not: others must see that.
    @Test func withoutPermissionNothingIsSent() async throws {
        let permitted = Arrivals()
        let heard = Arrivals()
        let flag = Flag()
        let h1 = try UDPHeartbeat(
            settings("h1", try loopback()), permit: { flag.value }, onArrival: permitted.take)
        let h2 = try UDPHeartbeat(settings("h2", try loopback()), onArrival: heard.take)
        h1.setPeers([peer("h2", h2.local)])
        h2.setPeers([peer("h1", h1.local)])
        try await wait { permitted.all.count >= 10 }
        #expect(heard.all.isEmpty && h1.counters.sent == 0)
        flag.value = true
        try await wait { heard.all.count >= 3 }
        h1.stop()
        h2.stop()
    }

    @Test func whatCannotWorkIsRefusedAtTheStart() throws {
        func code(_ body: () throws(FtvmError) -> Void) -> FtvmError.Code? {
            do throws(FtvmError) {
                try body()
                return nil
            } catch {
                return error.code
            }
        }
        func opening(_ endpoint: UDPEndpoint, _ host: String = "h1") -> FtvmError.Code? {
            code { () throws(FtvmError) in
                try UDPHeartbeat(settings(host, endpoint)) { _ in }.stop()
            }
        }
        let taken = try Plain()
        #expect(opening(taken.endpoint) == .unavailable)
        #expect(opening(try UDPEndpoint("192.0.2.1:7750")) == .unavailable)
        #expect(opening(try loopback(), String(repeating: "h", count: 64)) == .invalidArgument)
        for text in [
            "127.0.0.1", "localhost:1", "::1:7750", "[::1]", "127.0.0.1:0", "1.2.3.4:x", "",
        ] {
            #expect(
                code { () throws(FtvmError) in _ = try UDPEndpoint(text) } == .invalidArgument,
                "\(text)")
        }
        #expect(try UDPEndpoint("[::1]:7750").description == "[::1]:7750")
        #expect(
            code { () throws(FtvmError) in _ = try ClusterKey(bytes: [1, 2, 3]) }
                == .invalidArgument)
    }

    @Test func theKeysFileIsReadAndMustBeSecret() throws {
        let directory = try Directory()
        let path = directory.path + "/key"
        func code() -> FtvmError.Code? {
            do throws(FtvmError) {
                _ = try ClusterKey(path: path)
                return nil
            } catch {
                return error.code
            }
        }
        #expect(code() == .notFound)
        try Data("\n\(String(repeating: "k", count: 31))  \n".utf8).write(
            to: URL(fileURLWithPath: path))
        chmod(path, 0o640)
        #expect(code() == .permissionDenied)
        chmod(path, 0o600)
        #expect(code() == .invalidArgument)
        try Data("\n\(String(repeating: "k", count: 32))  \n".utf8).write(
            to: URL(fileURLWithPath: path))
        chmod(path, 0o600)
        #expect(code() == nil)
        try Data(repeating: 65, count: 5_000).write(to: URL(fileURLWithPath: path))
        chmod(path, 0o600)
        #expect(code() == .invalidArgument)
    }

    /// How much of the thread's time goes into one datagram each way.
    @Test func aDatagramCostsMicroseconds() async throws {
        let heard = Arrivals()
        let h1 = try UDPHeartbeat(settings("h1", try loopback(), milliseconds: 1)) { _ in }
        let h2 = try UDPHeartbeat(
            settings("h2", try loopback(), milliseconds: 1_000), onArrival: heard.take)
        h1.setPeers([peer("h2", h2.local)])
        h2.setPeers([peer("h1", h1.local)])
        try await wait { heard.all.count >= 100 }
        h1.stop()
        h2.stop()
        let delays = heard.all.map { $0.arrivedNanoseconds - $0.sentNanoseconds }.sorted()
        // Sealing, sending, receiving and checking; the bound is for a busy machine.
        #expect(delays[delays.count / 2] < 2_000_000, "median \(delays[delays.count / 2]) ns")
    }
}

private final class Flag: Sendable {
    private let state = Mutex(false)
    var value: Bool {
        get { state.withLock { $0 } }
        set { state.withLock { $0 = newValue } }
    }
}
