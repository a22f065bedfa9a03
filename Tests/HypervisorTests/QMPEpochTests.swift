import CLinux
import Dispatch
import Foundation
import Hypervisor
import Model
import Synchronization
import Testing

/// The commands of an epoch over a QMP connection: two in one write, and what can go wrong between their answers.
@Suite struct QMPEpochTests {
    private static let stop = #"{"execute":"stop"}"#
    private static let save =
        #"{"execute":"xen-save-devices-state","arguments":{"filename":"/f","live":false}}"#
    private static let stopEvent = #"{"timestamp": {}, "event": "STOP"}"#
    private static let resumeEvent = #"{"timestamp": {}, "event": "RESUME"}"#
    private static let ok = #"{"return": {}}"#
    private static let refusal = #"{"error": {"class": "GenericError", "desc": "no"}}"#

    private func commit(
        _ monitor: QMPConnection, milliseconds: Int = 10_000,
        attending: (any MonitorAttendant)? = nil,
        whileSaving: (() -> Bool) throws -> Void = { _ in }
    ) throws -> Bool {
        try monitor.stopAndSave(
            path: "/f", timeoutMilliseconds: milliseconds, attending: attending,
            whileSaving: whileSaving)
    }

    @Test func bothCommandsGoOutBeforeTheFirstAnswer() throws {
        let isStopped = DispatchSemaphore(value: 0)
        let saves = DispatchSemaphore(value: 0)
        let server = try FakeQMPServer { client in
            client.negotiate()
            #expect(client.line() == Self.stop)
            #expect(client.line() == Self.save, "it waits for the answer to stop")
            client.send(Self.stopEvent)
            client.send(Self.ok)
            isStopped.signal()
            saves.wait()
            client.send(Self.ok)
            _ = client.line()
        }
        defer { server.close() }
        let monitor = try QMPConnection(path: server.path, label: "demo")
        var calls = 0
        let ran = try commit(monitor) { isSaved in
            calls += 1
            #expect(isStopped.wait(timeout: .now() + 10) == .success)
            #expect(!isSaved(), "nothing has been saved yet")
            saves.signal()
            let deadline = Date().addingTimeInterval(10)
            while !isSaved(), Date() < deadline { usleep(1_000) }
            #expect(isSaved())
        }
        #expect(ran)
        #expect(calls == 1)
        #expect(try !monitor.hasChangedSinceStop())
    }

    /// No STOP event comes before the answer of a QEMU whose guest stands still already.
    @Test func aGuestThatStoodStillIsNotTakenForStopped() throws {
        let server = try FakeQMPServer { client in
            client.negotiate()
            client.send(Self.stopEvent)
            for _ in 0..<2 { _ = client.line() }
            client.send(Self.ok)
            client.send(Self.refusal)
            _ = client.line()
            client.send(Self.ok)
        }
        defer { server.close() }
        let monitor = try QMPConnection(path: server.path, label: "demo")
        // A user's pause, before.
        #expect(try monitor.takeEvents(waitMilliseconds: 10_000).map(\.name) == ["STOP"])
        #expect(try !monitor.isRunning(attending: nil))
        #expect(try !commit(monitor) { _ in Issue.record("the guest was not stopped by us") })
        try monitor.cont()
    }

