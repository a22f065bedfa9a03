import ClusterStore
import Foundation
import Model
import Testing

/// What every `ClusterStore` must do, whatever is behind it. `open` gives another object on the
/// *same* store each time (another connection, as another host has it).
struct StoreContract {
    let open: () throws -> any ClusterStore

    func all() async throws {
        try await revisions()
        try await compareAndSwap()
        try await listing()
        try await deleting()
        try await limits()
        try await events()
        try await watching()
        try await watchingMany()
        try await racing()
        try await leases()
    }

    func data(_ text: String) -> Data { Data(text.utf8) }

    func fails(
        _ code: FtvmError.Code, _ body: () async throws(FtvmError) -> Void,
        line: SourceLocation = #_sourceLocation
    ) async {
        do throws(FtvmError) {
            try await body()
            Issue.record("no error, expected \(code)", sourceLocation: line)
        } catch {
            #expect(error.code == code, sourceLocation: line)
        }
    }

    /// One revision for the whole store grows with every change; an entry has that of its last
    /// change.
    func revisions() async throws {
        let store = try open()
        let other = try open()
        #expect(try await store.get("r/none") == nil)
        let first = try await store.put("r/a", data("1"), expecting: .any)
        let second = try await other.put("r/b", data("2"), expecting: .any)
        let third = try await store.put("r/a", data("3"), expecting: .any)
        #expect(first < second && second < third)
        let a = try await other.get("r/a")
        #expect(a == StoreEntry(key: "r/a", value: data("3"), revision: third))
        let b = try await store.get("r/b")
        #expect(b?.revision == second)
        #expect(try await store.list("r/").revision >= third)
    }

    func compareAndSwap() async throws {
        let store = try open()
        let other = try open()
        let first = try await store.put("c/a", data("1"), expecting: .absent)
        await fails(.conflict) { () throws(FtvmError) in
            try await other.put("c/a", data("2"), expecting: .absent)
        }
        let second = try await other.put("c/a", data("2"), expecting: .revision(first))
        await fails(.conflict) { () throws(FtvmError) in
            try await store.put("c/a", data("3"), expecting: .revision(first))
        }
        #expect(try await store.get("c/a")?.value == data("2"))
        await fails(.conflict) { () throws(FtvmError) in
            try await store.put("c/none", data("1"), expecting: .revision(second))
        }
        #expect(try await store.get("c/none") == nil)
        try await store.put("c/a", data("4"), expecting: .any)
        await fails(.conflict) { () throws(FtvmError) in
            try await store.delete("c/a", expecting: .revision(second))
        }
        #expect(try await store.get("c/a")?.value == data("4"))
    }

    /// By prefix, sorted by key, in bytes.
    func listing() async throws {
        let store = try open()
        for key in ["l/b", "l/a", "l/a/x", "l0", "l", "l/ä", "l/Z"] {
            try await store.put(key, data(key), expecting: .absent)
        }
        let keys = try await store.list("l/").entries.map(\.key)
        #expect(keys == ["l/Z", "l/a", "l/a/x", "l/b", "l/ä"])
        #expect(try await store.list("l/a").entries.map(\.key) == ["l/a", "l/a/x"])
        #expect(try await store.list("l/none").entries == [])
        #expect(try await store.list("").entries.count >= 7)
        #expect(try await store.list("l/%").entries == [])
        #expect(try await store.list("l/_").entries == [])
    }

    func deleting() async throws {
        let store = try open()
        let before = try await store.put("d/a", data("1"), expecting: .any)
        try await store.delete("d/a", expecting: .revision(before))
        #expect(try await store.get("d/a") == nil)
        let after = try await store.list("d/").revision
        #expect(after > before)
        try await store.delete("d/a", expecting: .any)
        #expect(try await store.list("d/").revision == after)
        await fails(.conflict) { () throws(FtvmError) in
            try await store.delete("d/a", expecting: .revision(before))
        }
        await fails(.invalidArgument) { () throws(FtvmError) in
            try await store.delete("d/a", expecting: .absent)
        }
        // A key that is made again does not fit an expectation from its earlier life.
        let again = try await store.put("d/a", data("2"), expecting: .absent)
        #expect(again > after)
        await fails(.conflict) { () throws(FtvmError) in
            try await store.put("d/a", data("3"), expecting: .revision(before))
        }
    }

