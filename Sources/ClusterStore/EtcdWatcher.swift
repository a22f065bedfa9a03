import Foundation
import Model
import Synchronization

/// Tells watches of changes in etcd.
///
/// One stream from one member follows everything under the root, from the revision at which all of
/// it was listed; a copy of it is kept here, and each watch is told its part of the copy. When the
/// stream ends (the member died, was cut off, or no longer keeps the revision that is asked for),
/// all is listed again and another stream begun. A stream that is silent though something changed
/// is found by a comparison of keys and revisions from time to time.
final class EtcdWatcher: Sendable {
    private struct Watch {
        let prefix: String
        let continuation: AsyncStream<StoreChange>.Continuation
        var told = Told.nothing
    }

    private enum Told {
        case nothing, current, unavailable
    }

    private struct State {
        var watches: [UInt64: Watch] = [:]
        var nextID: UInt64 = 1
        var closed = false
        var task: Task<Void, Never>?
        /// Which task may write here: one that was cancelled may still be on its way out.
        var run: UInt64 = 0
        /// By bytes: text that merely looks the same is another key.
        var copy: [Data: StoreEntry] = [:]
        /// The revision of the copy; nil: there is none that can be trusted.
        var revision: UInt64?
    }

    private let client: EtcdClient
    private let root: String
    private let state = Mutex(State())

    init(client: EtcdClient, root: String) {
        self.client = client
        self.root = root
    }

    /// Ends every watch. May be called more than once.
    func close() {
        let (watches, task) = state.withLock { state in
            state.closed = true
            state.run += 1
            defer {
                state.watches = [:]
                state.task = nil
            }
            return (state.watches, state.task)
        }
        task?.cancel()
        for watch in watches.values { watch.continuation.finish() }
    }

    func watch(_ prefix: String) -> AsyncStream<StoreChange> {
        let (stream, continuation) = AsyncStream.makeStream(
            of: StoreChange.self, bufferingPolicy: .bufferingNewest(1))
        var id: UInt64 = 0
        let refusal = state.withLock { state -> FtvmError? in
            guard !state.closed else {
                return FtvmError(.unavailable, "the cluster store (etcd) is closed")
            }
            guard state.watches.count < StoreLimits.watches else {
                return FtvmError(
                    .resourceExhausted, "the cluster store (etcd) is watched too often",
                    cause: "at most \(StoreLimits.watches) watches at a time")
            }
            id = state.nextID
            state.nextID += 1
            state.watches[id] = Watch(prefix: prefix, continuation: continuation)
            if state.revision != nil {
                Self.tell(&state, changed: [])
            } else if state.task == nil {
                state.run += 1
                let run = state.run
                state.task = Task { [weak self] in await self?.follow(run: run) }
            }
            return nil
        }
        if let refusal {
            continuation.yield(.unavailable(refusal))
            continuation.finish()
            return stream
        }
        continuation.onTermination = { [weak self, id] _ in self?.end(id) }
        return stream
    }

    /// The last one to go ends the stream as well.
    private func end(_ id: UInt64) {
        let task = state.withLock { state -> Task<Void, Never>? in
            guard state.watches.removeValue(forKey: id) != nil, state.watches.isEmpty else {
                return nil
            }
            state.run += 1
            state.copy = [:]
            state.revision = nil
            defer { state.task = nil }
            return state.task
        }
        task?.cancel()
    }

    // MARK: Following

    private static let pause = Duration.milliseconds(200)

    private func follow(run: UInt64) async {
        while !Task.isCancelled {
            do throws(FtvmError) {
                let listing = try await EtcdStore.list(client, root: root, "")
                guard install(listing, run: run) else { return }
                try await follow(from: listing.revision + 1, run: run)
            } catch {
                guard !Task.isCancelled else { return }
                fail(error, run: run)
                try? await Task.sleep(for: Self.pause)
            }
        }
    }

    /// Returns when the stream has ended or can no longer be trusted, which is no outage yet:
    /// listing again will tell.
    /// - Throws: when the comparison finds that the store does not answer.
    private func follow(from revision: UInt64, run: UInt64) async throws(FtvmError) {
        let outage = await withTaskGroup(of: FtvmError?.self) { group in
            group.addTask { [self] in
                await stream(from: revision, run: run)
                return nil
            }
            group.addTask { [self] in
                do throws(FtvmError) {
                    while try await agrees(run: run) {
                        try? await Task.sleep(for: .milliseconds(client.options.rereadMilliseconds))
                    }
                    return nil
                } catch {
                    return error
                }
            }
            defer { group.cancelAll() }
            return await group.next() ?? nil
        }
        if let outage, !Task.isCancelled { throw outage }
        // A stream that ends at once each time must not become a busy loop.
        try? await Task.sleep(for: .milliseconds(20))
    }

