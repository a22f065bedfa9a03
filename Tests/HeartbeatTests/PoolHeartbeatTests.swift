import Foundation
import Glibc
import Heartbeat
import Model
import Testing

private let h1 = HostName("h1")
private let h2 = HostName("h2")

private func claim(
    _ directory: Directory, _ host: HostName, _ incarnation: UInt64 = 1
) throws -> PoolHeartbeat {
    try PoolHeartbeat.claimSlot(
        path: directory.path + "/heartbeats", host: host, incarnation: incarnation)
}

/// Looks again and again until it is so; false after 10 s.
private func eventually(_ condition: () throws -> Bool) rethrows -> Bool {
    for _ in 0..<10_000 {
        if try condition() { return true }
        usleep(1_000)
    }
    return false
}

@Suite struct PoolHeartbeatTests {
    @Test func everyHostSeesEveryHost() throws {
        let pool = try Directory()
        let one = try claim(pool, h1, 7)
        let two = try claim(pool, h2, 9)
        #expect(one.slot != two.slot)
        let expected = [
            HeartbeatReading(host: h1, incarnation: 7, counter: 1, processHoldsSlot: true),
            HeartbeatReading(
                host: h2, incarnation: 9, counter: 1, processHoldsSlot: true, slot: 1),
        ]
        #expect(try one.read() == expected)
        #expect(try two.read() == expected)
        two.beat()
        two.beat()
        #expect(try one.read().map(\.counter) == [1, 3])
    }

    @Test func theFileIsMadeOnceAndBelongsToRoot() throws {
        let pool = try Directory()
        let first = try claim(pool, h1)
        let attributes = try FileManager.default.attributesOfItem(
            atPath: pool.path + "/heartbeats")
        #expect(attributes[.posixPermissions] as? Int == 0o600)
        #expect(attributes[.size] as? Int == 4096 + 64 * 128)
        let second = try claim(pool, h2)
        #expect(try second.read().count == 2)
        first.release()
        #expect(try second.read().map(\.processHoldsSlot) == [false, true])
    }

