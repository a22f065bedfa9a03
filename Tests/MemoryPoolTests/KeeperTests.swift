import CLinux
import Foundation
import MemoryPool
import Model
import Testing

/// The keeper of a memfd pool, and clients that behave badly.
@Suite struct KeeperTests {
    /// A raw connection, for saying what a sound client never says.
    private final class RawClient {
        let socket: Int32
        init(_ home: TestPool) throws {
            socket = ftvm_memory_connect(home.directory + "/keeper.sock")
            if socket < 0 { throw TestTrouble("cannot connect: \(socket)") }
            _ = ftvm_memory_set_timeouts(socket, 10_000)
        }
        deinit { close(socket) }

        /// The reply; nil if the keeper hung up.
        func say(_ bytes: [UInt8], passing descriptor: Int32 = -1) -> [UInt8]? {
            _ = ftvm_memory_send(socket, bytes, bytes.count, descriptor, true)
            var buffer = [UInt8](repeating: 0, count: 4096)
            var passed: Int32 = -1
            let count = ftvm_memory_receive(socket, &buffer, buffer.count, &passed, true)
            if passed >= 0 { close(passed) }
            return count > 0 ? Array(buffer[..<count]) : nil
        }
    }

    @Test func badRequestsEndTheirConnectionOnly() throws {
        let home = try TestPool(.memfd)
        _ = try home.pool.createSegment(smallSegment())
        let bad: [[UInt8]] = [
            [0], [1], [1, 1, 0], [2, 1, 0, 0], [1, 99, 0, 0], [1, 1, 0, 5], [1, 1, 7, 0],
            [1, 3, 9, 2, 118, 109], [1, 3, 1, 3, 46, 46, 47], [1, 4, 0, 0], [1, 7, 0, 1, 47],
            [UInt8](repeating: 1, count: 4096), [UInt8](repeating: 65, count: 60_000),
        ]
        for bytes in bad {
            let client = try RawClient(home)
            #expect(client.say(bytes) == nil, "\(bytes.prefix(8))")
        }
        #expect(try home.pool.segmentNames() == ["vm"])
    }

    @Test func requestsThatDoNotFitAreRefused() throws {
        let home = try TestPool(.memfd)
        let client = try RawClient(home)
        func status(_ bytes: [UInt8]) throws -> Int32 {
            let reply = try #require(client.say(bytes))
            return reply.withUnsafeBytes { $0.loadUnaligned(as: Int32.self) }
        }
        #expect(try status([1, 5, 1, 0]) == -EINVAL)
        #expect(try status([1, 6, 0, 0]) == -EINVAL)
        #expect(try status([1, 4, 0, 1, 120]) == 0)
        #expect(try status([1, 4, 0, 1, 121]) == -EBUSY)
        #expect(try status([1, 6, 0, 0]) == -EINVAL)
        #expect(try status([1, 5, 1, 0]) == 0)
        #expect(try status([1, 5, 1, 0]) == -EEXIST)
        #expect(try status([1, 5, 2, 0]) == 0)
        #expect(try status([1, 5, 3, 0]) == 0)
        // The files are empty still: nothing that anybody could map.
        #expect(try status([1, 6, 0, 0]) == -EINVAL)
        #expect(try home.pool.segmentNames() == [])
    }

    @Test func descriptorsThatNobodyAskedForAreClosed() throws {
        let home = try TestPool(.memfd)
        var ends: [Int32] = [0, 0]
        #expect(pipe(&ends) == 0)
        let client = try RawClient(home)
        // An information request, with the writing end of a pipe.
        #expect(client.say([1, 1, 0, 0], passing: ends[1]) != nil)
        close(ends[1])
        var byte: UInt8 = 0
        // The end of file comes only when the keeper has closed its copy.
        #expect(read(ends[0], &byte, 1) == 0)
        close(ends[0])
    }

    @Test func aClientThatNeverReadsIsDropped() throws {
        let home = try TestPool(.memfd)
        let client = try RawClient(home)
        var sent = 0
        while sent < 100_000, ftvm_memory_send(client.socket, [1, 1, 0, 0], 4, -1, true) == 4 {
            sent += 1
        }
        #expect(sent < 100_000)
        #expect(try home.pool.segmentNames() == [])
    }

