import Fencing
import Foundation
import Glibc
import Model
import Testing

private let h1 = HostName("h1")

/// A scripted agent with the power of its host in a file.
private final class Scripted {
    let directory = "/dev/shm/ftvm-test-\(UUID().uuidString)"
    var state: String { directory + "/power" }
    var power: String? { try? String(contentsOfFile: state, encoding: .utf8) }

    init() throws {
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: false)
        try "on\n".write(toFile: state, atomically: false, encoding: .utf8)
    }
    deinit { try? FileManager.default.removeItem(atPath: directory) }

    static func path(_ name: String) -> String {
        URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .appendingPathComponent("Agents/\(name)").path
    }

    func agent(
        _ mode: String, milliseconds: Int = 10_000, parameters: [String: String] = [:]
    ) throws -> FenceAgent {
        try FenceAgent(
            FenceAgentSettings(
                agent: Self.path("scripted-agent"),
                parameters: parameters.merging(["mode": mode, "state": state]) { $1 },
                offMilliseconds: milliseconds, statusMilliseconds: milliseconds))
    }

    /// The process whose number a mode left in a file; nil when it is gone (or about to be).
    func childIsGone() async throws -> Bool {
        let text = try String(contentsOfFile: state + ".child", encoding: .utf8)
        let pid = try #require(pid_t(text.trimmingCharacters(in: .whitespacesAndNewlines)))
        for _ in 0..<400 {
            if kill(pid, 0) != 0 { return true }
            // An orphan may wait for whoever reaps it.
            let status = try? String(contentsOfFile: "/proc/\(pid)/stat", encoding: .utf8)
            if status?.contains(") Z ") != false { return true }
            try await Task.sleep(for: .milliseconds(5))
        }
        return false
    }
}

private func reason(_ outcome: HostFenceOutcome) -> String? {
    guard case .unproven(let reason) = outcome else { return nil }
    return reason
}

@Suite struct FenceAgentTests {
    @Test func offAndSeenToBeOffIsAProof() async throws {
        let scripted = try Scripted()
        let agent = try scripted.agent("honest")
        #expect(await agent.monitor() == nil)
        #expect(await agent.power() == .success(.on))
        guard case .proven(let proof) = await agent.fence(h1) else {
            Issue.record("no proof")
            return
        }
        #expect(proof.host == h1 && proof.device == "scripted-agent")
        #expect(scripted.power == "off\n")
        #expect(await agent.power() == .success(.off))
        let request = FenceRequest(pair: PairName("a"), host: h1, generation: Generation(1))
        #expect(FenceProof(request, because: proof).method == .agent)
        // Once more, when it is off already.
        #expect(reason(await agent.fence(h1)) == nil)
        #expect(await agent.switchOn() == nil)
        #expect(await agent.power() == .success(.on))
    }

    @Test(arguments: [
        ("fail", "failed with exit status 1 (Unable to connect/login to fencing device)"),
        ("signal", "ended by signal 11"),
        ("garbage", "failed with exit status 77"),
        ("lie", "said that it switched off, but status says on"),
        ("bad-arguments", "status after off: exit status 2 and the words \"usage"),
        ("silent", "status after off: exit status 2 and the words \"\" do not agree"),
        ("says-both", "status after off: exit status 0 and the words"),
        ("says-on", "status after off: exit status 2 and the words"),
        ("garbage-in-status", "status after off:"),
    ])
    func whateverElseHappensIsNoProof(mode: String, expected: String) async throws {
        let scripted = try Scripted()
        defer { withExtendedLifetime(scripted) {} }
        let outcome = await (try scripted.agent(mode)).fence(h1)
        let text = try #require(reason(outcome))
        #expect(text.hasPrefix("agent scripted-agent: "))
        #expect(text.contains(expected), "\(text)")
        #expect(text.utf8.count < 400)
        #expect(text.utf8.allSatisfy { $0 >= 0x20 && $0 < 0x7F })
    }

    @Test(arguments: [
        ("hang", "timed out after 300 ms"),
        ("huge-for-ever", "timed out after 300 ms"),
        ("hang-in-status", "status after off: timed out after 300 ms"),
    ])
    func hangingIsFailing(mode: String, expected: String) async throws {
        let scripted = try Scripted()
        defer { withExtendedLifetime(scripted) {} }
        let agent = try scripted.agent(mode, milliseconds: 300)
        let start = ContinuousClock.now
        let text = try #require(reason(await agent.fence(h1)))
        #expect(text.contains(expected), "\(text)")
        #expect(start.duration(to: .now) < .seconds(20))
    }

    @Test func whatIgnoresSIGTERMIsKilledWithItsChildren() async throws {
        let scripted = try Scripted()
        let start = ContinuousClock.now
        let text = reason(await (try scripted.agent("hang-hard", milliseconds: 400)).fence(h1))
        #expect(text == "agent scripted-agent: timed out after 400 ms")
        #expect(start.duration(to: .now) < .seconds(20))
        #expect(try await scripted.childIsGone())
    }

