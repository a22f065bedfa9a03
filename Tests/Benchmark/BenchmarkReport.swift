import Foundation

/// Collects rows and prints them as a Markdown table.
final class BenchmarkReport {
    private var rows: [(what: String, value: String, promise: String)] = []

    func add(_ what: String, _ value: String, promise: String = "") {
        rows.append((what, value, promise))
        FileHandle.standardError.write(Data("  \(what): \(value)\n".utf8))
    }

    func print() {
        Swift.print("| measure | seen here | promise |\n| --- | --- | --- |")
        for row in rows { Swift.print("| \(row.what) | \(row.value) | \(row.promise) |") }
    }
}

/// Median and 99th percentile of some figures.
struct Distribution {
    let sorted: [Double]

    init(_ values: [Double]) { sorted = values.sorted() }

    var median: Double { sorted.isEmpty ? .nan : sorted[sorted.count / 2] }
    var p99: Double {
        sorted.isEmpty ? .nan : sorted[min(sorted.count - 1, sorted.count * 99 / 100)]
    }

    /// `median (p99)` with one decimal.
    func text(_ unit: String) -> String {
        String(format: "%.1f %@ (p99 %.1f, %d runs)", median, unit, p99, sorted.count)
    }
}
