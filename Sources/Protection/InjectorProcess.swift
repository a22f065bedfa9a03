import CLinux
import Glibc
import Hypervisor
import Injection
import Model

/// Runs `ftvm-inject`, the process that makes a QEMU execute system calls (see `Injection`).
package struct InjectorProcess: Sendable {
    /// The executable's path.
    package let path: String
    /// A session takes 3 ms; one that takes this long is hung.
    private static let timeoutMilliseconds: UInt64 = 10_000

    package init(path: String) { self.path = path }

    /// The injector beside our own executable.
    package static func besideThisExecutable() -> InjectorProcess {
        var buffer = [CChar](repeating: 0, count: 4096)
        let length = readlink("/proc/self/exe", &buffer, buffer.count - 1)
        let own = String(
            decoding: buffer[..<max(0, length)].map { UInt8(bitPattern: $0) }, as: UTF8.self)
        let directory = own.lastIndex(of: "/").map { String(own[..<$0]) } ?? "/usr/libexec"
        return InjectorProcess(path: directory + "/ftvm-inject")
    }

    /// Carries the operations out in the process, in order. Gives one number for each: the descriptor's
    /// number there, the address, or 0. Descriptors in operations are this process's.
    /// - Throws: `.unavailable` when the process cannot be entered; operations before the failed one are done.
    package func run(in process: QEMUProcess, _ operations: [InjectionOperation]) throws -> [UInt64]
    {
        var descriptors: [Int32] = []
        let words = operations.map { operation in
            renumbered(operation, into: &descriptors).description
        }
        var output: [Int32] = [-1, -1]
        guard ftvm_pipe(&output) == 0 else {
            throw FtvmError(
                .resourceExhausted, "cannot make a pipe", cause: String(cString: strerror(errno)))
        }
        defer { close(output[0]) }
        let arguments = [path, String(process.processID)] + words
        var pointers: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
        defer { for pointer in pointers { free(pointer) } }
        let child = ftvm_spawn(path, &pointers, descriptors, descriptors.count, output[1])
        close(output[1])
        guard child > 0 else {
            throw FtvmError(
                .unavailable, "cannot start the injector \(path)",
                cause: String(cString: strerror(-child)),
                advice: "install ftvm-inject beside ftvmd, or set injector_path")
        }
        let text = readAll(output[0])
        waitForEnd(of: child)
        return try results(of: operations, in: process, text: text)
    }

    private func results(
        of operations: [InjectionOperation], in process: QEMUProcess, text: String
    ) throws -> [UInt64] {
        let lines = text.split(separator: "\n")
        let numbers = lines.compactMap { UInt64($0) }
        guard lines.last == "done", numbers.count == operations.count else {
            let said = lines.last { $0.hasPrefix("error") }.map(String.init)
            throw FtvmError(
                .unavailable, "cannot act in QEMU (process \(process.processID))",
                cause: said ?? "the injector ended without an answer: \(text)",
                advice:
                    "ftvmd needs root and CAP_SYS_PTRACE; no debugger may be attached to that QEMU")
        }
        return numbers
    }

    /// The operation with its descriptor's number in the injector: 3 and up, in order.
    private func renumbered(
        _ operation: InjectionOperation, into descriptors: inout [Int32]
    ) -> InjectionOperation {
        func passed(_ descriptor: Int32) -> Int32 {
            if let known = descriptors.firstIndex(of: descriptor) { return Int32(known) + 3 }
            descriptors.append(descriptor)
            return Int32(descriptors.count) + 2
        }
        switch operation {
        case .userfaultfd(let device): return .userfaultfd(device: passed(device))
        case .install(let descriptor): return .install(descriptor: passed(descriptor))
        case .replace(let remote, let descriptor):
            return .replace(remote: remote, descriptor: passed(descriptor))
        case .mapFile(let descriptor, let address, let length, let writable, let offset):
            return .mapFile(
                descriptor: passed(descriptor), address: address, length: length,
                writable: writable, offset: offset)
        case .mapAnonymous, .move, .unmap, .advise, .close: return operation
        }
    }

    private func readAll(_ descriptor: Int32) -> String {
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 1024)
        let deadline = MonotonicClock.nowNanoseconds() + Self.timeoutMilliseconds * 1_000_000
        while MonotonicClock.nowNanoseconds() < deadline {
            var waiting = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            guard poll(&waiting, 1, 100) > 0 else { continue }
            let length = read(descriptor, &buffer, buffer.count)
            if length < 0 && errno == EINTR { continue }
            if length <= 0 { break }
            bytes += buffer[..<length]
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    private func waitForEnd(of child: pid_t) {
        var status: Int32 = 0
        while waitpid(child, &status, 0) < 0 && errno == EINTR {}
    }
}
