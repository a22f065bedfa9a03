import CLinux
import Fencing
import Foundation
import Glibc
import GuestSupport
import Hypervisor
import MemoryPool
import Model
import Protection
import Synchronization

/// A guest that was taken over, in a pool of its own, with a second monitor for what a user does behind our back.
final class ProtectedGuest {
    let workspace: Workspace
    let segment: Segment
    let guest: GuestQEMU
    let user: QMPConnection
    var driver: PrimaryDriver

    /// - Parameter wrap: around the monitor that commits go through.
    init(logMiB: Int = 64, wrap: (QMPConnection) -> any Monitor = { $0 }) throws {
        workspace = try Workspace(pool: .tmpfs)
        let shape = GuestQEMU.Shape()
        segment = try workspace.pool.createSegment(
            SegmentSpecification(
                name: "guest", uuid: "00000000-0000-0000-0000-000000000006",
                memoryBytes: UInt64(shape.memoryMiB) << 20, undoLogBytes: UInt64(logMiB) << 20))
        guest = try GuestQEMU(shape, in: workspace.directory, number: 0)
        _ = try guest.waitForReport()
        user = try QMPConnection(path: guest.userSocketPath, label: "user")
        let lock = try segment.openLock()
        defer { close(lock) }
        try PrimaryLock.acquire(lock)
        driver = try PrimaryDriver.takeOver(
            process: guest.qemu,
            memory: GuestMemory.locate(monitor: guest.monitor, expectedBytes: segment.memoryBytes),
            monitor: wrap(guest.monitor), segment: segment, generation: Generation(1), lock: lock,
            injector: GuestQEMU.injector, progress: { _ in })
    }

    func end() {
        driver.close()
        guest.kill()
        workspace.remove()
    }

    /// A user pauses the guest.
    /// - Returns: whether no commit was under way at any time, in whose pause QEMU would not have noticed this one; if one
    ///   was, the guest is let go.
    func pauseBetweenCommits() throws -> Bool {
        let before = segment.position
        guard !segment.flags.contains(.pausedByCommit) else { return false }
        try user.stop()
        if !segment.flags.contains(.pausedByCommit), segment.position == before { return true }
        try user.cont()
        return false
    }

    /// Waits until something is so; whether it was so in time.
    func wait(seconds: Double = 10, until condition: () throws -> Bool) rethrows -> Bool {
        let deadline = Date().addingTimeInterval(seconds)
        while Date() < deadline {
            if try condition() { return true }
            usleep(2_000)
        }
        return try condition()
    }
}

/// A gate whose frames the test makes: a byte in a pipe is a frame of 100 bytes. Checks for itself that nothing leaves
/// before it is committed.
final class TestGate: PacketGate {
    struct State {
        var arrived: UInt64 = 0
        var released: UInt64 = 0
        /// Released before a commit covered it.
        var tooEarly: UInt64 = 0
        var releaseCalls = 0
        var demand = GateDemand.soon
        /// What the network takes in one call.
        var takes = UInt64.max
        var onCollect: (@Sendable () -> Void)?
    }

    static let frameBytes: UInt64 = 100
    let state = Mutex(State())
    let descriptors: [Int32]
    private let input: Int32
    private let segment: Segment

    init(_ segment: Segment) throws {
        self.segment = segment
        var ends: [Int32] = [-1, -1]
        guard ftvm_pipe(&ends) == 0, fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0 else {
            throw FtvmError(.resourceExhausted, "no pipe for the test")
        }
        descriptors = [ends[0]]
        input = ends[1]
    }

    deinit {
        close(descriptors[0])
        close(input)
    }

    func send(_ frames: Int) {
        let bytes = [UInt8](repeating: 1, count: frames)
        precondition(write(input, bytes, frames) == frames, "the test's pipe is full")
    }

    func collect() throws -> GateDemand {
        let hook = state.withLock { $0.onCollect }
        hook?()
        var buffer = [UInt8](repeating: 0, count: 4096)
        var total: UInt64 = 0
        while case let count = read(descriptors[0], &buffer, buffer.count), count > 0 {
            total += UInt64(count)
        }
        return state.withLock {
            $0.arrived += total
            return total > 0 ? $0.demand : .none
        }
    }

    var positions: LogPositions {
        LogPositions(output: state.withLock { $0.arrived } * Self.frameBytes)
    }

    func release(upTo limit: UInt64) throws -> Bool {
        let committed = try segment.latestCommit()?.logs.output ?? 0
        let covered = min(limit, committed) / Self.frameBytes
        return state.withLock {
            $0.releaseCalls += 1
            let count = min(covered - min(covered, $0.released), $0.takes)
            $0.released += count
            if $0.released > covered { $0.tooEarly += 1 }
            return $0.released >= covered
        }
    }

    var heldFrames: UInt64 { state.withLock { $0.arrived - $0.released } }
}
