import CLinux
import Fencing
import Foundation
import Glibc
import GuestSupport
import Hypervisor
import MemoryPool
import Model
import Protection
import Testing

/// The network gate with a real QEMU, a real guest and real taps. The guest's kernel answers echo requests: each answer
/// says which request it belongs to.
@Suite(.serialized) struct GateGuestTests {
    @Test(arguments: [("virtio-net-pci", 1), ("virtio-net-pci", 2), ("plain", 1)])
    func framesWaitForTheirCommit(model: String, nics: Int) throws {
        let world = try GateWorld(nics: nics, isPlain: model == "plain")
        defer { world.remove() }
        let guest = try world.start()
        world.meet(guest)
        let driver = try world.takeOver(guest)
        defer { driver.close() }
        for round in 0..<5 {
            let numbers = (0..<12).map { round * 100 + $0 }
            world.ping(numbers, guest)
            // The answers are there, and nobody has seen them.
            try world.wait("answers are held") {
                _ = try driver.gate?.collect()
                return driver.gateFigures()?.heldFrames ?? 0 >= UInt64(12 * nics)
            }
            for wire in guest.wires { #expect(wire.frames(1, seconds: 0.1) == []) }
            _ = try driver.committer.commit()
            for (index, wire) in guest.wires.enumerated() {
                let frames = wire.frames(12, seconds: 5)
                #expect(frames.compactMap(GateWire.answer) == numbers, "NIC \(index)")
                #expect(zip(frames, numbers).allSatisfy { GateWire.isAnswer($0, $1) })
                wire.forget()
            }
        }
        let figures = try #require(driver.gateFigures())
        #expect(figures.droppedFrames == 0 && figures.unkeptFrames == 0)
        #expect(figures.mirroredFrames >= UInt64(60 * nics))
    }

    /// With epochs under way: what leaves is in order, whole, and each frame once.
    @Test func aRunningPairAnswersInOrder() throws {
        let world = try GateWorld(nics: 2)
        defer { world.remove() }
        let guest = try world.start()
        world.meet(guest)
        let driver = try world.takeOver(guest)
        defer { driver.close() }
        try driver.startEpochs(maximumMilliseconds: 10) { end in
            if case .stopped = end { return }
            Issue.record("the epochs ended by themselves: \(end)")
        }
        for number in 0..<300 {
            world.ping([number], guest)
            for wire in guest.wires { wire.poll() }
            usleep(2_000)
        }
        for wire in guest.wires {
            let frames = wire.frames(300, seconds: 10)
            let numbers = frames.compactMap(GateWire.answer)
            #expect(
                numbers == Array(0..<300),
                "missing \(Set(0..<300).subtracting(numbers).sorted()), \(numbers.count) of \(frames.count), \(driver.gateFigures().debugDescription)"
            )
            #expect(frames.enumerated().allSatisfy { GateWire.isAnswer($1, $0) })
        }
    }