    @Test func whetherTheGuestRunsIsKnownFromEvents() throws {
        let queries = Atomic<Int>(0)
        let server = try FakeQMPServer { client in
            client.negotiate()
            while let line = client.line() {
                if line.contains("query-status") {
                    queries.add(1, ordering: .relaxed)
                    client.send(#"{"return": {"status": "running", "running": true}}"#)
                    continue
                }
                if let event = line.split(separator: "\"").last(where: { $0.hasPrefix("E-") }) {
                    client.send("{\"event\": \"\(event.dropFirst(2))\"}")
                }
                client.send(Self.ok)
            }
        }
        do {
            let monitor = try QMPConnection(path: server.path, label: "demo")
            #expect(try monitor.isRunning(attending: nil))
            #expect(try monitor.isRunning(attending: nil))
            for (event, runs) in [
                ("STOP", false), ("RESUME", true), ("SUSPEND", false), ("WAKEUP", true),
                ("RESET", true), ("STOP", false), ("RESET", false),
            ] {
                _ = try monitor.execute("E-" + event)
                #expect(try monitor.isRunning(attending: nil) == runs, "\(event)")
            }
            // A guest that was seen to stand still is as good as one that we have stopped.
            #expect(try !monitor.hasChangedSinceStop())
            _ = try monitor.execute("E-RESUME")
            #expect(try monitor.hasChangedSinceStop())
        }
        server.close()
        #expect(queries.load(ordering: .relaxed) == 1)
    }

    @Test func aRefusedStopIsAnErrorAndTheNextAnswerIsNotLost() throws {
        let server = try FakeQMPServer { client in
            client.negotiate()
            for _ in 0..<2 { _ = client.line() }
            client.send(Self.refusal)
            client.send(Self.ok)
            _ = client.line()
            client.send(#"{"return": "next"}"#)
        }
        defer { server.close() }
        let monitor = try QMPConnection(path: server.path, label: "demo")
        let error = #expect(throws: FtvmError.self) {
            try commit(monitor) { _ in Issue.record("nothing was stopped") }
        }
        #expect(error?.code == .failedPrecondition)
        #expect(error?.message == "QEMU of demo refuses stop")
        #expect(try monitor.execute("x").json == #""next""#)
    }

    @Test func aRefusedSaveIsAnError() throws {
        let server = try FakeQMPServer { client in
            client.negotiate()
            for _ in 0..<2 { _ = client.line() }
            client.send(Self.stopEvent)
            client.send(Self.ok)
            client.send(Self.refusal)
            _ = client.line()
            client.send(#"{"return": "next"}"#)
        }
        defer { server.close() }
        let monitor = try QMPConnection(path: server.path, label: "demo")
        var calls = 0
        let error = #expect(throws: FtvmError.self) { try commit(monitor) { _ in calls += 1 } }
        #expect(error?.message == "QEMU of demo refuses xen-save-devices-state")
        #expect(calls == 1)
        #expect(try monitor.execute("x").json == #""next""#)
    }

    /// What we do meanwhile may fail; QEMU's answer is waited for all the same.
    @Test func anErrorOfOursDoesNotLoseTheAnswer() throws {
        let server = try FakeQMPServer { client in
            client.negotiate()
            for _ in 0..<2 { _ = client.line() }
            client.send(Self.stopEvent)
            client.send(Self.ok)
            client.send(Self.ok)
            _ = client.line()
            client.send(#"{"return": "next"}"#)
        }
        defer { server.close() }
        let monitor = try QMPConnection(path: server.path, label: "demo")
        let error = #expect(throws: FtvmError.self) {
            try commit(monitor) { _ in throw FtvmError(.internalError, "ours") }
        }
        #expect(error?.message == "ours")
        #expect(try monitor.execute("x").json == #""next""#)
    }

    @Test func theEndOfQEMUBetweenTheAnswersIsUnavailable() throws {
        let server = try FakeQMPServer { client in
            client.negotiate()
            for _ in 0..<2 { _ = client.line() }
            client.send(Self.stopEvent)
            client.send(Self.ok)
        }
        defer { server.close() }
        let monitor = try QMPConnection(path: server.path, label: "demo")
        let error = #expect(throws: FtvmError.self) { try commit(monitor) }
        #expect(error?.code == .unavailable)
        #expect(throws: FtvmError.self) { try monitor.cont() }
    }

    @Test func aResumptionBetweenTheAnswersIsNoticed() throws {
        let server = try FakeQMPServer { client in
            client.negotiate()
            for _ in 0..<2 { _ = client.line() }
            // Also one that was stopped again.
            client.send(Self.stopEvent)
            client.send(Self.ok)
            client.send(Self.resumeEvent)
            client.send(Self.stopEvent)
            client.send(Self.ok)
            for _ in 0..<2 { _ = client.line() }
            client.send(Self.resumeEvent)
            client.send(Self.stopEvent)
            client.send(Self.ok)
            client.send(Self.ok)
            _ = client.line()
        }
        defer { server.close() }
        let monitor = try QMPConnection(path: server.path, label: "demo")
        #expect(try commit(monitor))
        #expect(try monitor.hasChangedSinceStop())
        // A run before the answer to stop does not count.
        #expect(try commit(monitor))
        #expect(try !monitor.hasChangedSinceStop())
    }

    @Test(arguments: [0, 1])
    func answersThatCameTooLateAreNotTakenForTheNext(inTime: Int) throws {
        let go = DispatchSemaphore(value: 0)
        let server = try FakeQMPServer { client in
            client.negotiate()
            for _ in 0..<2 { _ = client.line() }
            if inTime > 0 {
                client.send(Self.stopEvent)
                client.send(#"{"return": "stop"}"#)
            }
            go.wait()
            for _ in inTime..<2 { client.send(#"{"return": "late"}"#) }
            _ = client.line()
            client.send(#"{"return": "next"}"#)
        }
        defer { server.close() }
        let monitor = try QMPConnection(path: server.path, label: "demo")
        let error = #expect(throws: FtvmError.self) { try commit(monitor, milliseconds: 100) }
        #expect(error?.code == .timedOut)
        go.signal()
        #expect(try monitor.execute("x").json == #""next""#)
    }

    private final class Reader: MonitorAttendant {
        var descriptors: [Int32]
        var bytes = 0
        init(_ descriptor: Int32) { descriptors = [descriptor] }
        func attend() {
            var buffer = [UInt8](repeating: 0, count: 65_536)
            let count = read(descriptors[0], &buffer, buffer.count)
            if count > 0 { bytes += count }
        }
    }

    /// A QEMU that cannot answer before somebody reads what it sends elsewhere, as with a full gate.
    @Test func aQEMUThatWaitsForItsReaderGetsOn() throws {
        var ends: [Int32] = [-1, -1]
        #expect(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0)
        let (reading, writing) = (ends[0], ends[1])
        #expect(fcntl(reading, F_SETFL, O_NONBLOCK) == 0)
        defer {
            close(reading)
            close(writing)
        }
        let much = 4 << 20
        let server = try FakeQMPServer { client in
            client.negotiate()
            let block = [UInt8](repeating: 1, count: 65_536)
            func sendMuch() {
                for _ in 0..<(much / block.count) {
                    #expect(write(writing, block, block.count) == block.count)
                }
            }
            _ = client.line()
            sendMuch()
            client.send(#"{"return": {"status": "running", "running": true}}"#)
            for _ in 0..<2 { _ = client.line() }
            sendMuch()
            client.send(Self.stopEvent)
            client.send(Self.ok)
            client.send(Self.ok)
            _ = client.line()
            sendMuch()
            client.send(Self.ok)
        }
        defer { server.close() }
        let monitor = try QMPConnection(path: server.path, label: "demo")
        let reader = Reader(reading)
        // The connection is busy at first: that wait is attended as well.
        let holder = DispatchSemaphore(value: 0)
        Thread {
            _ = try? monitor.takeEvents(waitMilliseconds: 50)
            holder.signal()
        }.start()
        usleep(10_000)
        #expect(try monitor.isRunning(attending: reader))
        #expect(try commit(monitor, attending: reader))
        var wasCalled = false
        try monitor.cont(
            timeoutMilliseconds: 10_000, attending: reader, meanwhile: { wasCalled = true })
        #expect(wasCalled)
        holder.wait()
        #expect(reader.bytes <= 3 * much)
        #expect(reader.bytes > 2 * much)
    }

    @Test func whatIsToBeDoneMeanwhileIsDoneInAnyCase() throws {
        let server = try FakeQMPServer { client in client.negotiate() }
        defer { server.close() }
        let monitor = try QMPConnection(path: server.path, label: "demo")
        var calls = 0
        for expected in 1...2 {
            #expect(throws: FtvmError.self) {
                try monitor.cont(
                    timeoutMilliseconds: 10_000, attending: nil, meanwhile: { calls += 1 })
            }
            #expect(calls == expected)
        }
    }
}
