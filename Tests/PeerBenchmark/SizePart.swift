import BenchmarkSupport
import Foundation
import Model
import Protection

/// ftvm's pause at about 1,000 dirty pages an epoch of its ordinary 50 ms, against the guest's
/// memory, of which a quarter is in use.
struct SizePart {
    static let part = "sizes"
    static let rate = 20_000
    let options: Options

    static func sizes(isQuick: Bool) -> [Int] {
        isQuick ? [256, 1_024, 4_096] : [256, 1_024, 4_096, 8_192]
    }

    static func name(_ mebibytes: Int) -> String {
        mebibytes < 1_024 ? "\(mebibytes) MiB" : "\(mebibytes / 1_024) GiB"
    }

    func run(_ results: inout BenchmarkResults) throws {
        for round in 1...options.rounds {
            for size in Self.sizes(isQuick: options.isQuick) {
                say("sizes, round \(round): \(Self.name(size))")
                try measure(size, &results)
            }
        }
    }

    private func measure(_ mebibytes: Int, _ results: inout BenchmarkResults) throws {
        let directory = try BenchDirectory()
        defer { directory.remove() }
        let shape = BenchGuest.Shape(memoryMiB: mebibytes)
        let filled = mebibytes <= 512 ? 16 : mebibytes / 4
        let peer = try Ftvm(
            shape, in: directory.url,
            epochMilliseconds: PairOptions.defaultEpochMaximumMilliseconds,
            fillMiB: filled)
        defer { peer.end() }
        let control = try peer.guest.waitForControl()
        _ = try control.ask("dirty \(Self.rate) 48")
        usleep(1_500_000)
        let window = try Window.watch(peer, control, seconds: options.seconds * 2)
        let figures = peer.driver.figures().figures
        func add(_ measure: String, _ value: Double, _ unit: String) {
            results.add(Self.part, Self.name(mebibytes), Ftvm.name, measure, value, unit: unit)
        }
        add("pause p50", window.pauses.median, "ms")
        add("pause p99", window.pauses.percentile(0.99), "ms")
        // From before `stop` is sent until `cont` is answered.
        add("commit p50", figures.pauseMedianMicroseconds / 1_000, "ms")
        add("commit p99", figures.pauseP99Microseconds / 1_000, "ms")
        add("dirty pages", figures.dirtyPagesMedian, "pages")
        say(
            "  pause \(window.pauses.text()) ms, commit \(Int(figures.pauseMedianMicroseconds)) us, "
                + "\(Int(figures.dirtyPagesMedian)) pages")
    }
}
