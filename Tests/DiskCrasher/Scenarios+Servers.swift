import CLinux
import DiskLog
import Glibc
import Model

// Stories of servers that work, alone or many at once.
extension Scenarios {
    /// Threads that write and read their own places of two disks, far more than the log holds, while
    /// another commits when it is asked to and from time to time.
    func manyWriters() throws {
        let server = try activeServer(byItself: true)
        let done = Counter()
        let wrong = Counter()
        let threads = try (0..<4).map { thread in
            try TestThread {
                var generator = SeededGenerator(seed: UInt64(thread))
                let disk = thread == 3 ? 1 : 0
                let sectors = thread == 3 ? 0..<128 : (thread * 256)..<(thread + 1) * 256
                var last = [UInt64](repeating: 0, count: sectors.count)
                for turn in 1...1500 {
                    let stamp = UInt64(thread + 1) << 32 | UInt64(turn)
                    let count = Int.random(in: 1...8, using: &generator)
                    let first = Int.random(in: 0...(sectors.count - count), using: &generator)
                    let result = self.put(
                        server, stamp, disk: disk, sector: sectors.lowerBound + first,
                        count: count, flush: turn % 16 == 0)
                    if result != 0 { wrong.add(1) }
                    for index in first..<first + count { last[index] = stamp }
                    let index = Int.random(in: 0..<sectors.count, using: &generator)
                    let found = self.get(server, disk: disk, sector: sectors.lowerBound + index)
                    if found != last[index] { wrong.add(1) }
                }
                for (index, stamp) in last.enumerated()
                where self.get(server, disk: disk, sector: sectors.lowerBound + index) != stamp {
                    wrong.add(1)
                }
                done.add(1)
            }
        }
        let deadline = ftvm_disk_now() + 30_000_000_000
        while done.value < 4, ftvm_disk_now() < deadline {
            usleep(server.log.wantsCommit ? 100 : 2000)
            _ = commit(server)
            server.ring()
        }
        try expect(done.value == 4, "all have ended")
        for thread in threads { thread.join() }
        try expect(wrong.value == 0, "\(wrong.value) wrong reads or writes")
        _ = commit(server)
        server.ring()
        try expect(eventually { server.log.applied == server.log.head }, "all is applied")
        try expect(server.log.status.waitingBytes == 0, "nothing waits")
        server.close()
    }

