import Fencing
import Foundation
import Glibc
import Model
import Synchronization
import Testing

/// Notes what is done to it.
private final class FakeWatchdog: WatchdogDevice {
    struct Log {
        var pets = 0
        var closed: Bool?
        var fails = false
    }
    let log = Mutex(Log())

    func pet() throws(FtvmError) {
        let fails = log.withLock { log -> Bool in
            log.pets += 1
            return log.fails
        }
        if fails { throw FtvmError(.unavailable, "no such device") }
    }
    func close(disarmed: Bool) { log.withLock { $0.closed = disarmed } }
}

@Suite struct WatchdogTests {
    private func wait(_ condition: () -> Bool) async throws {
        for _ in 0..<2_000 where !condition() { try await Task.sleep(for: .milliseconds(5)) }
        #expect(condition())
    }

    @Test func itIsPettedAsLongAsItIsPermitted() async throws {
        let device = FakeWatchdog()
        let flag = Permission()
        let keeper = WatchdogKeeper(device: device, periodMilliseconds: 5) { flag.value }
        try await wait { device.log.withLock { $0.pets } >= 5 }
        flag.value = false
        try await wait { keeper.refusals >= 3 }
        let pets = device.log.withLock { $0.pets }
        let refusals = keeper.refusals
        try await wait { keeper.refusals >= refusals + 5 }
        #expect(device.log.withLock { $0.pets } == pets)
        flag.value = true
        try await wait { device.log.withLock { $0.pets } > pets }
        keeper.stop(disarmed: true)
        #expect(device.log.withLock { $0.closed } == true)
        let last = device.log.withLock { $0.pets }
        try await Task.sleep(for: .milliseconds(30))
        #expect(device.log.withLock { $0.pets } == last)
    }

    @Test func aFailureIsSaidUntilItWorksAgain() async throws {
        let device = FakeWatchdog()
        let keeper = WatchdogKeeper(device: device, periodMilliseconds: 5) { true }
        #expect(keeper.failure == nil)
        device.log.withLock { $0.fails = true }
        try await wait { keeper.failure?.code == .unavailable }
        device.log.withLock { $0.fails = false }
        try await wait { keeper.failure == nil }
        keeper.stop(disarmed: false)
        #expect(device.log.withLock { $0.closed } == false)
    }

    @Test func whatIsNoWatchdogIsRefused() throws {
        func failure(_ path: String) -> FtvmError? {
            do throws(FtvmError) {
                _ = try LinuxWatchdog(path: path, timeoutSeconds: 5)
                return nil
            } catch {
                return error
            }
        }
        #expect(failure("/nonexistent/watchdog")?.code == .notFound)
        #expect(failure("/dev/null")?.code == .unsupported)
        let file = "/dev/shm/ftvm-test-\(UUID().uuidString)"
        try Data().write(to: URL(fileURLWithPath: file))
        defer { unlink(file) }
        let error = failure(file)
        #expect(error?.code == .unsupported && error?.advice == "it is no watchdog device")
        // In case it was one after all, it was told to stop.
        #expect(try String(contentsOfFile: file, encoding: .utf8) == "V")
    }
}

private final class Permission: Sendable {
    private let state = Mutex(true)
    var value: Bool {
        get { state.withLock { $0 } }
        set { state.withLock { $0 = newValue } }
    }
}
