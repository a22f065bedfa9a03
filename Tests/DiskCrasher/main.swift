import DiskLog
import Glibc
import Model

// The block-level checker, and the processes that it kills.
//
//   disk-crasher rounds DIRECTORY SEED ROUNDS BUG
//   disk-crasher live DIRECTORY SEED PLAN FIRST GENERATION hand|itself DEATH BUG
//   disk-crasher recover DIRECTORY POSITION GENERATION DEATH BUG
//   disk-crasher scenario DIRECTORY NAME BUG       (see Scenarios.swift)
//   disk-crasher create LOG DATA-MIB NAME=BYTES...  (a log for a real nbdkit)
//   disk-crasher commits LOG CONTROL MILLISECONDS   (see Commits.swift)
//
// DEATH: N or POINT:N, when the process kills itself (see `Death.plan`). BUG: none, or a `PlantedBug`.

enum Crasher {
    static func number<Number: FixedWidthInteger>(_ text: String) throws -> Number {
        guard let number = Number(text) else { throw Trouble("'\(text)' is not a number") }
        return number
    }

    static func run(_ arguments: [String]) throws {
        guard arguments.count >= 2, let last = arguments.last else { throw Trouble("arguments") }
        PlantedBug.active = PlantedBug(rawValue: last)
        switch (arguments[0], arguments.count) {
        case ("rounds", 5):
            var rounds = try Rounds(
                directory: arguments[1], seed: number(arguments[2]),
                bug: PlantedBug.active)
            try rounds.run(number(arguments[3]))
        case ("live", 9):
            // A guest that hangs is a mistake that was found.
            alarm(20)
            let world = World(directory: arguments[1])
            var life = try Life(
                world, plan: Plan(seed: number(arguments[2]), number: number(arguments[3])),
                generation: Generation(number(arguments[5])), byItself: arguments[6] == "itself")
            try Death.plan(arguments[7], life.progress)
            try life.run(from: number(arguments[4]))
        case ("recover", 6):
            let world = World(directory: arguments[1])
            try Death.plan(arguments[4], try Progress(arguments[1]))
            try world.log().recover(
                position: number(arguments[2]), generation: Generation(number(arguments[3])))
        case ("create", 4...):
            try Commits.create(
                arguments[1], dataBytes: number(arguments[2]) << 20, Array(arguments[3...]))
        case ("commits", 4):
            var commits = try Commits(log: arguments[1], control: arguments[2])
            try commits.run(milliseconds: number(arguments[3]))
        case ("scenario", 4):
            guard let story = Scenarios.all.first(where: { $0.name == arguments[2] }) else {
                throw Trouble("no scenario '\(arguments[2])'")
            }
            try story.run(Scenarios(world: World(directory: arguments[1])))
        default:
            throw Trouble("arguments")
        }
    }
}

do {
    try Crasher.run(Array(CommandLine.arguments.dropFirst()))
} catch {
    let text = Array("disk-crasher: \(error)\n".utf8)
    _ = write(STDERR_FILENO, text, text.count)
    exit(3)
}
