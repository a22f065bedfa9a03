import CLinux
import DiskLog
import Glibc
import Model

/// Ends this process at the n-th fault point that it comes to.
enum Death {
    nonisolated(unsafe) private static var remaining: UInt64 = 0
    nonisolated(unsafe) private static var progress: Progress?

    nonisolated(unsafe) private static let turn = {
        let turn = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
        pthread_mutex_init(turn, nil)
        return turn
    }()

    /// A storage device does not tear a sector: the process does not die while another thread is
    /// in `body`.
    static func notDuring<Result>(_ body: () -> Result) {
        pthread_mutex_lock(turn)
        defer { pthread_mutex_unlock(turn) }
        _ = body()
    }

    /// - Parameter when: `N`: at the n-th fault point whatever it is; `POINT:N`: at the n-th time
    ///   that this one is reached.
    static func plan(_ when: String, _ progress: Progress) throws {
        let parts = when.split(separator: ":").map(String.init)
        let wanted = parts.count == 2 ? parts[0] : nil
        remaining = try Crasher.number(parts.last ?? "")
        self.progress = progress
        FaultPoint.hook = { point in
            if let wanted, wanted != point { return }
            let before = withUnsafeMutablePointer(to: &Death.remaining) {
                ftvm_atomic_fetch_add_u64($0, .max)
            }
            guard before == 1 else { return }
            Death.progress?.deathPoint = point
            notDuring { kill(getpid(), SIGKILL) }
        }
    }
}

/// One life of guest, plugin and ftvmd, in one process that is killed somewhere.
struct Life {
    let progress: Progress
    let server: DiskServer
    let plan: Plan
    private var contents: Contents
    /// Events before this life.
    private var count: Int
    private var seals: [(seal: DiskSeal, told: Int)] = []
    private var lastBarrier: Int
    private let byHand: Bool
    private var buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 64 << 10, alignment: 8)

    init(_ world: World, plan: Plan, generation: Generation, byItself: Bool) throws {
        progress = try Progress(world.directory)
        server = try world.server(appliesByItself: byItself, journaled: true)
        self.plan = plan
        byHand = !byItself
        count = progress.answered
        lastBarrier = progress.lastBarrier
        contents = Contents()
        try server.activate(generation)
        // What a guest that was left running believes, the judge has looked at before.
        for disk in Plan.disks.indices {
            for sector in 0..<Plan.disks[disk] {
                contents.stamps[disk][sector] = try readSector(disk, sector)
            }
        }
    }

    private func readSector(_ disk: Int, _ sector: Int) throws -> UInt64 {
        guard let start = buffer.baseAddress else { throw Trouble("no memory") }
        try check(
            server.read(
                disk: disk, into: UnsafeMutableRawBufferPointer(start: start, count: sectorBytes),
                at: UInt64(sector * sectorBytes)), "read")
        guard let stamp = Sector.stamp(start, disk: disk, sector: sector) else {
            throw Trouble("sector \(sector) of disk \(disk) is torn")
        }
        return stamp
    }

    private func check(_ result: Int32, _ what: String) throws {
        if result != 0 { throw Trouble("\(what): \(String(cString: strerror(-result)))") }
    }

    /// Runs the plan from an operation on, to its end.
    mutating func run(from first: Int) throws {
        // No commit yet: QEMU repeats first what was under way when the plugin died.
        while byHand, isCrowded, server.log.applied < server.log.sealed { try applyOnce() }
        for index in first..<plan.operations.count {
            progress.begun = count + 1
            let operation = plan.operations[index]
            try perform(operation, stamp: plan.stamp(index))
            contents.apply(Event(operation: operation, stamp: plan.stamp(index)))
            progress.setPosition(count + 1, server.log.head)
            count += 1
            if operation.isBarrier { lastBarrier = count }
            progress.answered = count
            if case .commit = operation { try commit() }
            // ftvmd is asked for one.
            if server.log.wantsCommit { try commit() }
            if byHand { try makeRoom() }
            release()
        }
        FaultPoint.hook = nil
        server.close()
    }

    private mutating func perform(_ operation: Operation, stamp: UInt64) throws {
        switch operation {
        case .write(let disk, let sector, let count, let fua):
            guard let start = buffer.baseAddress else { return }
            for index in 0..<count {
                Sector.fill(
                    start + index * sectorBytes, stamp: stamp, disk: disk, sector: sector + index)
            }
            try check(
                server.write(
                    disk: disk, UnsafeRawBufferPointer(start: start, count: count * sectorBytes),
                    at: UInt64(sector * sectorBytes), flush: fua), "write")
        case .zero(let disk, let sector, let count, let trim):
            try check(
                server.zero(
                    disk: disk, at: UInt64(sector * sectorBytes),
                    bytes: UInt64(count * sectorBytes), mayTrim: trim), "zero")
        case .flush(let disk):
            try check(server.flush(disk: disk), "flush")
        case .read(let disk, let sector, let count):
            for index in sector..<sector + count {
                let found = try readSector(disk, index)
                guard found == contents.stamps[disk][index] else {
                    throw Trouble("sector \(index) of disk \(disk) is \(found)")
                }
            }
        case .apply:
            if byHand { try applyOnce() } else { server.ring() }
        case .commit:
            break
        }
    }

    private func applyOnce() throws {
        if case .failed(let number, let disk) = server.applyGroup(evenIfYoung: true) {
            throw Trouble("applying to disk \(disk): \(String(cString: strerror(number)))")
        }
    }

    private mutating func commit() throws {
        let seal = server.log.seal()
        seals.append((seal, lastBarrier))
        FaultPoint.reached("life.commit.sealed")
        progress.committed = count
        FaultPoint.reached("life.commit.published")
        server.log.publishSealed(seal.position)
        if !byHand { server.ring() }
    }

    /// A guest that writes faster than its storage: nobody but this thread would make room.
    private mutating func makeRoom() throws {
        while isCrowded {
            if server.log.sealed < server.log.head { try commit() }
            try applyOnce()
        }
    }

    private var isCrowded: Bool {
        let status = server.log.status
        return status.waitingBytes > World.dataBytes * 3 / 8
            || status.waitingRecords > server.log.header.recordCapacity * 3 / 8
    }

    /// Tells the clients of what has become durable.
    private mutating func release() {
        while let first = seals.first, server.log.isDurable(first.seal) {
            progress.told = max(progress.told, first.told)
            seals.removeFirst()
        }
    }
}