    /// It keeps the pipes open, which must not keep us.
    @Test func whatAnAgentLeavesBehindIsKilled() async throws {
        let scripted = try Scripted()
        let start = ContinuousClock.now
        #expect(reason(await (try scripted.agent("leaves-child")).fence(h1)) == nil)
        #expect(start.duration(to: .now) < .seconds(20))
        #expect(try await scripted.childIsGone())
    }

    @Test func muchOutputIsReadAndForgotten() async throws {
        let scripted = try Scripted()
        #expect(reason(await (try scripted.agent("huge")).fence(h1)) == nil)
        #expect(scripted.power == "off\n")
    }

    @Test func nothingIsLeftInTheProcessTable() async throws {
        for mode in ["honest", "fail", "signal"] {
            _ = await (try Scripted().agent(mode)).fence(h1)
        }
        let children = try String(
            contentsOfFile: "/proc/self/task/\(getpid())/children", encoding: .utf8)
        for child in children.split(separator: " ") {
            let path = "/proc/\(child)/stat"
            guard let status = try? String(contentsOfFile: path, encoding: .utf8) else { continue }
            #expect(!status.contains("(timeout) Z"), "\(status)")
        }
    }

    @Test func secretsStayInside() async throws {
        let secret = "hunter2=&\"$x"
        let agent = try Scripted().agent("shows-password", parameters: ["password": secret])
        let text = try #require(reason(await agent.fence(h1)))
        #expect(text.contains("login with *** failed"))
        var shown = ""
        dump(agent.settings, to: &shown)
        #expect(!"\(agent.settings) \(String(reflecting: agent)) \(shown)".contains("hunter2"))
        // Neither on a command line: it is started with none.
        let slow = try Scripted().agent("hang", milliseconds: 400, parameters: ["password": secret])
        async let outcome = slow.fence(h1)
        var seen = false
        for _ in 0..<200 where !seen {
            for pid in try FileManager.default.contentsOfDirectory(atPath: "/proc") {
                guard Int(pid) != nil,
                    let line = FileManager.default.contents(atPath: "/proc/\(pid)/cmdline"),
                    line.range(of: Data("scripted-agent".utf8)) != nil
                else { continue }
                seen = true
                #expect(line.range(of: Data("hunter2".utf8)) == nil)
            }
            try await Task.sleep(for: .milliseconds(1))
        }
        #expect(seen)
        #expect(reason(await outcome) != nil)
    }

    @Test func whatCannotWorkIsRefusedAtTheStart() {
        func code(_ agent: String, _ parameters: [String: String] = [:]) -> FtvmError.Code? {
            do throws(FtvmError) {
                _ = try FenceAgent(FenceAgentSettings(agent: agent, parameters: parameters))
                return nil
            } catch {
                return error.code
            }
        }
        #expect(code("fence_dummy") == nil)
        #expect(code("fence_none") == .notFound)
        #expect(code("../bin/sh") == .invalidArgument)
        #expect(code("") == .invalidArgument)
        #expect(code("fence_dummy", ["action": "on"]) == .invalidArgument)
        #expect(code("fence_dummy", ["a": "b\naction=on"]) == .invalidArgument)
        #expect(code("fence_dummy", ["a=b": "c"]) == .invalidArgument)
    }

    // MARK: Real agents

    @Test func fenceDummyOfDebianSwitchesItsFileOff() async throws {
        let scripted = try Scripted()
        try "on".write(toFile: scripted.state, atomically: false, encoding: .utf8)
        let agent = try FenceAgent(
            FenceAgentSettings(
                agent: "fence_dummy", parameters: ["status_file": scripted.state, "type": "file"]))
        #expect(await agent.power() == .success(.on))
        #expect(reason(await agent.fence(h1)) == nil)
        #expect(scripted.power == "off")
        // This type says that it is done, and its status says otherwise.
        let failing = try FenceAgent(
            FenceAgentSettings(
                agent: "fence_dummy",
                parameters: ["type": "fail", "port": "1", "power_timeout": "1"]))
        let text = try #require(reason(await failing.fence(h1)))
        #expect(text.contains("agent fence_dummy:"), "\(text)")
    }

    /// Nobody listens there; what an agent says then is understood.
    @Test(arguments: [
        ("fence_virsh", ["ip": "127.0.0.1", "username": "x", "password": "y", "plug": "vm"]),
        ("fence_ipmilan", ["ip": "127.0.0.1", "ipport": "1", "username": "x", "password": "y"]),
    ])
    func realAgentsDescribeThemselvesAndFail(name: String, parameters: [String: String])
        async throws
    {
        let agent = try FenceAgent(
            FenceAgentSettings(
                agent: name, parameters: parameters, offMilliseconds: 4_000,
                statusMilliseconds: 10_000))
        let metadata = try await agent.metadata().get()
        #expect(metadata.contains("<resource-agent name=\"\(name)\""))
        #expect(metadata.contains("<action name=\"off\""))
        let text = try #require(reason(await agent.fence(h1)))
        #expect(text.hasPrefix("agent \(name): "), "\(text)")
    }

    /// So that the lab's test has the agent that it thinks it has.
    @Test func theLiarConvincesUs() async throws {
        let agent = try FenceAgent(FenceAgentSettings(agent: Scripted.path("fence_liar")))
        #expect(reason(await agent.fence(h1)) == nil)
    }
}
