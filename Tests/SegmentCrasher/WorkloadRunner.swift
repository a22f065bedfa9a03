import CLinux
import MemoryPool
import Model

/// Does a workload's operations on a segment.
package struct WorkloadRunner {
    private let pool: Pool
    private let workload: Workload
    package private(set) var segment: Segment
    private var undoStart: UInt64?
    private var generation = Generation(1)
    private let wordsInPage: Int

    /// The segment is new, in generation 1; the workload fits it.
    package init(_ pool: Pool, _ name: String, seed: UInt64, epochs: UInt64) throws {
        self.pool = pool
        segment = try pool.openSegment(name: name, access: .write)
        try segment.adopt(Generation(1))
        workload = Workload(
            seed: seed, pages: segment.pageCount, capacity: segment.undoCapacity, epochs: epochs)
        wordsInPage = segment.pageSizeBytes / 8
    }

    /// - Parameter check: called after every rollback and commit with the epoch that was committed.
    package mutating func run(check: (Segment, Workload, Operation) throws -> Void = { _, _, _ in })
        throws
    {
        for page in 0..<segment.pageCount { fill(page, 0..<wordsInPage, version: 0) }
        for operation in workload.operations {
            try perform(operation)
            try check(segment, workload, operation)
        }
    }

    private func fill(_ page: UInt64, _ words: Range<Int>, version: UInt64) {
        workload.fill(
            segment.ram + Int(page) * segment.pageSizeBytes, words: words, page: page,
            version: version)
    }

    private mutating func perform(_ operation: Operation) throws {
        switch operation {
        case .log(let firstPage, let count, let epoch):
            let result = segment.appendUndo(firstPage: firstPage, count: count, epoch: epoch)
            guard result == .appended else {
                throw FtvmError(.internalError, "the undo log answered \(result)")
            }
        case .write(let page, let version):
            fill(page, 0..<wordsInPage / 2, version: version)
            FaultPoint.reached("workload.page-half-written")
            fill(page, wordsInPage / 2..<wordsInPage, version: version)
        case .protectAgain:
            undoStart = segment.undoHead
        case .publish(let epoch):
            let state = workload.deviceState(epoch)
            let slot = segment.stateSlot(for: epoch)
            slot.copyBytes(from: state[..<(state.count / 2)])
            FaultPoint.reached("workload.state-half-written")
            slot.copyBytes(from: state)
            try segment.publish(
                epoch: epoch, generation: generation, stateLength: state.count,
                undoStart: undoStart)
        case .promote(let next):
            generation = next
            segment = try pool.openSegment(name: segment.name, access: .write)
            try segment.raiseGeneration(to: next)
            try segment.rollBack()
        case .adopt(let present):
            segment = try pool.openSegment(name: segment.name, access: .write)
            try segment.adopt(present)
        }
    }
}
