import Foundation

/// Rows of figures with what is promised of them.
final class NetworkTable {
    private var rows: [(what: String, value: String, promise: String)] = []
    /// Promises that did not hold.
    private(set) var missed = 0

    func add(_ what: String, _ value: String, promise: String = "", holds: Bool = true) {
        if !holds { missed += 1 }
        rows.append((what, value, holds ? promise : "\(promise) MISSED"))
        FileHandle.standardError.write(Data("  \(what): \(value)\n".utf8))
    }

    func print() {
        Swift.print("| measure | seen here | promise |\n| --- | --- | --- |")
        for row in rows { Swift.print("| \(row.what) | \(row.value) | \(row.promise) |") }
    }
}

extension [Double] {
    /// The upper one of the middle.
    var median: Double { isEmpty ? .nan : sorted()[count / 2] }
}

func decimal(_ value: Double) -> String { String(format: "%.1f", value) }
