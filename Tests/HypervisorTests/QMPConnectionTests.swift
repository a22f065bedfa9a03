import CLinux
import Dispatch
import Foundation
import Hypervisor
import Model
import Synchronization
import Testing

@Suite struct QMPConnectionTests {
    /// Lines that a server saw.
    private final class Log: Sendable {
        private let lines = Mutex<[String]>([])
        func add(_ line: String) { lines.withLock { $0.append(line) } }
        var all: [String] { lines.withLock { $0 } }
    }

    /// A client died while QEMU was at its command: the answer comes to the next client, before or after the greeting.
    @Test func answersToAFormerClientAreNotTakenForOurs() throws {
        let server = try FakeQMPServer { client in
            client.send(#"{"return": {"status": "stale"}}"#)
            client.send(FakeQMPServer.greeting)
            client.send(#"{"return": {}}"#)
            client.send(#"{"error": {"class": "GenericError", "desc": "stale"}}"#)
            client.answerNegotiation()
            _ = client.line()
            client.send(#"{"return": {"status": "paused", "running": false}}"#)
        }
        defer { server.close() }
        let connection = try QMPConnection(path: server.path, label: "demo")
        #expect(try connection.status().status == "paused")
    }

    @Test func commandsOfAnEpochGoOutAsTheyShould() throws {
        let log = Log()
        let server = try FakeQMPServer { client in
            client.negotiate()
            while let line = client.line() {
                log.add(line)
                client.send(#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#)
                client.send(#"{"return": {}}"#)
            }
        }
        do {
            let monitor = try QMPConnection(path: server.path, label: "demo")
            try monitor.stop()
            try monitor.saveDeviceState(path: "/dev/fdset/1 \"x\\")
            try monitor.cont()
            #expect(try monitor.execute("query-x", arguments: "{\n\"a\":1}").json == "{}")
        }
        server.close()
        #expect(
            log.all == [
                #"{"execute":"stop"}"#,
                #"{"execute":"xen-save-devices-state","arguments":"#
                    + #"{"filename":"/dev/fdset/1 \"x\\","live":false}}"#,
                #"{"execute":"cont"}"#,
                #"{"execute":"query-x","arguments":{ "a":1}}"#,
            ])
    }

    @Test func valuesAndErrorsAreRead() throws {
        let server = try FakeQMPServer { client in
            client.negotiate()
            _ = client.line()
            client.send(
                #"{"id": {"a": [1, "}"]}, "return": {"status": "paused", "running": false}}"#)
            _ = client.line()
            client.send(#"{"return": "a\r\nb \"quoted\" \u00e9\r\n", "id": 1}"#)
            _ = client.line()
            client.send(#"{"error": {"class": "GenericError", "desc": "no \"way\""}}"#)
            _ = client.line()
            client.send(#"{"error": {"class": "CommandNotFound", "desc": "unknown"}}"#)
            _ = client.line()
            client.send(#"{"return": 17}"#)
        }
        defer { server.close() }
        let monitor = try QMPConnection(path: server.path, label: "demo")
        #expect(try monitor.status() == QEMURunState(status: "paused", running: false))
        #expect(try monitor.humanMonitorCommand("info x") == "a\nb \"quoted\" é\n")
        let refused = #expect(throws: FtvmError.self) { try monitor.stop() }
        #expect(refused?.code == .failedPrecondition)
        #expect(refused?.cause == "no \"way\"")
        #expect(refused?.message == "QEMU of demo refuses stop")
        let unknown = #expect(throws: FtvmError.self) { try monitor.execute("nonsense") }
        #expect(unknown?.code == .unsupported)
        let mistaken = #expect(throws: FtvmError.self) { try monitor.status() }
        #expect(mistaken?.code == .unavailable)
    }

    @Test func eventsAreKeptUpToALimit() throws {
        let server = try FakeQMPServer { client in
            client.negotiate()
            while client.line() != nil {
                for number in 0..<10 {
                    client.send(#"{"event": "E\#(number)", "data": {"event": "x"}}"#)
                }
                client.send(#"{"return": {}}"#)
            }
        }
        defer { server.close() }
        var limits = QMPConnection.Limits()
        limits.events = 4
        let monitor = try QMPConnection(path: server.path, label: "demo", limits: limits)
        #expect(try monitor.takeEvents() == [])
        try monitor.stop()
        let events = try monitor.takeEvents()
        #expect(events.map(\.name) == ["E6", "E7", "E8", "E9"])
        #expect(events.last?.json == #"{"event": "E9", "data": {"event": "x"}}"#)
        #expect(monitor.droppedEvents == 6)
        #expect(try monitor.takeEvents() == [])
    }

    @Test func whoeverResumesAStoppedGuestIsNoticed() throws {
        let server = try FakeQMPServer { client in
            client.negotiate()
            // A run before the stop does not count; the answer to a stop comes after its event.
            client.send(#"{"timestamp": {"seconds": 1, "microseconds": 1}, "event": "RESUME"}"#)
            _ = client.line()
            client.send(#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#)
            client.send(#"{"return": {}}"#)
            for event in ["RESUME", "RESET"] {
                _ = client.line()
                client.send(#"{"timestamp": {"seconds": 1, "microseconds": 3}, "event": "\#(event)"}"#)
                client.send(#"{"return": {"status": "running", "running": true}}"#)
                _ = client.line()
                client.send(#"{"return": {}}"#)
            }
            _ = client.line()
        }
        defer { server.close() }
        let connection = try QMPConnection(path: server.path, label: "demo")
        try connection.stop()
        #expect(try !connection.hasChangedSinceStop())
        for _ in ["RESUME", "RESET"] {
            // The event is there when the answer that follows it has been read.
            _ = try connection.status()
            #expect(try connection.hasChangedSinceStop())
            try connection.stop()
            #expect(try !connection.hasChangedSinceStop())
        }
        connection.interrupt()
        #expect(throws: FtvmError.self) { try connection.hasChangedSinceStop() }
    }

    @Test func eventsAreWaitedFor() throws {
        let go = DispatchSemaphore(value: 0)
        let server = try FakeQMPServer { client in
            client.negotiate()
            go.wait()
            client.send(#"{"event": "SHUTDOWN"}"#)
        }
        defer { server.close() }
        let monitor = try QMPConnection(path: server.path, label: "demo")
        #expect(try monitor.takeEvents() == [])
        go.signal()
        #expect(try monitor.takeEvents(waitMilliseconds: 10_000).map(\.name) == ["SHUTDOWN"])
        let gone = #expect(throws: FtvmError.self) {
            try monitor.takeEvents(waitMilliseconds: 10_000)
        }
        #expect(gone?.code == .unavailable)
    }

    @Test func theEndOfQEMUIsUnavailableAndStays() throws {
        let server = try FakeQMPServer { client in
            client.negotiate()
            _ = client.line()
        }
        defer { server.close() }
        let monitor = try QMPConnection(path: server.path, label: "demo")
        for _ in 0..<2 {
            let error = #expect(throws: FtvmError.self) { try monitor.stop() }
            #expect(error?.code == .unavailable)
            #expect(error?.message == "QEMU of demo is gone")
        }
        #expect(throws: FtvmError.self) { try monitor.takeEvents() }
    }

    @Test func aLateAnswerIsNotTakenForTheNextOne() throws {
        let go = DispatchSemaphore(value: 0)
        let server = try FakeQMPServer { client in
            client.negotiate()
            _ = client.line()
            go.wait()
            client.send(#"{"return": "late"}"#)
            _ = client.line()
            client.send(#"{"return": "in time"}"#)
        }
        defer { server.close() }
        let monitor = try QMPConnection(path: server.path, label: "demo")
        let start = MonotonicDeadline.nowMicroseconds
        let error = #expect(throws: FtvmError.self) { try monitor.cont(timeoutMilliseconds: 50) }
        #expect(error?.code == .timedOut)
        #expect(MonotonicDeadline.nowMicroseconds - start >= 50_000)
        go.signal()
        #expect(try monitor.execute("query").json == #""in time""#)
    }

    @Test func aQEMUThatNeverAnswersIsGivenUp() throws {
        let server = try FakeQMPServer { client in
            client.negotiate()
            while client.line() != nil {}
        }
        defer { server.close() }
        var limits = QMPConnection.Limits()
        limits.lateReplies = 2
        let monitor = try QMPConnection(path: server.path, label: "demo", limits: limits)
        let codes = (0..<4).map { _ in
            #expect(throws: FtvmError.self) { try monitor.stop(timeoutMilliseconds: 1) }?.code
        }
        #expect(codes == [.timedOut, .timedOut, .unavailable, .unavailable])
    }

    @Test(arguments: [
        "garbage", #"{"return": {}"#, #"{"return" {}}"#, #"["return"]"#, #"{"nothing": 1}"#,
        #"{"return": {}} x"#, #"{"return": "open}"#, "HTTP/1.1 200 OK",
    ])
    func garbageEndsTheConnection(_ line: String) throws {
        let server = try FakeQMPServer { client in
            client.negotiate()
            _ = client.line()
            client.send(line)
            client.send(#"{"return": {}}"#)
            _ = client.line()
        }
        defer { server.close() }
        let monitor = try QMPConnection(path: server.path, label: "demo")
        for _ in 0..<2 {
            let error = #expect(throws: FtvmError.self) { try monitor.stop() }
            #expect(error?.code == .unavailable)
            #expect(error?.cause?.contains(line.prefix(20)) == true)
        }
    }

    @Test func longLinesHaveALimit() throws {
        let server = try FakeQMPServer { client in
            client.negotiate()
            _ = client.line()
            client.send("{\"return\": \"\(String(repeating: "x", count: 300_000))\"}")
            _ = client.line()
            client.send("{\"return\": \"\(String(repeating: "x", count: 700_000))\"}")
        }
        defer { server.close() }
        var limits = QMPConnection.Limits()
        limits.lineBytes = 500_000
        let monitor = try QMPConnection(path: server.path, label: "demo", limits: limits)
        #expect(try monitor.execute("query").json.utf8.count == 300_002)
        for _ in 0..<2 {
            let error = #expect(throws: FtvmError.self) { try monitor.execute("query") }
            #expect(error?.code == .unavailable)
        }
    }

    /// Lines may come in any pieces, also several in one.
    @Test func piecesDoNotMatter() throws {
        let server = try FakeQMPServer { client in
            client.negotiate()
            _ = client.line()
            for byte
                in "\r\n{\"event\": \"A\"}\n\n{\"return\": {\"status\": \"x\", \"running\": true}}\n"
            {
                client.sendRaw(String(byte))
            }
            _ = client.line()
            client.sendRaw("{\"event\": \"B\"}\r\n{\"return\": {}}\r\n{\"event\": \"C\"}\r\n{\"ev")
            client.sendRaw("ent\": \"D\"}\r\n")
            _ = client.line()
        }
        defer { server.close() }
        let monitor = try QMPConnection(path: server.path, label: "demo")
        #expect(try monitor.status().status == "x")
        try monitor.stop()
        var names: [String] = []
        while names.count < 4 {
            names += try monitor.takeEvents(waitMilliseconds: 10_000).map(\.name)
        }
        #expect(names == ["A", "B", "C", "D"])
    }

    @Test func anotherThreadCanInterrupt() throws {
        let isCalled = DispatchSemaphore(value: 0)
        let server = try FakeQMPServer { client in
            client.negotiate()
            _ = client.line()
            isCalled.signal()
            _ = client.line()
        }
        defer { server.close() }
        let monitor = try QMPConnection(path: server.path, label: "demo")
        Thread {
            isCalled.wait()
            monitor.interrupt()
        }.start()
        for _ in 0..<2 {
            let error = #expect(throws: FtvmError.self) {
                try monitor.stop(timeoutMilliseconds: 60_000)
            }
            #expect(error?.code == .unavailable)
            #expect(error?.message.contains("given up") == true)
        }
    }

    @Test func oneCallAtATime() throws {
        let isCalled = DispatchSemaphore(value: 0)
        let go = DispatchSemaphore(value: 0)
        let server = try FakeQMPServer { client in
            client.negotiate()
            _ = client.line()
            isCalled.signal()
            go.wait()
            client.send(#"{"return": "first"}"#)
            _ = client.line()
            client.send(#"{"return": "second"}"#)
        }
        defer { server.close() }
        let monitor = try QMPConnection(path: server.path, label: "demo")
        let first = Mutex<String?>(nil)
        let done = DispatchSemaphore(value: 0)
        Thread {
            let json = try? monitor.execute("a", timeoutMilliseconds: 60_000).json
            first.withLock { $0 = json }
            done.signal()
        }.start()
        isCalled.wait()
        let busy = #expect(throws: FtvmError.self) { try monitor.stop(timeoutMilliseconds: 20) }
        #expect(busy?.code == .timedOut)
        #expect(busy?.message == "monitor of demo is busy")
        go.signal()
        #expect(try monitor.execute("b").json == #""second""#)
        done.wait()
        #expect(first.withLock { $0 } == #""first""#)
    }

    @Test func descriptorsArePassed() throws {
        let log = Log()
        let server = try FakeQMPServer { client in
            client.negotiate()
            log.add(client.line() ?? "")
            var status = stat()
            log.add(client.passed >= 0 && fstat(client.passed, &status) == 0 ? "file" : "none")
            log.add("\(status.st_ino)")
            close(client.passed)
            client.send(#"{"return": {}}"#)
        }
        let file = open("/dev/null", O_RDONLY | O_CLOEXEC)
        defer { close(file) }
        do {
            let monitor = try QMPConnection(path: server.path, label: "demo")
            try monitor.giveDescriptor(file, name: "state")
        }
        server.close()
        var status = stat()
        fstat(file, &status)
        #expect(
            log.all == [
                #"{"execute":"getfd","arguments":{"fdname":"state"}}"#, "file", "\(status.st_ino)",
            ])
    }

    @Test func aSilentListenerTimesOut() throws {
        let server = try FakeQMPServer { client in _ = client.line() }
        defer { server.close() }
        let error = #expect(throws: FtvmError.self) {
            try QMPConnection(path: server.path, label: "demo", timeoutMilliseconds: 50)
        }
        #expect(error?.code == .timedOut)
        #expect(error?.advice?.contains("another client") == true)
    }

    @Test func somethingElseThatListensIsSaidSo() throws {
        let server = try FakeQMPServer { client in
            client.send("220 mail ESMTP")
            _ = client.line()
        }
        defer { server.close() }
        let error = #expect(throws: FtvmError.self) {
            try QMPConnection(path: server.path, label: "demo")
        }
        #expect(error?.code == .unavailable)
        #expect(error?.message == "monitor of demo does not speak QMP")
    }

    @Test func nothingThatListensIsUnavailable() throws {
        for path in ["/nonexistent/qmp.sock", "/" + String(repeating: "x", count: 200)] {
            let error = #expect(throws: FtvmError.self) {
                try QMPConnection(path: path, label: "demo")
            }
            #expect(error?.code == .unavailable)
        }
    }

    /// No descriptor stays behind, however a connection ends.
    @Test func connectionsCloseTheirDescriptor() throws {
        let isClosed = DispatchSemaphore(value: 0)
        let server = try FakeQMPServer(clients: 2) { client in
            client.negotiate()
            while client.line() != nil {}
            isClosed.signal()
        }
        defer { server.close() }
        _ = try QMPConnection(path: server.path, label: "demo")
        #expect(isClosed.wait(timeout: .now() + 15) == .success)
        try QMPConnection(path: server.path, label: "demo").interrupt()
        #expect(isClosed.wait(timeout: .now() + 15) == .success)
    }
}