    /// What packets wait for, and what they do not wait for.
    func durability() throws {
        let descriptor = open(world.logPath, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        try DiskLogFile.create(
            in: descriptor,
            LogSpecification(
                uuid: [UInt8](repeating: 7, count: 16),
                disks: [
                    LoggedDisk(name: "a", sizeBytes: UInt64(Plan.disks[0] * sectorBytes)),
                    LoggedDisk(
                        name: "b", sizeBytes: UInt64(Plan.disks[1] * sectorBytes),
                        durability: .pool),
                ], dataBytes: World.dataBytes, generation: Generation(1)))
        close(descriptor)
        let server = try world.server(appliesByItself: false)
        try server.activate(Generation(1))
        put(server, 61, sector: 1)
        let plain = commit(server)
        try expect(server.log.isDurable(plain), "no flush, no waiting")
        put(server, 62, disk: 1, sector: 1, flush: true)
        let pool = commit(server)
        try expect(server.log.isDurable(pool), "durability = pool does not wait")
        try expect(server.flush(disk: 0) == 0, "flush")
        let flushed = commit(server)
        try expect(!server.log.isDurable(flushed), "durability = commit does")
        put(server, 63, sector: 1)
        try expect(server.flush(disk: 0) == 0, "flush")
        try expect(server.flush(disk: 0) == 0, "flush again")
        let later = commit(server)
        try expect(later.position == flushed.position + 2, "two markers in a row are one")
        try expect(server.applyGroup(evenIfYoung: false) == .applied, "hurried")
        try expect(server.log.isDurable(flushed), "with all markers that follow one another")
        try expect(!server.log.isDurable(later), "one after the other")
        while server.applyGroup(evenIfYoung: false) == .applied {}
        try expect(server.log.isDurable(flushed) && server.log.isDurable(later), "durable")
        put(server, 64, sector: 1)
        _ = commit(server)
        try expect(
            server.applyGroup(evenIfYoung: false) == .idle, "without a flush there is no hurry")
        server.close()
    }

    func waitingServer() throws {
        let active = try activeServer()
        put(active, 71, sector: 3)
        let seal = commit(active)
        _ = active.applyGroup(evenIfYoung: true)
        let waiting = try world.server(appliesByItself: false)
        try expect(get(waiting, sector: 3) == 71, "reads come from the image")
        try expect(put(waiting, 72, sector: 3) == -EROFS, "writes are refused")
        try expect(waiting.flush(disk: 0) == 0, "a flush has nothing to do")
        active.close()
        try waiting.log.recover(position: seal.position, generation: Generation(2))
        try waiting.activate(Generation(2))
        try waiting.activate(Generation(2))
        try expect(put(waiting, 73, sector: 3) == 0 && get(waiting, sector: 3) == 73, "active")
        waiting.close()
        try refused(.failedPrecondition, "activated after its end") {
            try waiting.activate(Generation(2))
        }
    }

    /// The bell, the notices, and activation through the socket.
    func socket() throws {
        try world.make()
        let path = world.directory + "/control"
        let server = try world.server(appliesByItself: true)
        let socket = try ServerSocket(server, path: path)
        let client = try DiskServerClient(path: path)
        try refused(.conflict, "a wrong generation") { try client.activate(Generation(5)) }
        try client.activate(Generation(1))
        try expect(server.isActive, "activated")
        var sector = 0
        while !server.log.wantsCommit {
            try expect(put(server, 81, sector: sector) == 0, "written")
            sector += 1
        }
        try expect(
            try eventually { try client.takeNotices().contains(.commitWanted) }, "commit wanted")
        _ = commit(server)
        try expect(client.ring(), "rung")
        try expect(try eventually { try client.takeNotices().contains(.durable) }, "durable")
        socket.close()
        try refused(.unavailable, "a plugin that is gone") { _ = try client.takeNotices() }
        server.close()
    }

    /// Sealing is a few loads, however much was written.
    func sealCost() throws {
        let descriptor = open(world.logPath, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        try DiskLogFile.create(
            in: descriptor,
            LogSpecification(
                uuid: [UInt8](repeating: 7, count: 16),
                disks: Plan.disks.enumerated().map {
                    LoggedDisk(name: "vd\($0)", sizeBytes: UInt64($1 * sectorBytes))
                }, dataBytes: 16 << 20, generation: Generation(1)))
        close(descriptor)
        let server = try world.server(appliesByItself: false)
        try server.activate(Generation(1))
        var worst: UInt64 = 0
        for _ in 0..<20 {
            for block in 0..<1000 { put(server, 91, sector: block % 760, count: 8) }
            let start = ftvm_disk_now()
            _ = commit(server)
            worst = max(worst, ftvm_disk_now() - start)
            while server.applyGroup(evenIfYoung: true) == .applied {}
        }
        print("seal of 1000 blocks: at most \(worst) ns")
        try expect(worst < 1_000_000, "a seal took \(worst) ns")
        server.close()
    }
}

/// A number that several threads change.
final class Counter: @unchecked Sendable {
    private let word = UnsafeMutablePointer<UInt64>.allocate(capacity: 1)
    init() { word.initialize(to: 0) }
    deinit { word.deallocate() }
    var value: Int { Int(ftvm_atomic_load_u64(word)) }
    func add(_ amount: UInt64) { _ = ftvm_atomic_fetch_add_u64(word, amount) }
}

/// A thread that is joined.
final class TestThread {
    private final class Body {
        let run: @Sendable () -> Void
        init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }
    private var thread = pthread_t()

    init(_ run: @escaping @Sendable () -> Void) throws {
        let result = pthread_create(
            &thread, nil,
            { argument in
                guard let argument else { return nil }
                Unmanaged<Body>.fromOpaque(argument).takeRetainedValue().run()
                return nil
            }, Unmanaged.passRetained(Body(run)).toOpaque())
        guard result == 0 else { throw Trouble("pthread_create: \(result)") }
    }

    func join() { pthread_join(thread, nil) }
}

/// Waits, up to ten seconds, for what another thread does.
func eventually(_ condition: () throws -> Bool) rethrows -> Bool {
    for _ in 0..<10_000 {
        if try condition() { return true }
        usleep(1000)
    }
    return false
}
