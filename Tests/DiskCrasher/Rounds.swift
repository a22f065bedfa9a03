import CLinux
import DiskLog
import Glibc
import Model

/// The block-level model checker: lives that end by SIGKILL at random fault points, and what must
/// then be found: by the next plugin, after a failover, and on the images alone.
struct Rounds {
    private let world: World
    private let seed: UInt64
    private let bug: PlantedBug?
    private var generator: SeededGenerator
    private var progress: Progress

    /// Contents before the history, and all that has happened since.
    private var base = Contents()
    private var history: [Event] = []
    private var plan: Plan
    private var planNumber: UInt64 = 0
    /// The next operation of the plan.
    private var next = 0
    private var generation = Generation(1)
    private var deaths: [String: Int] = [:]
    private var restarts = 0
    private var failovers = 0
    private var powerCuts = 0
    private var replays = 0
    private var wasReplaying = false

    init(directory: String, seed: UInt64, bug: PlantedBug?) throws {
        world = World(directory: directory)
        self.seed = seed
        self.bug = bug
        generator = SeededGenerator(seed: seed)
        try world.make()
        progress = try Progress(directory)
        plan = Plan(seed: seed, number: 0)
    }

    /// Throws `Violation` at the first thing that cannot be.
    mutating func run(_ rounds: Int) throws {
        for _ in 0..<rounds { try round() }
        say(
            "rounds \(rounds) restarts \(restarts) failovers \(failovers) power-cuts \(powerCuts) "
                + "replays \(replays)")
        for (point, count) in deaths.sorted(by: { $0.key < $1.key }) {
            say("death \(point) \(count)")
        }
    }

    private func say(_ line: String) { print(line) }

    private mutating func round() throws {
        try live()
        try judgeImages()
        if Int.random(in: 0..<3, using: &generator) == 0 {
            try restart()
        } else {
            try failOver()
        }
        let isLong = history.count > Progress.mostEvents / 2
        if isLong || Int.random(in: 0..<4, using: &generator) == 0 { try settle() }
    }

    // MARK: Living

    /// Whether a plugin that starts now finds a batch to replay. While it does the images alone are
    /// nothing, also when only processes die.
    private func hasJournal() throws -> Bool {
        try World.journal(on: try world.journalImage()).batch() != nil
    }

    private mutating func live() throws {
        if next >= plan.operations.count { beginPlan() }
        let hBase = history.count
        wasReplaying = try hasJournal()
        // What was under way in the life before may be in the log until it is repeated.
        if progress.begun <= progress.answered { progress.begun = hBase }
        progress.answered = hBase
        progress.lastBarrier = (history.lastIndex { $0.operation.isBarrier } ?? -1) + 1
        let dies = chooseDeath()
        let byItself = Int.random(in: 0..<4, using: &generator) == 0
        let ended = try Child.run([
            "live", world.directory, "\(seed)", "\(planNumber)", "\(next)", "\(generation)",
            byItself ? "itself" : "hand", dies, bug?.rawValue ?? "none",
        ])
        switch ended {
        case .killed: deaths[progress.deathPoint, default: 0] += 1
        case .finished: deaths["(none)", default: 0] += 1
        case .failed(let status): throw Trouble("the guest has seen a mistake (status \(status))")
        }
        for _ in hBase..<progress.answered {
            history.append(Event(operation: plan.operations[next], stamp: plan.stamp(next)))
            next += 1
        }
    }

    /// Where a life may end, besides anywhere.
    private static let points = [
        "disklog.append.data-copied", "disklog.append.record-written",
        "disklog.append.head-published", "disklog.flush.published", "disklog.sealed.stored",
        "disklog.apply.verified", "disklog.apply.written", "disklog.apply.zeroed",
        "disklog.apply.writing-back",
        "disklog.apply.all-written", "disklog.apply.one-synced", "disklog.apply.synced",
        "disklog.apply.noted", "disklog.batch.collected", "disklog.batch.durable",
        "disklog.journal.data-written", "disklog.journal.written", "disklog.journal.cleared",
        "life.commit.sealed", "life.commit.published", "image.write.half", "image.sync.half",
    ]
    /// And one that begins with a replay, which comes to the first two once.
    private static let pointsOfReplay = [
        "disklog.journal.replayed", "disklog.journal.noted", "disklog.journal.cleared",
        "image.write.half", "image.sync.half",
    ]

