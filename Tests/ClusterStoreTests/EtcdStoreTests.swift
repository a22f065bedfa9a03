import CertificateSupport
import ClusterStore
import Foundation
import Glibc
import Model
import Synchronization
import Testing
import TransportSecurity

@Suite struct EtcdStoreTests {
    private func failure(_ options: EtcdOptions) async -> FtvmError? {
        do throws(FtvmError) {
            try await EtcdStore(options: options).check()
            return nil
        } catch {
            return error
        }
    }

    @Test func keepsTheContractOverTLS() async throws {
        let authority = try TestAuthority()
        let cluster = try EtcdCluster(tls: authority.issue("etcd"))
        let options = cluster.options(tls: try authority.issue("h1"))
        _ = try await cluster.ready(options)
        try await StoreContract { try EtcdStore(options: options) }.all()
    }

    /// A follower and then the leader is lost while hosts write; nothing that was said to be done
    /// is lost, nothing is done twice, and a watch ends up right. Then all of the contract with one
    /// member dead.
    @Test func losesNothingWithItsMembers() async throws {
        let cluster = try EtcdCluster(members: 3)
        let options = cluster.options()
        let store = try await cluster.ready(options)
        try await store.put("n/counter", Data("0".utf8), expecting: .absent)
        let seen = Seen(store.watch("n/"))
        let leader = try #require(await cluster.leader())
        let counters = (0..<3).map { _ in Counter(options) }
        let tasks = counters.map { counter in Task { try await counter.run() } }
        try await Task.sleep(for: .milliseconds(300))
        cluster.kill((leader + 1) % 3)
        try await Task.sleep(for: .milliseconds(300))
        try cluster.start((leader + 1) % 3)
        try await Task.sleep(for: .milliseconds(700))
        cluster.kill(leader)
        try await Task.sleep(for: .seconds(2))
        for counter in counters { counter.stop() }
        for task in tasks { try await task.value }
        let final = try #require(try await store.get("n/counter"))
        let value = try #require(Int(String(decoding: final.value, as: UTF8.self)))
        let done = counters.map(\.done).reduce(0, +)
        let unknown = counters.map(\.unknown).reduce(0, +)
        #expect(counters.allSatisfy { $0.done > 0 })
        #expect((done...done + unknown).contains(value), "\(value), done \(done), \(unknown)")
        #expect(await seen.reaches(["n/counter": "\(value)"]))
        let rest = cluster.options(prefix: "/rest/")
        try await StoreContract { try EtcdStore(options: rest) }.all()
    }

    /// A leader that is frozen keeps its connections: calls go to another member in time, and the
    /// watch, whose stream is silent, goes on elsewhere.
    @Test func aFrozenLeaderIsLeft() async throws {
        let cluster = try EtcdCluster(members: 3)
        let leader = try #require(await cluster.leader())
        var options = cluster.options()
        options.endpoints.swapAt(0, leader)
        options.attemptMilliseconds = 1_000
        let store = try await cluster.ready(options)
        try await store.put("f/a", Data("1".utf8), expecting: .any)
        let seen = Seen(store.watch("f/"))
        #expect(await seen.reaches(["f/a": "1"]))
        cluster.freeze(leader)
        let other = try EtcdStore(options: options)
        var revision: UInt64?
        for _ in 0..<10 where revision == nil {
            do throws(FtvmError) {
                revision = try await other.put("f/a", Data("2".utf8), expecting: .any)
            } catch {
                // The frozen leader may have got it: nobody knows.
                #expect(error.code == .timedOut)
            }
        }
        #expect(revision != nil)
        #expect(try await store.get("f/a")?.value == Data("2".utf8))
        #expect(await seen.reaches(["f/a": "2"]))
        cluster.thaw(leader)
        #expect(try await store.get("f/a")?.value == Data("2".utf8))
    }