    func limits() async throws {
        let store = try open()
        let bad = ["", "a\0b", "a\u{10FFFF}", String(repeating: "k", count: 513)]
        for key in bad {
            await fails(.invalidArgument) { () throws(FtvmError) in
                try await store.put(key, data("1"), expecting: .any)
            }
            await fails(.invalidArgument) { () throws(FtvmError) in _ = try await store.get(key) }
        }
        let most = Data(repeating: 7, count: StoreLimits.valueBytes)
        try await store.put("m/most", most, expecting: .any)
        #expect(try await store.get("m/most")?.value == most)
        await fails(.invalidArgument) { () throws(FtvmError) in
            try await store.put("m/more", most + [1], expecting: .any)
        }
        try await store.put("m/empty", Data(), expecting: .any)
        #expect(try await store.get("m/empty")?.value == Data())
        let odd = "m/ü ' \" % \\ \n"
        try await store.put(odd, data("odd"), expecting: .any)
        #expect(try await store.get(odd)?.value == data("odd"))
    }

    func events() async throws {
        let store = try open()
        func event(_ text: String) -> ClusterEvent {
            ClusterEvent(
                time: 1.5, kind: .promoted, host: HostName("h1"), pair: PairName("demo"),
                message: text, figures: ["promotion-milliseconds": 55.5])
        }
        let start = try await store.events(after: 0, limit: 1).first?.number ?? 0
        #expect(start == 0)
        let first = try await store.appendEvent(event("one"))
        let second = try await store.appendEvent(event("two"))
        let third = try await (try open()).appendEvent(event("three"))
        #expect(first < second && second < third)
        let all = try await store.events(after: 0, limit: 100)
        #expect(all.map(\.message) == ["one", "two", "three"])
        #expect(all.map(\.number) == [first, second, third])
        var expected = event("two")
        expected.number = second
        #expect(all[1] == expected)
        #expect(try await store.events(after: first, limit: 1).map(\.message) == ["two"])
        #expect(try await store.events(after: third, limit: 100) == [])
        #expect(try await store.events(after: .max, limit: 100) == [])
        #expect(try await store.events(after: 0, limit: 0) == [])
    }

    /// A watch begins with what there is, and ends up with the last state, whoever made it.
    func watching() async throws {
        let store = try open()
        let other = try open()
        try await store.put("w/a", data("1"), expecting: .any)
        let seen = Seen(store.watch("w/"))
        #expect(await seen.reaches(["w/a": "1"]))
        try await other.put("w/b", data("2"), expecting: .any)
        #expect(await seen.reaches(["w/a": "1", "w/b": "2"]))
        try await store.put("w/b", data("3"), expecting: .any)
        #expect(await seen.reaches(["w/a": "1", "w/b": "3"]))
        try await other.put("elsewhere", data("x"), expecting: .any)
        for number in 0..<50 {
            try await other.put("w/n", data("\(number)"), expecting: .any)
        }
        #expect(await seen.reaches(["w/a": "1", "w/b": "3", "w/n": "49"]))
        try await other.delete("w/n", expecting: .any)
        #expect(await seen.reaches(["w/a": "1", "w/b": "3"]))
        #expect(await seen.onlyGrewAndNeverRepeated())
    }

    func watchingMany() async throws {
        let store = try open()
        let watches = (0..<8).map { Seen(store.watch("v/\($0)/")) }
        for number in 0..<8 {
            try await store.put("v/\(number)/x", data("\(number)"), expecting: .any)
        }
        for number in 0..<8 {
            #expect(await watches[number].reaches(["v/\(number)/x": "\(number)"]))
        }
    }

