import Foundation
import Hypervisor
import Logging
import Model
import Testing

/// libvirt's numbers as ours, the event streams, and the QEMU process: what needs no libvirt.
@Suite struct LibvirtWordsTests {
    @Test func eventsHaveTheirKind() {
        let expected: [(Int32, Int32, DomainEvent.Kind?)] = [
            (0, 0, .defined), (0, 1, .defined), (1, 0, .undefined),
            (2, 0, .started(.booted)), (2, 1, .started(.migrated)), (2, 4, .started(.wokeUp)),
            (3, 0, .suspended(.paused)), (3, 2, .suspended(.ioError)),
            (3, 3, .suspended(.watchdog)), (3, 8, .suspended(.postCopyFailed)),
            (4, 0, .resumed(.unpaused)), (4, 1, .resumed(.migrated)),
            (5, 0, .stopped(.shutdown)), (5, 1, .stopped(.destroyed)), (5, 2, .stopped(.crashed)),
            (5, 3, .stopped(.migrated)), (5, 4, .stopped(.saved)), (5, 5, .stopped(.failed)),
            (5, 6, .stopped(.fromSnapshot)), (5, 99, .stopped(.unknown)),
            (5, -1, .stopped(.unknown)),
            (6, 0, .shutdown(.finished)), (6, 1, .shutdown(.byGuest)), (6, 2, .shutdown(.byHost)),
            (7, 0, .powerManagementSuspended), (8, 0, .crashed), (99, 0, nil), (-1, 0, nil),
        ]
        for (event, detail, kind) in expected {
            #expect(DomainEvent.Kind(event: event, detail: detail) == kind, "\(event), \(detail)")
        }
    }

    @Test func statesHaveTheirWords() {
        let words = (0...8).map { DomainState(number: $0).rawValue }
        #expect(
            words == [
                "no state", "running", "idle", "paused", "in shutdown", "shut off", "crashed",
                "pmsuspended", "no state",
            ])
        #expect(DomainState.running.reason(number: 1) == "booted")
        #expect(DomainState.paused.reason(number: 5) == "I/O error")
        #expect(DomainState.shutOff.reason(number: 3) == "crashed")
        #expect(DomainState.shutOff.reason(number: 6) == "failed")
        #expect(DomainState.crashed.reason(number: 77) == "unknown")
        #expect(DomainState.idle.reason(number: -1) == "unknown")
    }

    @Test func slowListenersLoseTheOldest() async {
        let hub = EventHub(limit: 2, logger: Logger(label: "test"))
        let stream = hub.subscribe()
        let other = hub.subscribe()
        for reason in ["a", "b", "c"] { hub.send(.disconnected(reason: reason)) }
        hub.finish()
        for stream in [stream, other] {
            var seen: [HostEvent] = []
            for await event in stream { seen.append(event) }
            #expect(seen == [.disconnected(reason: "b"), .disconnected(reason: "c")])
        }
        #expect(hub.dropped == 2)
        // A listener that comes too late is not left waiting.
        for await event in hub.subscribe() { Issue.record("\(event)") }
    }

    // MARK: The process

    private static let uuid = DomainCorpus.uuid

    /// A process that has `-uuid` among its arguments as QEMU does; it ends with its input.
    private func process(uuid: String) throws -> (process: Process, input: Pipe) {
        let process = Process()
        let input = Pipe()
        process.executableURL = URL(fileURLWithPath: "/bin/sh")
        process.arguments = ["-c", "read line", "-uuid", uuid]
        process.standardInput = input
        try process.run()
        return (process, input)
    }

    private func directory() throws -> String {
        let path = NSTemporaryDirectory() + "ftvm-state-\(UUID().uuidString.prefix(8))"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        return path
    }

    private func write(_ text: String, _ path: String) throws {
        try text.write(toFile: path, atomically: true, encoding: .utf8)
    }

    @Test func theProcessIsFoundThroughEitherFile() throws {
        let (child, input) = try process(uuid: Self.uuid.uppercased())
        let state = try directory()
        defer { try? FileManager.default.removeItem(atPath: state) }
        try write("\(child.processIdentifier)\n", "\(state)/a.pid")
        // A stale number in one file, the right one in the other.
        try write("\(getpid())", "\(state)/b.pid")
        try write(
            "<domstatus state='running' pid='\(child.processIdentifier)'><x/></domstatus>",
            "\(state)/b.xml")
        for domain in ["a", "b"] {
            let found = try QEMUProcess.find(
                domain: domain, uuid: Self.uuid, stateDirectory: state)
            #expect(found.processID == child.processIdentifier)
            #expect(found.isRunning)
            #expect(found.startTicks > 0)
        }
        let found = try QEMUProcess.find(domain: "a", uuid: Self.uuid, stateDirectory: state)
        try input.fileHandleForWriting.close()
        child.waitUntilExit()
        #expect(!found.isRunning)
        let error = #expect(throws: FtvmError.self) {
            try QEMUProcess.find(domain: "a", uuid: Self.uuid, stateDirectory: state)
        }
        #expect(error?.code == .notFound)
        #expect(error?.cause == "process \(child.processIdentifier) is gone")
    }

    @Test func anotherProcessIsNotTakenForIt() throws {
        let (child, input) = try process(uuid: "11111111-2222-3333-4444-555555555555")
        defer {
            try? input.fileHandleForWriting.close()
            child.waitUntilExit()
        }
        let state = try directory()
        defer { try? FileManager.default.removeItem(atPath: state) }
        for text in ["\(child.processIdentifier)", "\(getpid())", "garbage", "-1", ""] {
            try write(text, "\(state)/a.pid")
            let error = #expect(throws: FtvmError.self) {
                try QEMUProcess.find(domain: "a", uuid: Self.uuid, stateDirectory: state)
            }
            #expect(error?.code == .notFound)
        }
        let none = #expect(throws: FtvmError.self) {
            try QEMUProcess.find(domain: "none", uuid: Self.uuid, stateDirectory: state)
        }
        #expect(none?.cause?.contains(state) == true)
    }
}
