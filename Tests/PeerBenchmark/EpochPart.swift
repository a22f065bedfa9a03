import BenchmarkSupport
import Foundation
import Model

/// What an epoch, or a checkpoint, costs the guest: pauses and speed at several rates of dirty
/// pages, with every peer in turn. All are asked for a checkpoint every 100 ms, twice ftvm's
/// ordinary epoch.
struct EpochPart {
    static let part = "epochs"
    static let periodMilliseconds = 100
    static let peers = [
        Unprotected.name, Ftvm.name, Colo.name, MigrationCheckpoints.name,
        MigrationCheckpoints.nameIgnoringShared,
    ]

    struct Workload {
        let name: String
        var rate = 0
        var mebibytes = 16
        var churns = false

        static func dirtier(_ rate: Int, _ mebibytes: Int) -> Workload {
            Workload(
                name: "\(rate / 1_000)k pages/s, \(mebibytes) MiB", rate: rate,
                mebibytes: mebibytes)
        }
    }

    static func workloads(isQuick: Bool) -> [Workload] {
        let idle = Workload(name: "idle")
        let churn = Workload(name: "process churn", churns: true)
        let rates = isQuick ? [5_000, 50_000] : [1_000, 5_000, 20_000, 50_000]
        let small = rates.map { Workload.dirtier($0, 16) }
        let large = (isQuick ? [20_000] : rates).map { Workload.dirtier($0, 256) }
        return [idle] + small + large + [churn]
    }

    let options: Options

    func run(_ results: inout BenchmarkResults) throws {
        for round in 1...options.rounds {
            for name in Self.peers where options.wants(peer: name) {
                say("epochs, round \(round): \(name)")
                do {
                    try measure(name, &results)
                } catch {
                    say("  \(name): \(error)")
                    results.remark(Self.part, name, "\(error)")
                }
            }
        }
    }

    private func make(
        _ name: String, _ directory: URL, _ remark: (String) -> Void
    ) throws -> any Peer {
        let shape = BenchGuest.Shape()
        let period = Self.periodMilliseconds
        return switch name {
        case Ftvm.name: try Ftvm(shape, in: directory, epochMilliseconds: period)
        case Colo.name:
            try Colo.start(
                shape, in: directory, checkpointMilliseconds: period, remark: remark)
        case Unprotected.name: try Unprotected(shape, in: directory)
        default:
            try MigrationCheckpoints(
                shape, in: directory,
                ignoresShared: name == MigrationCheckpoints.nameIgnoringShared,
                checkpointMilliseconds: period)
        }
    }

    private func measure(_ name: String, _ results: inout BenchmarkResults) throws {
        let directory = try BenchDirectory()
        defer { directory.remove() }
        let peer = try make(name, directory.url) { results.remark(Self.part, name, $0) }
        defer { peer.end() }
        do {
            try measure(peer, name, &results)
        } catch {
            guard let colo = peer as? Colo else { throw error }
            throw FtvmError(wrapping: error, "COLO has stopped working: \(colo.account)")
        }
        if let complaints = (peer as? MigrationCheckpoints)?.complaints {
            for complaint in complaints { results.remark(Self.part, name, complaint) }
        }
    }

    private func measure(
        _ peer: any Peer, _ name: String, _ results: inout BenchmarkResults
    ) throws {
        let control = try peer.guest.waitForControl()
        for workload in Self.workloads(isQuick: options.isQuick) {
            _ = try control.ask("dirty \(workload.rate) \(workload.mebibytes)")
            usleep(1_000_000)
            var window: Window
            if workload.churns {
                let seconds = Int(options.seconds.rounded(.up))
                let counted = try Window.count("churn \(seconds)", peer, control)
                window = counted.window
                results.add(
                    Self.part, workload.name, name, "throughput", counted.perSecond, unit: "/s")
            } else {
                window = try Window.watch(peer, control, seconds: options.seconds)
                if workload.rate > 0 {
                    results.add(
                        Self.part, workload.name, name, "throughput", window.writesPerSecond,
                        unit: "/s")
                }
            }
            note(window, workload, peer, name, &results)
        }
    }

    private func note(
        _ window: Window, _ workload: Workload, _ peer: any Peer, _ name: String,
        _ results: inout BenchmarkResults
    ) {
        func add(_ measure: String, _ value: Double, _ unit: String) {
            results.add(Self.part, workload.name, name, measure, value, unit: unit)
        }
        let pauses = window.pauses
        if pauses.count > 0 {
            add("pause p50", pauses.median, "ms")
            add("pause p99", pauses.percentile(0.99), "ms")
            add("pause max", pauses.maximum, "ms")
            add("checkpoints", Double(pauses.count) / options.seconds, "/s")
        }
        add("cores", window.cores, "cores")
        if let ftvm = peer as? Ftvm {
            // Of the last 1,024 commits, some of the last workload's among them.
            add("dirty pages", ftvm.driver.figures().figures.dirtyPagesMedian, "pages")
        }
        say(
            "  \(workload.name): pause \(pauses.text()) p99 \(Format.number(pauses.percentileOrNaN)) "
                + "ms, \(pauses.count) checkpoints, \(Format.number(window.writesPerSecond, decimals: 0)) "
                + "pages/s, \(Format.number(window.cores, decimals: 2)) cores")
    }
}

extension Summary {
    fileprivate var percentileOrNaN: Double { count == 0 ? .nan : percentile(0.99) }
}
