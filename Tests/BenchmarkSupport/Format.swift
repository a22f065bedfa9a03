import Foundation

/// Numbers as the documents have them.
package enum Format {
    /// With a fixed number of decimals and commas between thousands; `-` for what is no number.
    package static func number(_ value: Double, decimals: Int = 1) -> String {
        guard value.isFinite else { return "-" }
        let text = String(format: "%.\(decimals)f", abs(value))
        let parts = text.split(separator: ".", omittingEmptySubsequences: false)
        var whole = ""
        for (index, digit) in (parts.first ?? "").enumerated() {
            let left = (parts.first?.count ?? 0) - index
            if index > 0, left % 3 == 0 { whole += "," }
            whole.append(digit)
        }
        let isZero = !text.contains { $0 != "0" && $0 != "." }
        return (value < 0 && !isZero ? "-" : "")
            + ([whole] + parts.dropFirst().map(String.init))
            .joined(separator: ".")
    }

    /// A share in whole percent.
    package static func percent(_ share: Double) -> String {
        share.isFinite ? "\(Int((share * 100).rounded())) %" : "-"
    }
}
