import Foundation
import GuestClients
import Synchronization

/// When a client ends: after its time, or when whoever started it says so by closing its standard input.
final class Ending: Sendable {
    private let deadline: UInt64
    private let attended: Bool
    private let ended = Atomic(false)

    init(seconds: Int, attended: Bool) {
        deadline = monotonicNanoseconds() + UInt64(seconds) * 1_000_000_000
        self.attended = attended
        guard attended else { return }
        Thread { [self] in
            var byte: UInt8 = 0
            while read(0, &byte, 1) > 0 {}
            ended.store(true, ordering: .releasing)
        }.start()
    }

    var hasCome: Bool {
        ended.load(ordering: .acquiring) || monotonicNanoseconds() >= deadline
    }

    /// Waits until all workers have ended, telling about their progress.
    func wait(for workers: Workers, progress: () -> ClientProgress) {
        var told: ClientProgress?
        while !workers.wait(milliseconds: 50) {
            let now = progress()
            if attended, told != now { tell(now) }
            told = now
        }
    }
}

/// Threads of a client.
struct Workers {
    private let group = DispatchGroup()

    func start(_ body: @escaping @Sendable () -> Void) {
        group.enter()
        let thread = Thread { [group] in
            body()
            group.leave()
        }
        thread.stackSize = 1 << 20
        thread.start()
    }

    func wait(milliseconds: Int) -> Bool {
        group.wait(timeout: .now() + .milliseconds(milliseconds)) == .success
    }
}

/// Counts of the connections, for the progress.
final class Tally: Sendable {
    private let counts: Mutex<[Int]>

    init(_ connections: Int) { counts = Mutex(Array(repeating: 0, count: connections)) }

    func add(_ connection: Int) { counts.withLock { $0[connection] += 1 } }

    var progress: ClientProgress {
        counts.withLock { ClientProgress(least: $0.min() ?? 0, total: $0.reduce(0, +)) }
    }
}

func monotonicNanoseconds() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}
