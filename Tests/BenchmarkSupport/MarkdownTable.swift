/// A table of a document.
package struct MarkdownTable: Sendable {
    package let header: [String]
    package private(set) var rows: [[String]] = []

    package init(_ header: [String]) {
        precondition(!header.isEmpty, "a table has columns")
        self.header = header
    }

    package mutating func add(_ cells: [String]) {
        precondition(cells.count == header.count, "a row has a cell for each column")
        rows.append(cells)
    }

    package var text: String {
        let ruler = header.map { _ in "---" }
        return ([header, ruler] + rows).map { cells in
            let safe = cells.map {
                $0.replacing("|", with: "\\|").replacing("\n", with: " ")
            }
            return "| " + safe.joined(separator: " | ") + " |"
        }.joined(separator: "\n") + "\n"
    }
}

/// The parts of a document that a program writes, between `<!-- begin NAME -->` and `<!-- end NAME
/// -->`.
package enum DocumentPart {
    /// The document with another text between the marks; nil when it does not have both once, in
    /// their order.
    package static func replace(_ name: String, in document: String, with text: String) -> String? {
        let (begin, end) = ("<!-- begin \(name) -->", "<!-- end \(name) -->")
        var lines = document.split(separator: "\n", omittingEmptySubsequences: false)
        let begins = lines.indices.filter { lines[$0] == begin }
        let ends = lines.indices.filter { lines[$0] == end }
        guard begins.count == 1, ends.count == 1, begins[0] < ends[0] else { return nil }
        let inside = ["", text.trimmingNewlines, ""].map { Substring($0) }
        lines.replaceSubrange(begins[0] + 1..<ends[0], with: inside)
        return lines.joined(separator: "\n")
    }
}

extension String {
    fileprivate var trimmingNewlines: String {
        var text = Substring(self)
        while text.last == "\n" { text.removeLast() }
        while text.first == "\n" { text.removeFirst() }
        return String(text)
    }
}
