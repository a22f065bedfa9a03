import CLinux
import Glibc
import MemoryPool
import Model

// Runs a workload on a segment and kills itself at the n-th time that a fault point is reached.
//
//   segment-crasher work    POOL KIND NAME SEED EPOCHS POINT COUNT
//   segment-crasher recover POOL KIND NAME GENERATION POINT COUNT
//   segment-crasher create  POOL KIND NAME PAGES POINT COUNT
//   segment-crasher remove  POOL KIND NAME POINT COUNT
//   segment-crasher frames  POOL KIND NAME FRAMES POINT COUNT
//   segment-crasher race    POOL KIND NAME CASE      (see Races.swift)
//   segment-crasher hold    POOL KIND NAME BYTE     (lock it, say so, wait for the end of input)
//
// POINT "none" kills nowhere; with TRACE=FILE in the environment every fault point that was reached
// is written there, one a line. The test knows from the seed what must be found afterwards.

enum Crasher {
    nonisolated(unsafe) static var remaining = 0
    nonisolated(unsafe) static var trace: UnsafeMutablePointer<FILE>?

    static func killAt(_ point: String, _ count: Int) {
        remaining = count
        if let path = getenv("TRACE") { trace = fopen(path, "w") }
        FaultPoint.hook = { reached in
            if let trace = Crasher.trace { fputs(reached + "\n", trace) }
            guard reached == point else { return }
            Crasher.remaining -= 1
            if Crasher.remaining == 0 { kill(getpid(), SIGKILL) }
        }
    }

    static func run(_ arguments: [String]) throws {
        guard arguments.count >= 5, let kind = PoolKind(rawValue: arguments[3]) else {
            throw FtvmError(.invalidArgument, "wrong arguments")
        }
        let pool = try Pool(
            PoolConfiguration(name: PoolName("test"), kind: kind, path: arguments[2]))
        let name = arguments[4]
        let rest = Array(arguments[5...])
        switch (arguments[1], rest.count) {
        case ("work", 4):
            killAt(rest[2], try number(rest[3]))
            var runner = try WorkloadRunner(
                pool, name, seed: number(rest[0]), epochs: number(rest[1]))
            try runner.run()
        case ("recover", 3):
            killAt(rest[1], try number(rest[2]))
            let segment = try pool.openSegment(name: name, access: .write)
            try segment.raiseGeneration(to: Generation(try number(rest[0])))
            try segment.rollBack()
        case ("create", 3):
            killAt(rest[1], try number(rest[2]))
            _ = try pool.createSegment(
                SegmentSpecification(
                    name: name, uuid: "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
                    memoryBytes: try number(rest[0]) * pool.pageSizeBytes,
                    undoLogBytes: 8 * pool.pageSizeBytes))
        case ("remove", 2):
            killAt(rest[0], try number(rest[1]))
            try pool.removeSegment(name: name)
        case ("frames", 3):
            killAt(rest[1], try number(rest[2]))
            try writeFrames(pool.openSegment(name: name, access: .write), count: number(rest[0]))
        case ("race", 1):
            say(try Races(pool, name).run(rest[0]), to: STDOUT_FILENO)
        case ("hold", 1):
            let segment = try pool.openSegment(name: name, access: .read)
            let result = ftvm_lock_set(
                try segment.openLock(), try number(rest[0]), 1, true)
            say(result == 0 ? "locked" : "refused", to: STDOUT_FILENO)
            _ = readLine()
        default:
            throw FtvmError(.invalidArgument, "wrong arguments")
        }
    }

    static func say(_ line: String, to descriptor: Int32) {
        let bytes = Array((line + "\n").utf8)
        _ = write(descriptor, bytes, bytes.count)
    }

    static func number<Number: FixedWidthInteger>(_ text: String) throws -> Number {
        guard let number = Number(text) else {
            throw FtvmError(.invalidArgument, "'\(text)' is not a number")
        }
        return number
    }
}

do {
    try Crasher.run(CommandLine.arguments)
} catch {
    Crasher.say("segment-crasher: \(error)", to: STDERR_FILENO)
    exit(2)
}
