import Foundation
import Glibc
import GuestSupport
import Hypervisor
import MemoryPool
import Model
import Protection
import Synchronization
import Testing

/// Commits that frames ask for, on a real QEMU with the test's own gate.
@Suite(.serialized) struct OutputCommitTests {
    @Test func framesAreCommittedSoonAndLeaveAfterwards() throws {
        let protected = try ProtectedGuest()
        defer { protected.end() }
        let driver = protected.driver
        let gate = try TestGate(protected.segment)
        driver.committer.attach(gate)
        // By the clock there would be one commit in a minute.
        try driver.startEpochs(maximumMilliseconds: 60_000) { end in
            if case .stopped = end { return }
            Issue.record("\(end)")
        }
        for round in 1...50 as ClosedRange<UInt64> {
            gate.send(1)
            #expect(
                protected.wait { gate.state.withLock { $0.released } == round },
                "round \(round): a frame does not leave")
        }
        // The figures follow a moment later.
        #expect(protected.wait { driver.figures().figures.releasedFrames == 50 })
        var figures = driver.figures().figures
        #expect(figures.commitsByReason.output >= 50)
        #expect(figures.commitsByReason.timer == 0)
        #expect(figures.heldFrames == 0)
        #expect(figures.holdMedianMicroseconds > 0)
        print(
            "output: held \(figures.holdMedianMicroseconds) us median,",
            "\(figures.holdP99Microseconds) us p99; pause \(figures.pauseMedianMicroseconds) us")

        // A network that takes one frame at a time gets them all, and causes no commits.
        gate.state.withLock { $0.takes = 1 }
        let before = driver.figures().figures.commits
        gate.send(30)
        #expect(protected.wait { gate.state.withLock { $0.released } == 80 })
        figures = driver.figures().figures
        #expect(figures.commits <= before + 3)
        #expect(figures.commits > before)

        // A full log does not wait for the minimum run.
        gate.state.withLock {
            $0.takes = .max
            $0.demand = .now
        }
        gate.send(1)
        #expect(protected.wait { gate.state.withLock { $0.released } == 81 })
        #expect(protected.wait { driver.figures().figures.commitsByReason.highWater >= 1 })
        driver.stopEpochs()
        #expect(gate.state.withLock { $0.tooEarly } == 0)
    }

    @Test func aFencedGenerationReleasesNothing() throws {
        let protected = try ProtectedGuest()
        defer { protected.end() }
        let driver = protected.driver
        let gate = try TestGate(protected.segment)
        driver.committer.attach(gate)
        let ended = Mutex<String?>(nil)
        try driver.startEpochs(maximumMilliseconds: 60_000) { end in
            ended.withLock { $0 = "\(end)" }
        }
        // Committed, but not yet taken by the network.
        gate.state.withLock { $0.takes = 0 }
        gate.send(1)
        #expect(protected.wait { driver.figures().figures.commits >= 1 })
        let other = try protected.workspace.pool.openSegment(name: "guest", access: .write)
        try other.raiseGeneration(to: Generation(2))
        #expect(protected.wait { ended.withLock { $0?.hasPrefix("fenced") ?? false } })
        gate.state.withLock { $0.takes = .max }
        gate.send(1)
        let error = #expect(throws: FtvmError.self) { try driver.committer.commit() }
        #expect(error?.code == .conflict)
        #expect(gate.state.withLock { $0.released } == 0)
        #expect(other.position.generation == Generation(2))
    }

    /// libvirt shows a guest paused while a commit has it stopped, and lets anybody resume it.
    @Test func aGuestResumedInThePauseIsNotCommitted() throws {
        let protected = try ProtectedGuest()
        defer { protected.end() }
        let driver = protected.driver
        let gate = try TestGate(protected.segment)
        driver.committer.attach(gate)
        let segment = protected.segment
        let image = UnsafeMutableRawPointer.allocate(
            byteCount: Int(segment.memoryBytes), alignment: 4096)
        defer { image.deallocate() }
        for round in 1...10 {
            usleep(30_000)
            let before = segment.position
            let user = protected.user
            gate.state.withLock {
                $0.onCollect = {
                    // Only in the pause: not while `stop` is waited for.
                    guard (try? user.status().status) == "paused" else { return }
                    try? user.cont()
                    usleep(UInt32(round) * 500)
                }
            }
            let error = #expect(throws: FtvmError.self) { try driver.committer.commit() }
            #expect(error?.code == .failedPrecondition)
            #expect(segment.position == before, "a state was published that the guest had left")
            #expect(try protected.user.status().running)
            #expect(!segment.flags.contains(.pausedByCommit))
            gate.state.withLock { $0.onCollect = nil }
            // What was logged in between adds up all the same.
            if round % 2 == 0 {
                try driver.committer.commit(.standStill)
                memcpy(image, segment.ram, Int(segment.memoryBytes))
                try driver.committer.resume()
                usleep(20_000)
            }
        }
        gate.state.withLock {
            let user = protected.user
            $0.onCollect = {
                if (try? user.status().status) == "paused" { try? user.cont() }
                usleep(3_000)
            }
        }
        #expect(throws: FtvmError.self) { try driver.committer.commit() }
        protected.guest.kill()
        driver.close()
        try segment.takeManagerLock()
        try segment.raiseGeneration(to: Generation(2))
        let rollback = try segment.rollBack()
        #expect(rollback.distinctPages > 0)
        #expect(memcmp(image, segment.ram, Int(segment.memoryBytes)) == 0)
    }
}