    @Test func withoutAQuorumItSaysSoAndComesBack() async throws {
        let cluster = try EtcdCluster(members: 3)
        var options = cluster.options()
        options.attemptMilliseconds = 1_000
        options.requestMilliseconds = 1_500
        let store = try await cluster.ready(options)
        try await store.put("q/a", Data("1".utf8), expecting: .any)
        let seen = Seen(store.watch("q/"))
        #expect(await seen.reaches(["q/a": "1"]))
        cluster.kill(1)
        cluster.kill(2)
        let error = try #require(await quorumLost(store))
        #expect(error.code == .unavailable)
        #expect(error.message.contains("no quorum"), "\(error)")
        #expect(error.cause?.contains("has no leader") == true, "\(error)")
        #expect(error.advice?.contains("more than half") == true)
        for _ in 0..<1_000 where await seen.failures.isEmpty {
            try await Task.sleep(for: .milliseconds(5))
        }
        #expect(await seen.failures.count == 1)
        try cluster.start(1)
        _ = try await cluster.ready(cluster.options())
        try await store.put("q/a", Data("2".utf8), expecting: .any)
        #expect(await seen.reaches(["q/a": "2"]))
    }

    /// The member that is left may believe in its leader for a moment.
    private func quorumLost(_ store: EtcdStore) async -> FtvmError? {
        var last: FtvmError?
        for _ in 0..<5 {
            do throws(FtvmError) {
                _ = try await store.get("q/a")
            } catch {
                last = error
                if error.message.contains("no quorum") { return error }
            }
        }
        return last
    }

    @Test func aWatchOutlivesCompactionAndAnOutage() async throws {
        let cluster = try EtcdCluster()
        let store = try await cluster.ready(cluster.options())
        try await store.put("w/a", Data("1".utf8), expecting: .any)
        try await store.put("w/gone", Data("1".utf8), expecting: .any)
        let seen = Seen(store.watch("w/"))
        #expect(await seen.reaches(["w/a": "1", "w/gone": "1"]))
        // What happens while we do not look is compacted away.
        cluster.kill(0)
        try cluster.start(0)
        let other = try await cluster.ready(cluster.options())
        var last: UInt64 = 0
        for number in 0..<20 {
            last = try await other.put("w/a", Data("\(number)".utf8), expecting: .any)
        }
        try await other.delete("w/gone", expecting: .any)
        #expect(await cluster.ctl(["compaction", "--physical", "\(last)"]) != nil)
        #expect(await seen.reaches(["w/a": "19"]))
        try await other.put("w/a", Data("end".utf8), expecting: .any)
        #expect(await seen.reaches(["w/a": "end"]))
    }

    @Test func nobodyThereIsSaidInTime() async throws {
        var options = EtcdOptions(endpoints: ["http://127.0.0.1:1", "http://127.0.0.1:2"])
        options.attemptMilliseconds = 1_000
        options.requestMilliseconds = 1_500
        let start = ContinuousClock.now
        let error = try #require(await failure(options))
        #expect(start.duration(to: .now) < .seconds(10))
        #expect(error.code == .unavailable)
        #expect(error.cause?.contains("http://127.0.0.1:1") == true, "\(error)")
        #expect(error.cause?.contains("refused") == true, "\(error)")
        #expect(error.advice?.contains("etcd runs") == true)
    }

    @Test func whatIsWrongWithCertificatesIsSaid() async throws {
        let authority = try TestAuthority()
        let stranger = try TestAuthority()
        let cluster = try EtcdCluster(tls: authority.issue("etcd"))
        let good = try authority.issue("h1")
        _ = try await cluster.ready(cluster.options(tls: good))
        func wrong(_ files: TLSFiles) async -> FtvmError? {
            var options = cluster.options(tls: files)
            options.attemptMilliseconds = 1_000
            options.requestMilliseconds = 1_000
            return await failure(options)
        }
        let distrusting = try authority.issue("h2", trusts: stranger)
        let distrust = await wrong(distrusting)
        #expect(distrust?.code == .unavailable)
        #expect(distrust?.advice?.contains("configured authority") == true, "\(distrust as Any)")
        let distrusted = await wrong(try stranger.issue("h3", trusts: authority))
        #expect(distrusted?.code == .unavailable)
        #expect(distrusted?.advice?.contains("this host's") == true, "\(distrusted as Any)")
        let expired = await wrong(try authority.issue("h4", days: -1))
        #expect(expired?.code == .invalidArgument)
        #expect(expired?.message.contains("expired") == true, "\(expired as Any)")
        var mixed = good
        mixed.keyPath = distrusting.keyPath
        #expect(await wrong(mixed)?.message.contains("not that of the certificate") == true)
        var absent = good
        absent.certificatePath = "/nonexistent"
        #expect(await wrong(absent)?.code == .notFound)
        var options = cluster.options(tls: nil)
        #expect(await failure(options)?.message.contains("needs certificates") == true)
        options.endpoints = ["127.0.0.1:2379"]
        #expect(await failure(options)?.code == .invalidArgument)
    }

