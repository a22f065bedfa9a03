import CLinux
import Foundation
import Glibc
import GuestSupport
import Hypervisor
import Injection
import Model
import Protection
import Testing

@Suite struct InjectionTests {
    @Test(arguments: [
        InjectionOperation.userfaultfd(device: 3),
        .mapFile(
            descriptor: 4, address: 0x7f00_0000_0000, length: 4096, writable: false, offset: 8192),
        .mapAnonymous(length: 1 << 30), .move(from: 1, to: 2, length: 3),
        .unmap(address: 5, length: 6), .advise(address: 7, length: 8, advice: 14),
        .install(descriptor: 9), .close(remote: 10),
    ])
    func anOperationSurvivesItsWord(operation: InjectionOperation) {
        #expect(InjectionOperation(word: operation.description) == operation)
    }

    @Test(arguments: [
        "", "close", "close=", "close=x", "close=1,2", "map-file=1,2,3,4,5", "map-file=1,2,3",
        "userfaultfd=99999999999", "jump=1",
    ])
    func whatIsNoOperationIsRefused(word: String) {
        #expect(InjectionOperation(word: word) == nil)
    }

    /// A process that is in the middle of a system call of its own does not notice: it goes on with that call.
    @Test(arguments: [
        // A timer (restarted by the kernel's own means), and a read that waits for input.
        ["/bin/sh", "-c", "sleep 4 && echo slept"],
        ["/bin/sh", "-c", "read line && echo \"got $line\""],
    ])
    func aWaitingProcessGoesOnAsIfNothingHadBeen(command: [String]) throws {
        let process = Process()
        let input = Pipe()
        let output = Pipe()
        process.executableURL = URL(fileURLWithPath: command[0])
        process.arguments = Array(command.dropFirst())
        process.standardInput = input
        process.standardOutput = output
        try process.run()
        usleep(200_000)
        let target = try #require(QEMUProcess(processID: process.processIdentifier))
        let descriptor = open("/dev/null", O_RDWR | O_CLOEXEC)
        defer { close(descriptor) }
        let before = target.descriptors(linkedTo: "").count
        for _ in 0..<10 {
            let results = try GuestQEMU.injector.run(
                in: target, [.mapAnonymous(length: 4 << 20), .install(descriptor: descriptor)])
            #expect(results[0] % (2 << 20) == 0)
            _ = try GuestQEMU.injector.run(
                in: target,
                [.unmap(address: results[0], length: 4 << 20), .close(remote: Int32(results[1]))])
        }
        #expect(target.descriptors(linkedTo: "").count == before, "something was left behind")
        input.fileHandleForWriting.write(Data("input\n".utf8))
        let text = String(
            decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        #expect(process.terminationStatus == 0)
        #expect(["slept\n", "got input\n"].contains(text))
    }

    @Test func aProcessThatIsGoneIsAClearError() throws {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/bin/sleep")
        process.arguments = ["100"]
        try process.run()
        let target = try #require(QEMUProcess(processID: process.processIdentifier))
        try target.kill()
        process.waitUntilExit()
        #expect(!target.isRunning)
        let error = #expect(throws: FtvmError.self) {
            try GuestQEMU.injector.run(in: target, [.mapAnonymous(length: 4096)])
        }
        #expect(error?.code == .unavailable)
    }
}
