import Glibc
import Injection

// ftvm-inject PID OPERATION...   (started by ftvmd; see Injection/Operations.swift)
//
// Prints one number a line, the result of each operation, then `done`; or `error STEP` and exits 1, with
// the operations before it done. A process of its own, so that it brings to its end what it has begun in a
// QEMU even when ftvmd is killed in the middle.

signal(SIGPIPE, SIG_IGN)

guard CommandLine.arguments.count >= 3, let pid = pid_t(CommandLine.arguments[1]) else {
    print("error usage: ftvm-inject PID OPERATION...")
    exit(2)
}
var operations: [InjectionOperation] = []
for word in CommandLine.arguments.dropFirst(2) {
    guard let operation = InjectionOperation(word: word) else {
        print("error not an operation: \(word)")
        exit(2)
    }
    operations.append(operation)
}

do {
    var injector = try Injector(pid: pid)
    defer { injector.finish() }
    for operation in operations { print(try injector.perform(operation)) }
} catch {
    print("error \(error)")
    exit(1)
}
print("done")
