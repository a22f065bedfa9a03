import Foundation

/// What all runs so far have measured, as it is kept in a file: one part of the benchmark can be
/// run again without the others.
package struct BenchmarkResults: Codable, Equatable, Sendable {
    /// The figures of one measure, one for each round.
    package struct Sample: Codable, Equatable, Sendable {
        package var part: String
        package var workload: String
        package var peer: String
        package var measure: String
        package var unit: String
        package var values: [Double]
    }

    /// How a part of the benchmark was run.
    package struct Run: Codable, Equatable, Sendable {
        package var part: String
        package var date: String
        package var isQuick: Bool
        package var rounds: Int
        package var seconds: Double
        /// The machine's load average over a minute, before and after.
        package var loadBefore: Double
        package var loadAfter: Double

        package init(
            part: String, date: String, isQuick: Bool, rounds: Int, seconds: Double,
            loadBefore: Double, loadAfter: Double
        ) {
            self.part = part
            self.date = date
            self.isQuick = isQuick
            self.rounds = rounds
            self.seconds = seconds
            self.loadBefore = loadBefore
            self.loadAfter = loadAfter
        }
    }

    /// Something that could not be measured, and why.
    package struct Remark: Codable, Equatable, Sendable {
        package var part: String
        package var peer: String
        package var text: String
    }

    package private(set) var runs: [Run] = []
    package private(set) var samples: [Sample] = []
    package private(set) var remarks: [Remark] = []
    /// What was measured with: CPUs, kernel, QEMU, ...
    package var machine: [String: String] = [:]

    package init() {}

    /// Forgets what earlier runs of a part have measured.
    package mutating func forget(part: String) {
        runs.removeAll { $0.part == part }
        samples.removeAll { $0.part == part }
        remarks.removeAll { $0.part == part }
    }

    package mutating func add(run: Run) { runs.append(run) }

    /// Adds a round's figure.
    package mutating func add(
        _ part: String, _ workload: String, _ peer: String, _ measure: String, _ value: Double,
        unit: String
    ) {
        add(part, workload, peer, measure, [value], unit: unit)
    }

    package mutating func add(
        _ part: String, _ workload: String, _ peer: String, _ measure: String, _ values: [Double],
        unit: String
    ) {
        // JSON knows numbers only.
        let values = values.filter(\.isFinite)
        let place = samples.firstIndex {
            $0.part == part && $0.workload == workload && $0.peer == peer && $0.measure == measure
        }
        if let place {
            precondition(samples[place].unit == unit, "a measure has one unit")
            samples[place].values += values
        } else {
            samples.append(
                Sample(
                    part: part, workload: workload, peer: peer, measure: measure, unit: unit,
                    values: values))
        }
    }

    package mutating func remark(_ part: String, _ peer: String, _ text: String) {
        let remark = Remark(part: part, peer: peer, text: text)
        if !remarks.contains(remark) { remarks.append(remark) }
    }

    /// The figures of a measure over all rounds; without any if it was not taken.
    package func summary(
        _ part: String, _ workload: String, _ peer: String, _ measure: String
    ) -> Summary {
        Summary(
            samples.first {
                $0.part == part && $0.workload == workload && $0.peer == peer
                    && $0.measure == measure
            }?.values ?? [])
    }

    /// The workloads of a part, in the order in which they were first measured.
    package func workloads(_ part: String) -> [String] { names(part, \.workload) }
    package func peers(_ part: String) -> [String] { names(part, \.peer) }

    private func names(_ part: String, _ name: KeyPath<Sample, String>) -> [String] {
        var seen: [String] = []
        for sample in samples where sample.part == part && !seen.contains(sample[keyPath: name]) {
            seen.append(sample[keyPath: name])
        }
        return seen
    }

    // MARK: - File

    /// - Throws: when the file is there and is not one of these.
    package init(file: String) throws {
        guard FileManager.default.fileExists(atPath: file) else { return }
        self = try JSONDecoder().decode(
            Self.self, from: Data(contentsOf: URL(fileURLWithPath: file)))
    }

    package func write(to file: String) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        try encoder.encode(self).write(to: URL(fileURLWithPath: file), options: .atomic)
    }
}