    /// Of those who swap at the same time exactly one wins each time: nothing is lost or counted
    /// twice.
    func racing() async throws {
        let stores = try (0..<4).map { _ in try open() }
        try await stores[0].put("counter", data("0"), expecting: .any)
        try await withThrowingTaskGroup(of: Void.self) { group in
            for store in stores {
                group.addTask {
                    var won = 0
                    while won < 50 {
                        guard let entry = try await store.get("counter"),
                            let old = Int(String(decoding: entry.value, as: UTF8.self))
                        else { return }
                        do throws(FtvmError) {
                            try await store.put(
                                "counter", Data("\(old + 1)".utf8),
                                expecting: .revision(entry.revision))
                            won += 1
                        } catch {
                            guard error.code == .conflict else { throw error }
                        }
                    }
                }
            }
            try await group.waitForAll()
        }
        #expect(try await stores[0].get("counter")?.value == data("200"))
    }
}

extension StoreContract {
    /// Keys go with their lease, not before its time and not much later, and a watch is told.
    func leases() async throws {
        let store = try open()
        let other = try open()
        let start = ContinuousClock.now
        let lease = try await store.grantLease(milliseconds: 1_000)
        let kept = try await store.grantLease(milliseconds: 1_000)
        #expect(lease != kept && lease.timeToLiveMilliseconds >= 1_000)
        let first = try await store.put("e/a", data("1"), expecting: .absent, lease: lease)
        try await store.put("e/stays", data("1"), expecting: .absent, lease: lease)
        try await store.put("e/stays", data("2"), expecting: .any)
        try await store.put("e/kept", data("1"), expecting: .absent, lease: kept)
        await fails(.conflict) { () throws(FtvmError) in
            try await other.put("e/a", data("2"), expecting: .absent)
        }
        let seen = Seen(other.watch("e/"))
        #expect(await seen.reaches(["e/a": "1", "e/stays": "2", "e/kept": "1"]))
        let time = Duration.milliseconds(lease.timeToLiveMilliseconds)
        while start.duration(to: .now) < time {
            try await other.keepAlive(kept)
            // Asked before the time is looked at: what was there before the end may be there.
            let there = try await other.get("e/a")
            guard start.duration(to: .now) < time else { break }
            #expect(there?.revision == first)
            try await Task.sleep(for: .milliseconds(50))
        }
        let keeper = Task {
            while !Task.isCancelled {
                try? await other.keepAlive(kept)
                try? await Task.sleep(for: .milliseconds(200))
            }
        }
        #expect(await seen.reaches(["e/stays": "2", "e/kept": "1"]))
        #expect(try await store.get("e/a") == nil)
        #expect(try await store.list("e/").revision > first)
        #expect(await seen.onlyGrewAndNeverRepeated())
        await fails(.notFound) { () throws(FtvmError) in try await store.keepAlive(lease) }
        await fails(.notFound) { () throws(FtvmError) in
            try await store.put("e/a", data("2"), expecting: .absent, lease: lease)
        }
        #expect(try await store.get("e/a") == nil)
        try await store.revoke(lease)
        keeper.cancel()
        await keeper.value
        try await store.revoke(kept)
        #expect(try await store.get("e/kept") == nil)
        #expect(await seen.reaches(["e/stays": "2"]))
    }
}

/// Collects what a watch tells.
actor Seen {
    private var listings: [StoreListing] = []
    private(set) var failures: [FtvmError] = []

    init(_ stream: AsyncStream<StoreChange>) {
        Task { [weak self] in
            for await change in stream { await self?.take(change) }
        }
    }

    private func take(_ change: StoreChange) {
        switch change {
        case .current(let listing): listings.append(listing)
        case .unavailable(let error): failures.append(error)
        }
    }

    /// Waits until the last thing told is this; false after 10 s.
    func reaches(_ state: [String: String]) async -> Bool {
        for _ in 0..<2_000 {
            if let last = listings.last {
                let told = last.entries.map { ($0.key, String(decoding: $0.value, as: UTF8.self)) }
                if Dictionary(uniqueKeysWithValues: told) == state { return true }
            }
            try? await Task.sleep(for: .milliseconds(5))
        }
        return false
    }

    func onlyGrewAndNeverRepeated() -> Bool {
        zip(listings, listings.dropFirst()).allSatisfy {
            $0.revision < $1.revision && $0.entries != $1.entries
        }
    }
}