    private func stream(from revision: UInt64, run: UInt64) async {
        let start = Data(root.utf8)
        // What ended it does not matter: listing again finds out.
        try? await client.stream(
            "/v3/watch",
            EtcdWatchRequest(
                create_request: .init(
                    key: start, range_end: start.etcdPrefixEnd,
                    start_revision: EtcdNumber(Int64(revision))))
        ) { [self] line in
            let answer = try JSONDecoder().decode(EtcdStreamed<EtcdWatchAnswer>.self, from: line)
            if let error = answer.error { throw EtcdFailure(error, status: 200) }
            guard let told = answer.result, told.canceled != true else {
                throw EtcdFailure(.notDone, "the watch was cancelled")
            }
            guard try apply(told, run: run) else { throw CancellationError() }
        }
    }

    /// Whether the copy is what the store has, give or take what is on its way just now.
    private func agrees(run: UInt64) async throws(FtvmError) -> Bool {
        let listing = try await EtcdStore.list(client, root: root, "", keysOnly: true)
        let there = Dictionary(
            uniqueKeysWithValues: listing.entries.map { (Data($0.key.utf8), $0.revision) })
        for _ in 0..<10 {
            let verdict = state.withLock { state -> Bool? in
                guard state.run == run, let revision = state.revision else { return false }
                // Ahead of the listing: the stream lives.
                if revision > listing.revision { return true }
                return state.copy.mapValues(\.revision) == there ? true : nil
            }
            if let verdict { return verdict }
            try? await Task.sleep(for: .milliseconds(50))
        }
        return false
    }

    // MARK: The copy

    /// A listing in place of the copy; false when this run is over.
    private func install(_ listing: StoreListing, run: UInt64) -> Bool {
        state.withLock { state in
            guard state.run == run else { return false }
            var copy: [Data: StoreEntry] = [:]
            for entry in listing.entries { copy[Data(entry.key.utf8)] = entry }
            var changed = copy.filter { state.copy[$0.key]?.revision != $0.value.revision }.map(
                \.key)
            changed += state.copy.keys.filter { copy[$0] == nil }
            state.copy = copy
            state.revision = listing.revision
            Self.tell(&state, changed: changed)
            return true
        }
    }

    /// Changes in the order in which they were made; false when this run is over.
    private func apply(_ answer: EtcdWatchAnswer, run: UInt64) throws(FtvmError) -> Bool {
        var changed: [(key: Data, entry: StoreEntry?, revision: UInt64)] = []
        for event in answer.events ?? [] {
            let name = Data(event.kv.key.dropFirst(root.utf8.count))
            let entry = try EtcdStore.entry(event.kv, root: root)
            changed.append((name, event.type == "DELETE" ? nil : entry, entry.revision))
        }
        // Not the header's: it may be ahead of events that are still to come.
        let revision = changed.map(\.revision).max() ?? 0
        return state.withLock { state in
            guard state.run == run else { return false }
            for change in changed { state.copy[change.key] = change.entry }
            state.revision = max(state.revision ?? 0, revision)
            if !changed.isEmpty { Self.tell(&state, changed: changed.map(\.key)) }
            return true
        }
    }

    private func fail(_ error: FtvmError, run: UInt64) {
        state.withLock { state in
            guard state.run == run else { return }
            state.revision = nil
            // Said once for one outage, whatever the words.
            for (id, watch) in state.watches where watch.told != .unavailable {
                state.watches[id]?.told = .unavailable
                watch.continuation.yield(.unavailable(error))
            }
        }
    }

    /// Tells the watches that one of the changed keys concerns, and those that do not know how
    /// things are.
    private static func tell(_ state: inout State, changed: [Data]) {
        for (id, watch) in state.watches {
            let prefix = Data(watch.prefix.utf8)
            guard watch.told != .current || changed.contains(where: { $0.starts(with: prefix) })
            else { continue }
            let entries = state.copy.filter { $0.key.starts(with: prefix) }
                .sorted { $0.key.lexicographicallyPrecedes($1.key) }.map(\.value)
            state.watches[id]?.told = .current
            watch.continuation.yield(
                .current(StoreListing(entries: entries, revision: state.revision ?? 0)))
        }
    }
}
