/// Columns of text for a terminal: two blanks between columns, no lines, nothing after the last cell.
///
/// Width is counted in characters. Control characters in a cell (a domain's name may hold them) are
/// shown as `?`, so that data never moves the cursor.
package struct TextTable: Sendable {
    package struct Column: Sendable {
        var title: String
        var alignRight: Bool
        var minimumWidth: Int
        package init(_ title: String, alignRight: Bool = false, minimumWidth: Int = 0) {
            self.title = title
            self.alignRight = alignRight
            self.minimumWidth = minimumWidth
        }
    }

    private let columns: [Column]
    private var rows: [[String]] = []

    package init(_ columns: [Column]) {
        precondition(!columns.isEmpty, "a table has columns")
        self.columns = columns
    }

    /// - Parameter cells: one for each column; nil and "" show as `-`.
    package mutating func add(_ cells: [String?]) {
        precondition(cells.count == columns.count, "one cell for each column")
        rows.append(
            cells.map { cell in
                guard let cell, !cell.isEmpty else { return "-" }
                return TextTable.printable(cell)
            })
    }

    /// The table without a line end; the empty text if it has no rows.
    package func text(header: Bool = true) -> String {
        guard !rows.isEmpty else { return "" }
        let lines = header ? [columns.map(\.title)] + rows : rows
        let widths = columns.indices.map { index in
            lines.reduce(columns[index].minimumWidth) { max($0, $1[index].count) }
        }
        return lines.map { line(of: $0, widths: widths) }.joined(separator: "\n")
    }

    private func line(of cells: [String], widths: [Int]) -> String {
        var text = ""
        for (index, cell) in cells.enumerated() {
            let blanks = String(repeating: " ", count: widths[index] - cell.count)
            text += columns[index].alignRight ? blanks + cell : cell + blanks
            if index < cells.count - 1 { text += "  " }
        }
        while text.last == " " { text.removeLast() }
        return text
    }

    /// `text` with every control character replaced.
    package static func printable(_ text: String) -> String {
        guard text.unicodeScalars.contains(where: { $0.properties.generalCategory == .control })
        else { return text }
        return String(
            String.UnicodeScalarView(
                text.unicodeScalars.map {
                    $0.properties.generalCategory == .control ? "?" : $0
                }))
    }
}

/// A block of `label  value` lines under a title, for one object in detail.
package struct DetailBlock: Sendable {
    private let title: String
    private var lines: [(label: String, value: String)] = []

    package init(_ title: String) { self.title = TextTable.printable(title) }

    /// A nil or empty value leaves the line out.
    package mutating func add(_ label: String, _ value: String?) {
        guard let value, !value.isEmpty else { return }
        lines.append((label, TextTable.printable(value)))
    }

    package var text: String {
        let width = lines.reduce(0) { max($0, $1.label.count) }
        return
            ([title]
            + lines.map { line in
                let blanks = String(repeating: " ", count: width - line.label.count)
                return "  \(line.label)\(blanks)  \(line.value)"
            }).joined(separator: "\n")
    }
}
