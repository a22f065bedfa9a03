import Foundation

/// Groups of bars as an SVG picture, on a logarithmic axis: what is compared here differs by
/// factors. Each bar has its spread and its figure.
package struct SVGChart: Sendable {
    package struct Bar: Sendable {
        package var value: Double
        package var low: Double
        package var high: Double

        package init(_ summary: Summary) {
            (value, low, high) = (summary.median, summary.minimum, summary.maximum)
        }
    }

    package let title: String
    package let unit: String
    package let series: [String]
    private var groups: [(name: String, bars: [Bar?])] = []

    package init(title: String, unit: String, series: [String]) {
        precondition(!series.isEmpty && series.count <= Self.colours.count, "a colour for each")
        self.title = title
        self.unit = unit
        self.series = series
    }

    /// - Parameter bars: one for each series; nil where there is nothing, as for what could not be
    /// measured.
    package mutating func add(_ name: String, _ bars: [Bar?]) {
        precondition(bars.count == series.count, "a group has a place for each series")
        groups.append((name, bars.map { bar in bar.flatMap { $0.value > 0 ? $0 : nil } }))
    }

    // Distinguishable for the colour-blind (Okabe and Ito), the first one for what all else is
    // compared to.
    private static let colours = ["#999999", "#0072B2", "#D55E00", "#E69F00", "#CC79A7", "#009E73"]
    private static let barWidth = 26.0
    private static let groupGap = 28.0
    private static let plotHeight = 260.0
    private static let (left, top) = (64.0, 64.0)

    private var groupWidth: Double { Double(series.count) * Self.barWidth }
    private var width: Double {
        max(480, Self.left + Double(groups.count) * (groupWidth + Self.groupGap) + 20)
    }

    /// Powers of ten around all figures.
    private var decades: (low: Int, high: Int) {
        let bars = groups.flatMap(\.bars).compactMap { $0 }
        let low = bars.map { $0.low > 0 ? $0.low : $0.value }.min() ?? 1
        let high = bars.map { max($0.high, $0.value) }.max() ?? 10
        let bottom = Self.exponent(low).rounded(.down)
        return (Int(bottom), max(Int(bottom) + 1, Int(Self.exponent(high).rounded(.up))))
    }

    private static func exponent(_ value: Double) -> Double { log10(value) }

    package var text: String {
        let (low, high) = decades
        func y(_ value: Double) -> Double {
            let share = (Self.exponent(value) - Double(low)) / Double(high - low)
            return Self.top + Self.plotHeight * (1 - min(1, max(0, share)))
        }
        var lines = [
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"\(Self.short(width))\" height=\"390\" "
                + "font-family=\"sans-serif\" font-size=\"11\">",
            "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>",
            Self.label(Self.left, 20, title, anchor: "start", size: 14),
        ]
        for (index, name) in series.enumerated() {
            let x = Self.left + Double(index) * 120
            lines.append(Self.box(x, 32, 12, 12, Self.colours[index]))
            lines.append(Self.label(x + 16, 42, name, anchor: "start"))
        }
        for power in low...high {
            let value = Self.power(power)
            lines.append(
                "<line x1=\"\(Self.short(Self.left))\" x2=\"\(Self.short(width - 10))\" "
                    + "y1=\"\(Self.short(y(value)))\" y2=\"\(Self.short(y(value)))\" stroke=\"#ddd\"/>"
            )
            lines.append(
                Self.label(
                    Self.left - 6, y(value) + 4,
                    Format.number(value, decimals: max(0, -power)) + " " + unit, anchor: "end"))
        }
        for (index, group) in groups.enumerated() {
            let x = Self.left + Self.groupGap / 2 + Double(index) * (groupWidth + Self.groupGap)
            lines += bars(of: group.bars, x, y)
            lines.append(
                Self.label(x + groupWidth / 2, Self.top + Self.plotHeight + 18, group.name))
        }
        return (lines + ["</svg>"]).joined(separator: "\n") + "\n"
    }

    private func bars(of bars: [Bar?], _ x: Double, _ y: (Double) -> Double) -> [String] {
        let floor = Self.top + Self.plotHeight
        return bars.enumerated().flatMap { index, bar -> [String] in
            guard let bar else { return [] }
            let left = x + Double(index) * Self.barWidth
            let middle = left + Self.barWidth / 2
            let top = y(bar.value)
            var lines = [
                Self.box(left + 2, top, Self.barWidth - 4, floor - top, Self.colours[index]),
                Self.label(
                    middle, min(top, y(bar.high)) - 4,
                    Format.number(bar.value, decimals: bar.value < 100 ? 1 : 0), size: 9),
            ]
            if bar.high > bar.low, bar.low > 0 {
                lines.append(
                    "<line x1=\"\(Self.short(middle))\" x2=\"\(Self.short(middle))\" "
                        + "y1=\"\(Self.short(y(bar.low)))\" y2=\"\(Self.short(y(bar.high)))\" "
                        + "stroke=\"black\"/>")
            }
            return lines
        }
    }

    private static func box(
        _ x: Double, _ y: Double, _ width: Double, _ height: Double, _ colour: String
    ) -> String {
        "<rect x=\"\(short(x))\" y=\"\(short(y))\" width=\"\(short(width))\" "
            + "height=\"\(short(max(0, height)))\" fill=\"\(colour)\"/>"
    }

    private static func label(
        _ x: Double, _ y: Double, _ text: String, anchor: String = "middle", size: Int = 11
    ) -> String {
        let safe = text.replacing("&", with: "&amp;").replacing("<", with: "&lt;")
            .replacing(">", with: "&gt;")
        return "<text x=\"\(short(x))\" y=\"\(short(y))\" text-anchor=\"\(anchor)\" "
            + "font-size=\"\(size)\">\(safe)</text>"
    }

    private static func short(_ value: Double) -> String {
        Format.number(value, decimals: 1).replacing(",", with: "")
    }

    private static func power(_ exponent: Int) -> Double {
        (0..<abs(exponent)).reduce(1) { value, _ in exponent < 0 ? value / 10 : value * 10 }
    }
}