/// A guest that a user has paused: its last frames leave, and nobody but he resumes it.
@Suite(.serialized) struct PausedGuestTests {
    @Test func aGuestPausedByAUserIsCommittedOnceAndStaysPaused() throws {
        let protected = try ProtectedGuest()
        defer { protected.end() }
        let segment = protected.segment
        let gate = try TestGate(segment)
        protected.driver.committer.attach(gate)
        try protected.driver.startEpochs(maximumMilliseconds: 20) { end in
            if case .stopped = end { return }
            Issue.record("\(end)")
        }
        usleep(200_000)
        #expect(try protected.wait { try protected.pauseBetweenCommits() })
        gate.send(3)
        #expect(protected.wait { gate.state.withLock { $0.released } == 3 })
        var last = segment.position
        #expect(
            protected.wait {
                usleep(100_000)
                defer { last = segment.position }
                return segment.position == last
            }, "a guest that does nothing is committed again and again")
        #expect(segment.undoUsed == 0)
        usleep(300_000)
        #expect(segment.position == last)
        #expect(try protected.user.status().status == "paused")
        #expect(!segment.flags.contains(.pausedByCommit))
        #expect(protected.driver.figures().failure == nil)

        // Our successor does not resume it either, nor one of an ftvmd that was about to hand it over.
        let monitor = protected.guest.monitor
        for isHandedOver in [false, true] {
            if isHandedOver { segment.insertFlags(.pausedByCommit) }
            protected.driver.close()
            protected.driver = try PrimaryDriver.adopt(
                process: protected.guest.qemu, segment: segment, generation: Generation(1),
                injector: GuestQEMU.injector,
                connect: { monitor })
            #expect(try protected.user.status().status == "paused")
            #expect(!segment.flags.contains(.pausedByCommit))
        }
        try protected.driver.startEpochs(maximumMilliseconds: 20) { end in
            if case .stopped = end { return }
            Issue.record("\(end)")
        }
        usleep(200_000)
        #expect(try protected.user.status().status == "paused")
        last = segment.position
        try protected.user.cont()
        #expect(protected.wait { segment.position.epoch.number > last.epoch.number + 5 })
        #expect(protected.driver.figures().failure == nil)
    }

    /// Again and again, at any moment of an epoch: a guest that QEMU says is paused is never resumed by us.
    @Test func pausesAtAnyMomentHold() throws {
        let protected = try ProtectedGuest()
        defer { protected.end() }
        try protected.driver.startEpochs(maximumMilliseconds: 20) { end in
            if case .stopped = end { return }
            Issue.record("\(end)")
        }
        var held = 0
        for _ in 1...100 {
            usleep(UInt32.random(in: 0...40_000))
            guard try protected.pauseBetweenCommits() else { continue }
            held += 1
            usleep(30_000)
            #expect(try protected.user.status().status == "paused")
            try protected.user.cont()
        }
        #expect(held > 10, "only \(held) of 100 pauses came between two commits")
    }
}
