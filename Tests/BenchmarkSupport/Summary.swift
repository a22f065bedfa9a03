/// Some figures of one kind, in order. Percentiles are those of the nearest rank: always a figure
/// that was seen.
package struct Summary: Hashable, Sendable {
    package let sorted: [Double]

    /// What is no number is left out.
    package init(_ values: [Double]) { sorted = values.filter { !$0.isNaN }.sorted() }

    package var count: Int { sorted.count }
    package var minimum: Double { sorted.first ?? .nan }
    package var maximum: Double { sorted.last ?? .nan }

    /// The smallest figure that at least this share of all figures do not exceed.
    package func percentile(_ share: Double) -> Double {
        precondition(share > 0 && share <= 1, "a percentile is a share of the figures")
        guard !sorted.isEmpty else { return .nan }
        let rank = (Double(sorted.count) * share).rounded(.up)
        return sorted[min(sorted.count, max(1, Int(rank))) - 1]
    }

    /// The middle; of an even number of figures the mean of the two in the middle.
    package var median: Double {
        guard !sorted.isEmpty else { return .nan }
        let middle = sorted.count / 2
        return sorted.count % 2 == 1
            ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
    }

    /// `median (minimum to maximum)`; the median alone of a single figure, `-` without any.
    package func text(decimals: Int = 1) -> String {
        guard !sorted.isEmpty else { return "-" }
        let middle = Format.number(median, decimals: decimals)
        guard count > 1 else { return middle }
        let least = Format.number(minimum, decimals: decimals)
        let most = Format.number(maximum, decimals: decimals)
        return "\(middle) (\(least) to \(most))"
    }
}