    @Test func moreClientsThanItServesWaitAndIdleOnesGiveWay() throws {
        let home = try TestPool(.memfd)
        var idle: [RawClient] = []
        for _ in 0..<MemfdKeeper.maximumClients { idle.append(try RawClient(home)) }
        // Served once the idle ones have been hung up on.
        let waiting = try RawClient(home)
        #expect(waiting.say([1, 1, 0, 0]) != nil)
        #expect(idle[0].say([1, 1, 0, 0]) == nil)
    }

    @Test func aCreatorThatDiesLeavesNothing() throws {
        let home = try TestPool(.memfd)
        let before = try home.pool.usage().totalBytes
        for point in [
            "segment.create.begun", "segment.create.ram-reserved", "segment.create.control-written",
        ] {
            let ending = try CrasherProcess.run(
                ["create", home.directory, "memfd", "vm", "16", point, "1"])
            #expect(ending == .killed, "\(point)")
            #expect(try home.pool.segmentNames() == [])
            #expect(try home.pool.removeStaleCreations() == [])
        }
        let ending = try CrasherProcess.run(
            ["create", home.directory, "memfd", "vm", "16", "segment.create.renamed", "1"])
        #expect(ending == .killed)
        #expect(try home.pool.openSegment(name: "vm", access: .write).dump().problems == [])
        #expect(try home.pool.usage().totalBytes == before)
    }

    @Test func aSegmentOutlivesItsProcessAndCannotBeResized() throws {
        let home = try TestPool(.memfd)
        let ending = try CrasherProcess.run(
            ["create", home.directory, "memfd", "vm", "16", "none", "1"])
        #expect(ending == .finished)
        let one = try home.pool.openSegment(name: "vm", access: .write)
        let two = try home.pool.openSegment(name: "vm", access: .write)
        one.fill(page: 9, with: 99)
        #expect(two.filling(of: 9) == 99)
        #expect(ftruncate(one.ramDescriptor, 4096) == -1)
        #expect(ftruncate(one.ramDescriptor, 1 << 20) == -1)
        #expect(one.lockPath == nil)
        let locks = [try one.openLock(), try two.openLock()]
        #expect(ftvm_lock_set(locks[0], 0, 1, true) == 0)
        #expect(ftvm_lock_set(locks[1], 0, 1, true) == -EAGAIN)
        #expect(ftvm_lock_clear(locks[0], 0, 1) == 0)
        for lock in locks { close(lock) }
    }

    @Test func manyNamesAreListedInSeveralAnswers() throws {
        let home = try TestPool(.memfd)
        let names = (0..<40).map { "\($0 + 100)-" + String(repeating: "n", count: 120) }
        for name in names.shuffled() { _ = try home.pool.createSegment(smallSegment(name)) }
        #expect(try home.pool.segmentNames() == names)
    }

    @Test func thereIsOneKeeperADirectory() throws {
        let home = try TestPool(.memfd)
        _ = try ftvmError(.alreadyExists) { _ = try MemfdKeeper(directory: home.directory) }
        #expect(try home.pool.segmentNames() == [])
    }

    @Test func withoutAKeeperThePoolIsUnavailable() throws {
        let home = try TestPool()
        let configuration = PoolConfiguration(
            name: PoolName("m"), kind: .memfd, path: home.directory)
        let error = try ftvmError(.unavailable) { _ = try Pool(configuration) }
        #expect(error.message.contains(home.directory + "/keeper.sock"))
        do {
            let keeper = try KeeperThread(directory: home.directory)
            #expect(try Pool(configuration).segmentNames() == [])
            keeper.stop()
        }
        _ = try ftvmError(.unavailable) { _ = try Pool(configuration) }
        // A new one takes over what a dead one left: its socket and its lock file.
        let keeper = try KeeperThread(directory: home.directory)
        #expect(try Pool(configuration).segmentNames() == [])
        keeper.stop()
    }
}