    private mutating func chooseDeath() -> String {
        if wasReplaying {
            // Few lives do: most of them are to end in it.
            if Int.random(in: 0..<4, using: &generator) > 0,
                let index = Rounds.pointsOfReplay.indices.randomElement(using: &generator)
            {
                let count = index < 2 ? 1 : Int.random(in: 1...6, using: &generator)
                return "\(Rounds.pointsOfReplay[index]):\(count)"
            }
        } else if Bool.random(using: &generator),
            let point = Rounds.points.randomElement(using: &generator)
        {
            let isOfBatch = point.hasPrefix("disklog.batch") || point.hasPrefix("disklog.journal")
            let most = point.hasPrefix("disklog.append") ? 200 : isOfBatch ? 2 : 6
            return "\(point):\(Int.random(in: 1...most, using: &generator))"
        }
        return "\(Int.random(in: 1...700, using: &generator))"
    }

    private mutating func beginPlan() {
        planNumber += 1
        plan = Plan(seed: seed, number: planNumber)
        next = 0
    }

    private func contents(after count: Int) -> Contents {
        var contents = base
        for event in history[..<count] { contents.apply(event) }
        return contents
    }

    // MARK: Judging

    /// A power cut of everything: the images and the journal beside them.
    private mutating func judgeImages() throws {
        powerCuts += 1
        let images = try world.images()
        // Only the processes die: what the kernel has, it still writes. No replay is needed.
        if !wasReplaying {
            try judge(images.enumerated().map { $1.stamps($0) }, "after a kill of everything")
        }
        let journal = try world.journalImage()
        for attempt in 0..<3 {
            var dice = SeededGenerator(seed: generator.next())
            let keeps = { attempt == 0 ? false : attempt == 1 || Bool.random(using: &dice) }
            let path = world.directory + "/cut"
            let cut = try images.enumerated().map { disk, image in
                try image.afterPowerCut(path + "\(disk)", keeps)
            }
            let cutJournal = World.journal(on: try journal.afterPowerCut(path + "-journal", keeps))
            let replayed = try cutJournal.replay { name in
                guard let index = Int(name.dropFirst(2)) else { throw Trouble(name) }
                return cut[index]
            }
            if replayed { replays += 1 }
            try judge(cut.enumerated().map { $1.stamps($0) }, "after a power cut")
        }
    }

    /// The images must be what a power cut leaves of an ordinary disk: everything before some flush,
    /// that flush not earlier than the last one that a client was told of, and any part of what
    /// came between it and the next flush. Nothing that no commit covers.
    private func judge(_ found: [[UInt64?]], _ what: String) throws {
        let committed = progress.committed
        var cut = base
        var start = 0
        var nearest = "nothing fits"
        while true {
            var end = start
            while end < committed, !history[end].operation.isBarrier { end += 1 }
            // A write with FUA belongs to the stretch that it ends.
            let stretch = min(committed, end + 1)
            if start >= progress.told {
                switch mismatch(found, cut, history[start..<stretch]) {
                case nil: return
                case let text?: nearest = "from event \(start): \(text)"
                }
            }
            for event in history[start..<stretch] { cut.apply(event) }
            start = stretch
            if start >= committed {
                // Behind the last flush nothing may follow.
                if start >= progress.told, mismatch(found, cut, []) == nil { return }
                throw Trouble(
                    "\(what) the images are no state that a power cut could leave "
                        + "(committed \(committed), told \(progress.told)): \(nearest)")
            }
        }
    }

    private func mismatch(
        _ found: [[UInt64?]], _ cut: Contents, _ stretch: ArraySlice<Event>
    ) -> String? {
        var allowed: [[Set<UInt64>]] = cut.stamps.map { $0.map { [$0] } }
        for event in stretch {
            switch event.operation {
            case .write(let disk, let sector, let count, _):
                for index in sector..<sector + count { allowed[disk][index].insert(event.stamp) }
            case .zero(let disk, let sector, let count, _):
                for index in sector..<sector + count { allowed[disk][index].insert(0) }
            default: break
            }
        }
        for disk in found.indices {
            for (sector, stamp) in found[disk].enumerated() {
                guard let stamp else { return "sector \(sector) of disk \(disk) is torn" }
                if !allowed[disk][sector].contains(stamp) {
                    return "sector \(sector) of disk \(disk) is \(stamp), "
                        + "not \(allowed[disk][sector])"
                }
            }
        }
        return nil
    }

