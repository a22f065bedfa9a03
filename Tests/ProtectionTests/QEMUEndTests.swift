import Foundation
import Glibc
import Hypervisor
import Protection
import Testing

/// Telling that a process can do no more harm.
@Suite struct QEMUEndTests {
    private func start(_ command: [String]) throws -> (Process, QEMUProcess) {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: command[0])
        process.arguments = Array(command.dropFirst())
        try process.run()
        return (process, try #require(QEMUProcess(processID: process.processIdentifier)))
    }

    @Test func aKilledProcessIsHarmlessSoon() throws {
        let (process, target) = try start(["/bin/sleep", "60"])
        #expect(!target.isEnding)
        #expect(!target.waitUntilHarmless(milliseconds: 20), "it lives")
        kill(process.processIdentifier, SIGKILL)
        #expect(target.waitUntilHarmless(milliseconds: 5_000))
        process.waitUntilExit()
        #expect(target.isEnding, "gone is harmless too")
    }

    /// A stopped one may go on.
    @Test func aStoppedProcessIsNotHarmless() throws {
        let (process, target) = try start(["/bin/sleep", "60"])
        kill(process.processIdentifier, SIGSTOP)
        #expect(!target.waitUntilHarmless(milliseconds: 50))
        kill(process.processIdentifier, SIGKILL)
        #expect(target.waitUntilHarmless(milliseconds: 5_000))
        process.waitUntilExit()
    }

    @Test func endingThreadsAreKnownByTheirFlags() {
        let fields = "1 1 1 0 -1 "
        #expect(ThreadState("7 (CPU 0/TCG) S \(fields)4194304 0 0")?.isEnding == false)
        #expect(ThreadState("7 (a) b) R \(fields)4194308 0 0")?.isEnding == true)
        #expect(ThreadState("7 (q) Z \(fields)0 0 0")?.isEnding == true)
        #expect(ThreadState("") == nil)
        #expect(ThreadState("7 (q) Z 1") == nil)
        let whole = "7 (q (x) S \(fields)4194560 3 0 0 0 1 2 0 0 20 0 1 0 917 10 200 18446744073"
        #expect(ThreadState(whole)?.startTicks == 917)
    }

    @Test func directInputAndOutputIsSeen() throws {
        #expect(!QEMUProcess.isDirect(fdinfo: "pos:\t0\nflags:\t0100002\nmnt_id:\t25\n"))
        #expect(QEMUProcess.isDirect(fdinfo: "pos:\t0\nflags:\t0140002\nmnt_id:\t25\n"))
        #expect(QEMUProcess.isDirect(fdinfo: "nothing that is known"))
        let file = FileManager.default.temporaryDirectory.appendingPathComponent(
            "ftvm-direct-\(UUID().uuidString)")
        try Data(count: 4_096).write(to: file)
        defer { try? FileManager.default.removeItem(at: file) }
        let (plain, without) = try start(["/bin/sleep", "60"])
        defer { kill(plain.processIdentifier, SIGKILL) }
        #expect(!without.mayHaveDirectIO)
        // It opens its input with the flag, and then waits for somebody to open the pipe.
        let pipe = file.path + ".pipe"
        try #require(mkfifo(pipe, 0o600) == 0)
        defer { unlink(pipe) }
        let (direct, with) = try start([
            "/bin/dd", "if=\(file.path)", "iflag=direct", "bs=4096", "of=\(pipe)",
        ])
        defer { kill(direct.processIdentifier, SIGKILL) }
        let isSeen = (0..<500).contains { _ in
            usleep(10_000)
            return with.mayHaveDirectIO
        }
        #expect(isSeen)
    }
}
