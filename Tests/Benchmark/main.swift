import Foundation
import GuestSupport
import Model

// Scripts/bench: the promises of this version, measured on a real QEMU with the test guest. Prints a table.
//
//   ftvm-bench                  everything
//   ftvm-bench --first-touch    the fault path alone
//   ftvm-bench --pauses         commits at different numbers of dirty pages, step by step
//   ftvm-bench --touch          the child process whose first touches are timed

if CommandLine.arguments.dropFirst().first == "--touch" {
    TouchChild.run()
    exit(0)
}

do {
    if CommandLine.arguments.dropFirst().first == "--pauses" {
        try PauseBenchmark().run()
        exit(0)
    }
    let report = BenchmarkReport()
    try FirstTouchBenchmark().run(report)
    if CommandLine.arguments.dropFirst().first != "--first-touch" {
        try EpochBenchmark().run(report)
    }
    report.print()
} catch {
    FileHandle.standardError.write(Data("ftvm-bench: \(error)\n".utf8))
    exit(1)
}