    /// ftvmd dies with frames held, and others come while there is none; its successor loses none.
    @Test func aSuccessorReleasesWhatIsCommitted() throws {
        let world = try GateWorld(nics: 2)
        defer { world.remove() }
        let guest = try world.start()
        world.meet(guest)
        var driver = try world.takeOver(guest)
        world.ping(Array(0..<10), guest)
        try world.wait("answers are held") {
            _ = try driver.gate?.collect()
            return driver.gateFigures()?.heldFrames ?? 0 >= 20
        }
        driver.close()
        world.ping(Array(10..<15), guest)
        for wire in guest.wires { #expect(wire.frames(1, seconds: 0.3) == []) }
        let sockets = guest.qemu.qemu.descriptors(linkedTo: "socket:").count
        driver = try world.adopt(guest)
        defer { driver.close() }
        #expect(guest.qemu.qemu.descriptors(linkedTo: "socket:").count == sockets)
        for wire in guest.wires { #expect(wire.frames(1, seconds: 0.1) == []) }
        try world.wait("all answers are held") {
            _ = try driver.gate?.collect()
            return driver.gateFigures()?.heldFrames ?? 0 >= 30
        }
        _ = try driver.committer.commit()
        for wire in guest.wires {
            #expect(wire.frames(15, seconds: 5).compactMap(GateWire.answer) == Array(0..<15))
        }
    }

    /// What was committed and not sent is sent by the next primary, what was not committed by nobody; what had
    /// reached the guest reaches it again, once and in order.
    @Test(arguments: [("virtio-net-pci", 1), ("virtio-net-pci", 2), ("plain", 1)])
    func aPromotionReplaysTheLostEpoch(model: String, nics: Int) throws {
        let world = try GateWorld(nics: nics, isPlain: model == "plain")
        defer { world.remove() }
        let first = try world.start()
        world.meet(first)
        let driver = try world.takeOver(first)
        world.ping(Array(0..<5), first)
        try world.wait("answers are held") {
            _ = try driver.gate?.collect()
            return driver.gateFigures()?.heldFrames ?? 0 >= UInt64(5 * nics)
        }
        _ = try driver.committer.commit()
        for wire in first.wires { #expect(wire.frames(5, seconds: 5).count == 5) }
        // The lost epoch: taken in and answered, and the answers never left.
        world.ping(Array(5..<25), first)
        try world.wait("answers are held") {
            _ = try driver.gate?.collect()
            return driver.gateFigures()?.heldFrames ?? 0 >= UInt64(20 * nics)
        }
        driver.close()
        first.qemu.kill()
        for wire in first.wires { #expect(wire.frames(6, seconds: 0.1).count == 5) }
        // The first attempt dies before its first commit: the second finds the same.
        let broken = try world.startWaiting()
        let lost = try world.promote(broken, Generation(2), beforeCommit: { $0.qemu.kill() })
        #expect(lost == nil)
        for wire in broken.wires {
            #expect(wire.frames(1, seconds: 0.1).compactMap(GateWire.answer) == [])
        }
        let second = try world.startWaiting()
        let promoted = try #require(try world.promote(second, Generation(3)))
        defer { promoted.driver.close() }
        #expect(promoted.report.gate.replayedFrames >= UInt64(20 * nics))
        #expect(promoted.report.gate.refusedFrames == 0)
        for wire in second.wires {
            let deadline = Date().addingTimeInterval(20)
            while wire.frames(20, seconds: 0.05, where: { GateWire.answer($0) != nil }).count < 20,
                Date() < deadline
            {
                _ = try promoted.driver.committer.commit()
            }
            // And not once more.
            _ = try promoted.driver.committer.commit()
            let answers = wire.frames(21, seconds: 0.3, where: { GateWire.answer($0) != nil })
            #expect(answers.compactMap(GateWire.answer) == Array(5..<25))
        }
        // It is as good as the first: frames come in, wait, and leave.
        world.ping([1_000, 1_001], second)
        for wire in second.wires {
            try world.wait("the promoted guest answers") {
                _ = try promoted.driver.committer.commit()
                return wire.frames(22, seconds: 0.05, where: { GateWire.answer($0) != nil })
                    .count >= 22
            }
            #expect(
                wire.received.compactMap(GateWire.answer) == Array(5..<25) + [1_000, 1_001])
        }
    }

    /// A hand-over: the last frames leave, and what comes after reaches the guest on its new host.
    @Test func aHandOverLosesNothing() throws {
        let world = try GateWorld(nics: 1)
        defer { world.remove() }
        let first = try world.start()
        world.meet(first)
        let driver = try world.takeOver(first)
        world.ping(Array(0..<8), first)
        try world.wait("answers are held") {
            _ = try driver.gate?.collect()
            return driver.gateFigures()?.heldFrames ?? 0 >= 8
        }
        try driver.commitAndStayStopped()
        #expect(first.wires[0].frames(8, seconds: 5).compactMap(GateWire.answer) == Array(0..<8))
        driver.close()
        first.qemu.kill()
        let second = try world.startWaiting()
        let promoted = try #require(try world.promote(second, Generation(2)))
        defer { promoted.driver.close() }
        #expect(promoted.report.gate.sentFrames == 0)
        world.ping([50], second)
        try world.wait("the guest goes on") {
            _ = try promoted.driver.committer.commit()
            return second.wires[0].frames(1, seconds: 0.05) { GateWire.answer($0) == 50 }.count == 1
        }
    }

    /// `disable`: what is held leaves, and QEMU is as it was.
    @Test func aReleaseLeavesNothing() throws {
        let world = try GateWorld(nics: 2)
        defer { world.remove() }
        let guest = try world.start()
        world.meet(guest)
        let before = world.inventory(guest)
        let driver = try world.takeOver(guest)
        world.ping(Array(0..<5), guest)
        try world.wait("answers are held") {
            _ = try driver.gate?.collect()
            return driver.gateFigures()?.heldFrames ?? 0 >= 10
        }
        try driver.release(injector: GuestQEMU.injector) { _ in }
        #expect(world.inventory(guest) == before)
        for wire in guest.wires {
            #expect(wire.frames(5, seconds: 5).compactMap(GateWire.answer) == Array(0..<5))
        }
        world.ping([9], guest)
        for wire in guest.wires {
            #expect(wire.frames(6, seconds: 5).compactMap(GateWire.answer) == Array(0..<5) + [9])
        }
        driver.close()
    }

    /// A take-over that is given up lets out what it held.
    @Test func anAbandonedTakeOverLeavesNothing() throws {
        let world = try GateWorld(nics: 1)
        defer { world.remove() }
        let guest = try world.start()
        world.meet(guest)
        let before = world.inventory(guest)
        let driver = try world.takeOver(guest)
        world.ping(Array(0..<5), guest)
        try world.wait("answers are held") {
            _ = try driver.gate?.collect()
            return driver.gateFigures()?.heldFrames ?? 0 >= 5
        }
        driver.close()
        try PrimaryDriver.abandonTakeOver(
            process: guest.qemu.qemu, monitor: guest.qemu.monitor, segment: world.segment,
            injector: GuestQEMU.injector)
        #expect(guest.wires[0].frames(5, seconds: 5).compactMap(GateWire.answer) == Array(0..<5))
        #expect(world.inventory(guest) == before)
        world.ping([6], guest)
        #expect(guest.wires[0].frames(6, seconds: 5).compactMap(GateWire.answer).last == 6)
    }

    /// Somebody resumed the guest of an ftvmd that died, and it has sent more than its sockets hold: QEMU's main thread
    /// waits, and with it the monitor.
    @Test func aSuccessorFindsAQEMUThatWaits() throws {
        let (world, guest, first) = try GateWorld.protecting()
        defer { world.remove() }
        try world.shrinkSockets(guest, bytes: 4_096)
        // Its ftvmd lets it write, but does not collect.
        world.ping(Array(0..<40), guest)
        try world.wait("QEMU waits") {
            do {
                _ = try guest.qemu.monitor.execute(
                    "query-status", arguments: nil, descriptor: nil, timeoutMilliseconds: 200)
                return false
            } catch let error as FtvmError where error.code == .timedOut { return true }
        }
        first.close()
        let driver = try world.adopt(guest, reconnecting: true)
        defer { driver.close() }
        try world.wait("answers are held") {
            _ = try driver.gate?.collect()
            return driver.gateFigures()?.heldFrames ?? 0 >= 40
        }
        _ = try driver.committer.commit()
        #expect(guest.wires[0].frames(40, seconds: 5).compactMap(GateWire.answer) == Array(0..<40))
    }

    /// Half a gate, as an ftvmd leaves it that dies while it makes one or takes it away.
    @Test(arguments: ["object", "device", "socket", "off"])
    func aHalfGateIsMadeAnew(missing: String) throws {
        let (world, guest, first) = try GateWorld.protecting()
        defer { world.remove() }
        let monitor = guest.qemu.monitor
        switch missing {
        case "object": try monitor.removeObject(id: "ftvm-out-hostnet0")
        case "device":
            try monitor.removeObject(id: "ftvm-in-hostnet0")
            try monitor.removeCharacterDevice(id: "ftvm-in-hostnet0")
        case "socket":
            for number in guest.qemu.qemu.descriptors(linkedTo: "socket:").suffix(1) {
                _ = try GuestQEMU.injector.run(in: guest.qemu.qemu, [.close(remote: number)])
            }
        default: try monitor.setFilter(id: "ftvm-out-hostnet0", on: false)
        }
        first.close()
        let driver = try world.adopt(guest)
        defer { driver.close() }
        world.ping(Array(0..<5), guest)
        try world.wait("answers are held") {
            _ = try driver.gate?.collect()
            return driver.gateFigures()?.heldFrames ?? 0 >= 5
        }
        #expect(guest.wires[0].frames(1, seconds: 0.1).compactMap(GateWire.answer) == [])
        _ = try driver.committer.commit()
        #expect(guest.wires[0].frames(5, seconds: 5).compactMap(GateWire.answer) == Array(0..<5))
        #expect(try monitor.objects().filter { $0.hasPrefix("ftvm-") }.count == 3)
    }

    /// The same, where the guest stands still: because of the dead ftvmd, that was at a commit, or because of a user.
    @Test(arguments: [true, false])
    func aHalfGateOfAPausedGuestIsMadeAnew(isOurs: Bool) throws {
        let (world, guest, first) = try GateWorld.protecting()
        defer { world.remove() }
        let monitor = guest.qemu.monitor
        try monitor.removeObject(id: "ftvm-out-hostnet0")
        if isOurs { world.segment.insertFlags(.pausedByCommit) }
        try monitor.stop()
        first.close()
        let driver = try world.adopt(guest)
        defer { driver.close() }
        #expect(try monitor.status().running == isOurs)
        #expect(!world.segment.flags.contains(.pausedByCommit))
    }

    /// A NIC that is added while the domain is protected.
    @Test func aNICWithoutAGateIsTold() throws {
        let (world, guest, driver) = try GateWorld.protecting()
        defer { world.remove() }
        defer { driver.close() }
        #expect(driver.figures().failure == nil)
        _ = try guest.qemu.monitor.execute(
            "netdev_add",
            arguments: "{\"type\":\"tap\",\"id\":\"hostnet9\",\"ifname\":\"tapnew\","
                + "\"script\":\"no\",\"downscript\":\"no\"}")
        try world.wait("it is told") {
            driver.figures().failure?.message.contains("tapnew") == true
        }
    }
}
