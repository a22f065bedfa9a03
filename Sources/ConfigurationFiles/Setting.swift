import Foundation
import Model
import TOMLKit

/// Where something stands.
struct Place: Hashable, Sendable, CustomStringConvertible {
    var file: String
    /// From 1; nil where it could not be found again.
    var line: Int?
    var description: String { line.map { "\(file), line \($0)" } ?? file }
}

/// What a key is set to, and where.
struct Setting: Sendable {
    indirect enum Value: Sendable {
        case text(String)
        case integer(Int)
        case boolean(Bool)
        case list([Value])
        case table(SettingTable)
        case tables([SettingTable])
        /// Something that no key wants: a date, a fraction, a mixed array.
        case other(String)
    }
    var value: Value
    var place: Place
}

struct SettingTable: Sendable {
    var settings: [String: Setting] = [:]
    var place: Place
}

extension SettingTable {
    /// Reads one file.
    /// - Throws: `notFound`, or `invalidArgument` for what is not TOML.
    init(file: String) throws(FtvmError) {
        let text: String
        do {
            text = try String(contentsOfFile: file, encoding: .utf8)
        } catch {
            throw FtvmError(
                .notFound, "cannot read the configuration \(file)", cause: "\(error)",
                advice: "copy Examples/ftvmd.toml there and set `host`")
        }
        try self.init(text: text, file: file)
    }

    init(text: String, file: String) throws(FtvmError) {
        let table: TOMLTable
        do {
            table = try TOMLTable(string: text)
        } catch let error as TOMLParseError {
            throw FtvmError(
                .invalidArgument, "\(file), line \(error.source.begin.line): not valid TOML",
                cause: error.description)
        } catch {
            throw FtvmError(.invalidArgument, "\(file): not valid TOML", cause: "\(error)")
        }
        self.init(table, path: "", lines: LineIndex(text: text, file: file))
    }

    private init(_ table: TOMLTable, path: String, lines: LineIndex) {
        place = lines.place(of: path)
        for key in table.keys {
            guard let value = table[key] else { continue }
            let inner = path.isEmpty ? key : "\(path).\(key)"
            settings[key] = Setting(
                value: Self.value(value, path: inner, lines: lines), place: lines.place(of: inner))
        }
    }

    private static func value(
        _ value: any TOMLValueConvertible, path: String, lines: LineIndex
    ) -> Setting.Value {
        if let text = value.string { return .text(text) }
        if let flag = value.bool { return .boolean(flag) }
        if value.type == .int, let number = value.int { return .integer(number) }
        if let table = value.table {
            return .table(SettingTable(table, path: path, lines: lines))
        }
        if let array = value.array {
            let tables = array.compactMap(\.table)
            if !tables.isEmpty, tables.count == array.count {
                return .tables(
                    tables.enumerated().map { index, table in
                        SettingTable(table, path: "\(path)#\(index)", lines: lines)
                    })
            }
            return .list(array.map { Self.value($0, path: path, lines: lines) })
        }
        return .other("\(value.type)")
    }

    /// Lays `other`, which comes later, over this one: tables are merged, arrays of tables
    /// appended, everything else is replaced.
    mutating func merge(_ other: SettingTable) {
        for (key, later) in other.settings {
            switch (settings[key]?.value, later.value) {
            case (.table(var table), .table(let more)):
                table.merge(more)
                settings[key]?.value = .table(table)
            case (.tables(let tables), .tables(let more)):
                settings[key]?.value = .tables(tables + more)
            default:
                settings[key] = later
            }
        }
    }
}

/// Finds again on which line of a TOML text a key stands, which the parser does not tell. A hint
/// for people: a key that is written in an unusual way is not found, and its table's line is told.
struct LineIndex: Sendable {
    private let file: String
    /// By path: `store.endpoints`, `pool#1.name`, `pool#1`.
    private var lines: [String: Int] = [:]

    init(text: String, file: String) {
        self.file = file
        var table = ""
        var counts: [String: Int] = [:]
        for (number, raw) in text.split(separator: "\n", omittingEmptySubsequences: false)
            .enumerated()
        {
            let line = raw.trimmingCharacters(in: .whitespaces)
            if line.hasPrefix("[["), let end = line.range(of: "]]") {
                let name = Self.plain(
                    line[line.index(line.startIndex, offsetBy: 2)..<end.lowerBound])
                let index = counts[name, default: 0]
                counts[name] = index + 1
                table = "\(name)#\(index)"
                lines[table] = number + 1
                if index == 0 { lines[name] = number + 1 }
            } else if line.hasPrefix("["), let end = line.firstIndex(of: "]") {
                let name = Self.plain(line[line.index(after: line.startIndex)..<end])
                // `[fence.parameters]` belongs to the last `[[fence]]`.
                let parts = name.split(separator: ".", maxSplits: 1).map(String.init)
                if parts.count == 2, let count = counts[parts[0]] {
                    table = "\(parts[0])#\(count - 1).\(parts[1])"
                } else {
                    table = name
                }
                lines[table] = number + 1
            } else if !line.hasPrefix("#"), let equals = line.firstIndex(of: "=") {
                let key = Self.plain(line[..<equals])
                let path = table.isEmpty ? key : "\(table).\(key)"
                if lines[path] == nil { lines[path] = number + 1 }
            }
        }
    }

    private static func plain(_ text: Substring) -> String {
        text.split(separator: ".").map {
            $0.trimmingCharacters(in: .whitespaces)
                .trimmingCharacters(in: CharacterSet(charactersIn: "\"'"))
        }.joined(separator: ".")
    }

    func place(of path: String) -> Place {
        var path = Substring(path)
        while true {
            if let line = lines[String(path)] { return Place(file: file, line: line) }
            guard let dot = path.lastIndex(of: ".") else { return Place(file: file, line: nil) }
            path = path[..<dot]
        }
    }
}