    /// The plugin is started again, the guest lives on: everything that was answered is there, and
    /// of what was under way any part.
    private mutating func restart() throws {
        restarts += 1
        let found = try read(generation)
        let cut = contents(after: progress.answered)
        var underWay: [Event] = []
        if progress.begun > progress.answered, next < plan.operations.count {
            underWay = [Event(operation: plan.operations[next], stamp: plan.stamp(next))]
        }
        if let text = mismatch(found, cut, underWay[...]) {
            throw Trouble("after a restart of the plugin: \(text)")
        }
        // ftvmd's successor: the record is published, the word perhaps not stored.
        try world.log().publishSealed(progress.position(progress.committed))
    }

    /// Only what was committed, and all of it; also if the promotion is killed and repeated.
    private mutating func failOver() throws {
        failovers += 1
        let position = progress.position(progress.committed)
        for attempt in 0..<2 {
            generation = generation.next
            // The first attempt dies, sometimes.
            let dies = attempt == 0 ? Int.random(in: 1...6, using: &generator) : 1000
            let ended = try Child.run([
                "recover", world.directory, "\(position)", "\(generation)", "\(dies)",
                bug?.rawValue ?? "none",
            ])
            if case .failed(let status) = ended { throw Trouble("recovery failed (\(status))") }
            if ended == .finished { break }
            deaths[progress.deathPoint, default: 0] += 1
        }
        history.removeLast(history.count - progress.committed)
        progress.answered = history.count
        progress.begun = history.count
        let found = try read(generation)
        if let text = mismatch(found, contents(after: history.count), []) {
            throw Trouble("after a failover: \(text)")
        }
        beginPlan()
    }

    /// What a plugin shows that is started now.
    private func read(_ generation: Generation) throws -> [[UInt64?]] {
        let server = try world.server(appliesByItself: false, journaled: true)
        try server.activate(generation)
        defer { server.close() }
        return try read(server)
    }

    private func read(_ server: DiskServer) throws -> [[UInt64?]] {
        try Plan.disks.enumerated().map { disk, sectors in
            let buffer = UnsafeMutableRawBufferPointer.allocate(
                byteCount: sectors * sectorBytes, alignment: 8)
            defer { buffer.deallocate() }
            guard let start = buffer.baseAddress, server.read(disk: disk, into: buffer, at: 0) == 0
            else { throw Trouble("the disk cannot be read") }
            return (0..<sectors).map {
                Sector.stamp(start + $0 * sectorBytes, disk: disk, sector: $0)
            }
        }
    }

    /// Applies all that is sealed: after a failover (or a commit) images and log are one.
    private mutating func settle() throws {
        let server = try world.server(appliesByItself: false, journaled: true)
        try server.activate(generation)
        defer { server.close() }
        while true {
            let outcome = server.applyGroup(evenIfYoung: true)
            if outcome == .idle { break }
            guard outcome == .applied else { throw Trouble("applying: \(outcome)") }
            // The first thing that it did was to replay.
            wasReplaying = false
            try judgeImages()
        }
        guard server.log.applied == server.log.head else { return }
        let found = try world.images().enumerated().map { disk, image in
            try image.afterPowerCut(world.directory + "/cut\(disk)") { false }.stamps(disk)
        }
        if let text = mismatch(found, contents(after: history.count), []) {
            throw Trouble("after everything was applied: \(text)")
        }
        base = contents(after: history.count)
        history.removeAll()
        progress.basePosition = Int(server.log.head)
        progress.committed = 0
        progress.told = 0
        progress.answered = 0
        progress.begun = 0
    }
}

/// This program, run again to be killed.
enum Child {
    enum Ending: Equatable {
        case finished, killed
        case failed(Int32)
    }

    static func run(_ arguments: [String]) throws -> Ending {
        var strings: [UnsafeMutablePointer<CChar>?] =
            (["disk-crasher"] + arguments).map { strdup($0) } + [nil]
        defer { for string in strings { free(string) } }
        var child = pid_t()
        let result = posix_spawn(&child, "/proc/self/exe", nil, nil, &strings, environ)
        guard result == 0 else { throw Trouble("cannot start a child: \(result)") }
        var status: Int32 = 0
        while waitpid(child, &status, 0) < 0 {
            guard errno == EINTR else { throw Trouble("waitpid") }
        }
        if status & 0x7f == SIGKILL { return .killed }
        if status & 0x7f != 0 { return .failed(status & 0x7f) }
        return status >> 8 == 0 ? .finished : .failed(status >> 8)
    }
}