    @Test func userAndPasswordAreUsedAndWrongOnesRefused() async throws {
        let cluster = try EtcdCluster()
        var options = cluster.options()
        _ = try await cluster.ready(options)
        for step in [
            ["user", "add", "root:word"], ["user", "grant-role", "root", "root"],
            ["auth", "enable"],
        ] {
            #expect(await cluster.ctl(step) != nil)
        }
        let anonymous = await failure(options)
        #expect(anonymous?.code == .permissionDenied)
        #expect(anonymous?.advice?.contains("user") == true)
        options.user = "root"
        options.password = "wrong"
        let wrong = await failure(options)
        #expect(wrong?.code == .permissionDenied)
        #expect(wrong?.description.contains("wrong") == false)
        options.password = "word"
        let store = try EtcdStore(options: options)
        try await store.put("a", Data("1".utf8), expecting: .absent)
        let seen = Seen(store.watch("a"))
        #expect(await seen.reaches(["a": "1"]))
    }

    /// Answers that are lost on their way back.
    @Test func aLostAnswerIsNotTakenForADeadWrite() async throws {
        let cluster = try EtcdCluster()
        let direct = try await cluster.ready(cluster.options())
        let thief = try AnswerThief(port: UInt16(cluster.endpoints[0].split(separator: ":")[2])!)
        var options = cluster.options()
        options.endpoints = ["http://127.0.0.1:\(thief.port)"]
        let store = try EtcdStore(options: options)
        let first = try await direct.put("t/a", Data("1".utf8), expecting: .absent)
        // Done, and said to be not known: the value could be another host's as well.
        thief.steal(1)
        do throws(FtvmError) {
            try await store.put("t/a", Data("2".utf8), expecting: .revision(first))
            Issue.record("said to be done")
        } catch {
            #expect(error.code == .timedOut)
        }
        #expect(try await direct.get("t/a")?.value == Data("2".utf8))
        thief.steal(1)
        do throws(FtvmError) {
            try await store.put("t/a", Data("3".utf8), expecting: .any)
            Issue.record("said to be done")
        } catch {
            #expect(error.code == .timedOut)
            #expect(error.advice?.contains("read it again") == true)
        }
        #expect(try await direct.get("t/a")?.value == Data("3".utf8))
        // Lost, and then said to be a conflict by nobody.
        thief.steal(1)
        do throws(FtvmError) {
            try await store.put("t/a", Data("4".utf8), expecting: .revision(first))
            Issue.record("said to be done")
        } catch {
            #expect(error.code == .timedOut)
        }
        #expect(try await direct.get("t/a")?.value == Data("3".utf8))
        // An event is there once.
        thief.steal(2)
        let event = ClusterEvent(time: 0, kind: .failed, host: HostName("h1"), message: "x")
        let number = try await store.appendEvent(event)
        #expect(try await direct.events(after: 0, limit: 10).map(\.number) == [number])
        // Reading is simply done again.
        thief.steal(2)
        #expect(try await store.get("t/a")?.value == Data("3".utf8))
        #expect(thief.stolen == 7)
    }
}

/// Counts up by compare-and-swap until it is stopped, as a host does that is careful.
private final class Counter: Sendable {
    private let options: EtcdOptions
    private let state = Mutex((stopped: false, done: 0, unknown: 0))
    var done: Int { state.withLock { $0.done } }
    var unknown: Int { state.withLock { $0.unknown } }

    init(_ options: EtcdOptions) { self.options = options }

    func stop() { state.withLock { $0.stopped = true } }

    func run() async throws {
        let store = try EtcdStore(options: options)
        while !state.withLock({ $0.stopped }) {
            do throws(FtvmError) {
                guard let entry = try await store.get("n/counter"),
                    let old = Int(String(decoding: entry.value, as: UTF8.self))
                else { continue }
                try await store.put(
                    "n/counter", Data("\(old + 1)".utf8), expecting: .revision(entry.revision))
                state.withLock { $0.done += 1 }
            } catch {
                switch error.code {
                case .conflict, .unavailable: break
                case .timedOut: state.withLock { $0.unknown += 1 }
                default: throw error
                }
            }
        }
    }
}
