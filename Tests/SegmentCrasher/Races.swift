import MemoryPool
import Model

/// Two writers of one segment, the second of which acts in the middle of what the first one does:
/// at a fault point, so the interleaving is always the same. A segment in generation 1 with epoch 1
/// committed.
struct Races {
    private let first: Segment
    private let second: Segment

    init(_ pool: Pool, _ name: String) throws {
        first = try pool.openSegment(name: name, access: .write)
        second = try pool.openSegment(name: name, access: .write)
    }

    /// Once, at a point.
    private func at(_ point: String, _ action: @escaping @Sendable () throws -> Void) {
        nonisolated(unsafe) var acted = false
        FaultPoint.hook = { reached in
            guard reached == point, !acted else { return }
            acted = true
            do { try action() } catch { fatalError("the second writer failed: \(error)") }
        }
    }

    /// What became of the first writer's action.
    func run(_ name: String) throws -> String {
        let second = second
        switch name {
        case "commit-while-raising":
            try second.adopt(Generation(1))
            at("segment.generation.read") {
                try second.publish(epoch: Epoch(2), generation: Generation(1), stateLength: 0)
            }
            return "\(try first.raiseGeneration(to: Generation(2)))"
        case "raise-while-committing":
            try first.adopt(Generation(1))
            first.appendUndo(page: 3, epoch: Epoch(2))
            at("segment.commit.record-written") { try second.raiseGeneration(to: Generation(2)) }
            do {
                try first.publish(epoch: Epoch(2), generation: Generation(1), stateLength: 0)
                return "committed"
            } catch let error as FtvmError {
                return "\(error.code.rawValue), log of \(first.undoUsed)"
            }
        case "promote-while-logging":
            try first.adopt(Generation(1))
            at("segment.undo.entry-written") {
                try second.raiseGeneration(to: Generation(2))
                try second.rollBack()
                second.appendUndo(page: 5, epoch: Epoch(2))
            }
            return "\(first.appendUndo(page: 3, epoch: Epoch(2)))"
        default:
            throw FtvmError(.invalidArgument, "no race '\(name)'")
        }
    }
}