    /// Busy CPUs must not make a host look dead.
    @Test(
        .enabled(if: UrgentThread.refusal() == nil, "the kernel refuses real-time priorities here"))
    func theThreadRunsBeforeEverythingOrdinary() throws {
        let pool = try Directory()
        let heartbeat = try claim(pool, h1)
        heartbeat.startBeating(periodNanoseconds: 1_000_000)
        defer { heartbeat.release() }
        // Others run in this process as well: all that have the name are meant, and ours is among them.
        #expect(
            try eventually {
                let tasks = "/proc/self/task"
                let policies = try FileManager.default.contentsOfDirectory(atPath: tasks)
                    .compactMap { task -> String? in
                        // May have ended meanwhile.
                        guard
                            let stat = try? String(
                                contentsOfFile: "\(tasks)/\(task)/stat", encoding: .utf8),
                            stat.contains("(ftvm-heartbeat)")
                        else { return nil }
                        // proc(5): field 41, counted from behind the name, which is field 2.
                        return stat.split(separator: ")").last.map {
                            String($0.split(separator: " ")[38])
                        }
                    }
                return !policies.isEmpty && policies.allSatisfy { $0 == "\(SCHED_RR)" }
            })
    }

    @Test func theThreadBeatsUntilItIsReleased() throws {
        let pool = try Directory()
        let one = try claim(pool, h1)
        let two = try claim(pool, h2)
        one.startBeating(periodNanoseconds: 2_000_000)
        #expect(try eventually { try two.read()[0].counter > 10 })
        one.release()
        let last = try two.read()[0]
        #expect(!last.processHoldsSlot)
        usleep(20_000)
        #expect(try two.read()[0].counter == last.counter)
    }

    @Test func aStuckDaemonFallsSilent() throws {
        final class Flag: @unchecked Sendable {
            private let lock = NSLock()
            private var works = true
            var value: Bool {
                get { lock.withLock { works } }
                set { lock.withLock { works = newValue } }
            }
        }
        let pool = try Directory()
        let flag = Flag()
        let one = try claim(pool, h1)
        one.startBeating(periodNanoseconds: 1_000_000, permit: { flag.value })
        #expect(try eventually { try one.read()[0].counter > 3 })
        flag.value = false
        #expect(
            try eventually {
                let before = try one.read()[0].counter
                usleep(50_000)
                return try one.read()[0].counter == before
            })
        #expect(try one.read()[0].processHoldsSlot)
    }

    @Test func aKilledProcessIsProvenGone() throws {
        let pool = try Directory()
        let one = try claim(pool, h1)
        let child = try Helper("beat", pool.path + "/heartbeats", "h2", "3", "1")
        #expect(child.said().hasPrefix("beats in slot"))
        #expect(try eventually { try one.read().last?.counter ?? 0 > 5 })
        #expect(try one.read().last?.host == h2)
        #expect(try one.read().last?.processHoldsSlot == true)

        child.end()
        let dead = try one.read().last
        #expect(dead?.host == h2)
        #expect(dead?.incarnation == 3)
        #expect(dead?.processHoldsSlot == false)

        // Its next incarnation takes the same slot, and the old one is seen no more.
        let again = try Helper("beat", pool.path + "/heartbeats", "h2", "4", "1")
        #expect(again.said().hasPrefix("beats in slot"))
        let readings = try one.read()
        #expect(readings.map(\.host) == [h1, h2])
        #expect(readings.last?.incarnation == 4)
        #expect(readings.last?.processHoldsSlot == true)
    }

    @Test func aStoppedProcessHoldsItsSlotButDoesNotBeat() throws {
        let pool = try Directory()
        let one = try claim(pool, h1)
        let child = try Helper("beat", pool.path + "/heartbeats", "h2", "3", "1")
        #expect(child.said().hasPrefix("beats in slot"))
        child.signal(SIGSTOP)
        // It may be stopped a moment after the signal was sent.
        var counter: UInt64 = 0
        #expect(
            try eventually {
                let before = counter
                counter = try one.read().last?.counter ?? 0
                usleep(20_000)
                return before == counter && counter > 0
            })
        #expect(try one.read().last?.processHoldsSlot == true)
        child.signal(SIGCONT)
        #expect(try eventually { try one.read().last?.counter ?? 0 > counter })
    }

    @Test func twoDaemonsOfOneNameAreRefused() throws {
        let pool = try Directory()
        let one = try claim(pool, h1, 1)
        do throws(FtvmError) {
            _ = try PoolHeartbeat.claimSlot(
                path: pool.path + "/heartbeats", host: h1, incarnation: 2)
            Issue.record("two ftvmd beat as h1")
        } catch {
            #expect(error.code == .conflict)
        }
        one.release()
        #expect(try claim(pool, h1, 2).slot == one.slot)
    }

    /// The slot that the store has assigned, whatever an earlier ftvmd of the host has left elsewhere.
    @Test func theAssignedSlotIsTakenAndNoOther() throws {
        let pool = try Directory()
        let path = pool.path + "/heartbeats"
        func claim(_ host: HostName, _ slot: Int, _ incarnation: UInt64) throws -> PoolHeartbeat {
            try PoolHeartbeat.claimSlot(
                path: path, host: host, incarnation: incarnation, assigned: slot)
        }
        let old = try claim(h1, 5, 1)
        let two = try claim(h2, 3, 1)
        #expect(old.slot == 5 && two.slot == 3)
        do {
            _ = try claim(HostName("h3"), 3, 1)
            Issue.record("two hosts beat in one slot")
        } catch let error as FtvmError {
            #expect(error.code == .conflict && error.cause?.contains("host h2") == true)
        }
        old.release()
        let new = try claim(h1, 4, 2)
        #expect(try PoolHeartbeat.names(path: path) == [3: h2, 4: h1])
        #expect(try two.read().map(\.host) == [h2, h1])
        #expect(try two.read().map(\.slot) == [3, 4])
        // On another machine locks tell nothing: there the dead host's slot looks like this as well.
        two.release()
        #expect(try claim(HostName("h3"), 3, 1).read().map(\.host) == [HostName("h3"), h1])
        _ = new
    }

    @Test func slotsOfTheDeadAreTakenLast() throws {
        let pool = try Directory()
        var hearts: [PoolHeartbeat] = []
        for number in 1...64 { hearts.append(try claim(pool, HostName("host\(number)"))) }
        #expect(try hearts[0].read().count == 64)
        do throws(FtvmError) {
            _ = try PoolHeartbeat.claimSlot(
                path: pool.path + "/heartbeats", host: h1, incarnation: 1)
            Issue.record("a 65th slot")
        } catch {
            #expect(error.code == .resourceExhausted)
        }
        hearts[40].release()
        let late = try claim(pool, h1)
        #expect(late.slot == 40)
        #expect(try late.read().map(\.host).contains(HostName("host41")) == false)
    }

    @Test func aClaimThatDiesInTheMiddleLeavesAFreeSlot() throws {
        let pool = try Directory()
        let path = pool.path + "/heartbeats"
        let one = try claim(pool, h1)
        let child = try Helper("claim-and-die", path, "h2", "1", "heartbeat.claimed")
        #expect(child.sayAll() == "")
        #expect(try one.read().map(\.host) == [h1])
        let next = try Helper("claim-and-die", path, "h2", "2", "nowhere")
        #expect(next.sayAll() == "survived in slot 1\n")
    }

    @Test func namesOfAnyKindFitOrAreRefused() throws {
        let pool = try Directory()
        let long = HostName(String(repeating: "x", count: 63))
        let odd = HostName("höst ✓")
        _ = try claim(pool, long).release()
        let two = try claim(pool, odd)
        #expect(try two.read().map(\.host) == [long, odd])
        for bad in [HostName(""), HostName(String(repeating: "x", count: 64))] {
            #expect(throws: FtvmError.self) { try claim(pool, bad) }
        }
        #expect(throws: FtvmError.self) { try claim(pool, h1, 0) }
    }

    @Test func aForeignFileIsRefused() throws {
        let pool = try Directory()
        let path = pool.path + "/heartbeats"
        try Data("this is no heartbeat file".utf8).write(to: URL(fileURLWithPath: path))
        do throws(FtvmError) {
            _ = try PoolHeartbeat.claimSlot(path: path, host: h1, incarnation: 1)
            Issue.record("taken for a heartbeat file")
        } catch {
            #expect(error.code == .dataCorrupted)
        }
        do throws(FtvmError) {
            _ = try PoolHeartbeat.claimSlot(
                path: "/dev/shm/ftvm-no-such-pool/heartbeats", host: h1, incarnation: 1)
            Issue.record("made where there is no pool")
        } catch {
            #expect(error.code == .unavailable)
        }
    }

    @Test func anotherVersionsFileIsRefused() throws {
        let pool = try Directory()
        _ = try claim(pool, h1).release()
        let path = pool.path + "/heartbeats"
        let descriptor = open(path, O_RDWR)
        var version: UInt32 = 2
        pwrite(descriptor, &version, 4, 8)
        close(descriptor)
        do throws(FtvmError) {
            _ = try PoolHeartbeat.claimSlot(path: path, host: h1, incarnation: 1)
            Issue.record("a newer format was taken")
        } catch {
            #expect(error.code == .unsupported)
        }
    }

    /// While a slot changes hands again and again, a reader sees old owners or new ones, never a
    /// mixture.
    @Test func readersNeverSeeATornSlot() throws {
        let pool = try Directory()
        let reader = try claim(pool, HostName("reader"))
        let names = [String(repeating: "a", count: 60), String(repeating: "b", count: 50)]
        let done = DispatchSemaphore(value: 0)
        let path = pool.path + "/heartbeats"
        // Two names that reuse one slot: all others are held.
        let holders = try (2..<64).map { try claim(pool, HostName("holder\($0)")) }
        let writer = Thread {
            for round in 0..<2_000 {
                let index = round % 2
                let heart = try? PoolHeartbeat.claimSlot(
                    path: path, host: HostName(names[index]), incarnation: UInt64(100 + index))
                heart?.release()
            }
            done.signal()
        }
        writer.start()
        var seen = 0
        while done.wait(timeout: .now()) == .timedOut {
            for reading in try reader.read() where reading.incarnation >= 100 {
                #expect(reading.host.text == names[Int(reading.incarnation - 100)])
                seen += 1
            }
        }
        #expect(seen > 0)
        #expect(holders.count == 62)
    }
}
