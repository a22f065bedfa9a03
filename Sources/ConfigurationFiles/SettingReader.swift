import Foundation
import Model

/// One thing that is wrong, or may be, with a configuration.
package struct ConfigurationFinding: Hashable, Sendable {
    package enum Severity: String, Sendable {
        /// ftvmd does not start with it.
        case error
        /// It does, and perhaps not as it was meant.
        case warning
    }
    package var severity: Severity
    package var error: FtvmError

    package init(_ severity: Severity, _ error: FtvmError) {
        self.severity = severity
        self.error = error
    }
}

/// Collects what is found, so that one run tells of everything at once.
final class Findings {
    var all: [ConfigurationFinding] = []
    /// By table (`pool`, `store`, "" for the top): the keys that were asked for and those that are
    /// set.
    var asked: [String: Set<String>] = [:]
    var set: [String: Set<String>] = [:]

    func error(_ place: Place, _ text: String, cause: String? = nil, advice: String? = nil) {
        all.append(
            ConfigurationFinding(
                .error,
                FtvmError(.invalidArgument, "\(place): \(text)", cause: cause, advice: advice)))
    }

    func warning(_ place: Place, _ text: String, advice: String? = nil) {
        all.append(
            ConfigurationFinding(
                .warning, FtvmError(.failedPrecondition, "\(place): \(text)", advice: advice)))
    }
}

/// A table of which every key is either asked for or refused.
struct SettingReader {
    let table: SettingTable
    let findings: Findings
    /// `pool` for each `[[pool]]`; empty at the top.
    let name: String
    private(set) var known: Set<String> = []

    init(_ table: SettingTable, _ findings: Findings, name: String = "") {
        self.name = name
        self.table = table
        self.findings = findings
    }

    func place(_ key: String) -> Place { table.settings[key]?.place ?? table.place }
    func has(_ key: String) -> Bool { table.settings[key] != nil }

    mutating func text(_ key: String) -> String? {
        known.insert(key)
        guard let setting = table.settings[key] else { return nil }
        guard case .text(let text) = setting.value else { return wrong(key, "a string") }
        return text
    }

    /// A string that must begin with a slash.
    mutating func path(_ key: String) -> String? {
        guard let path = text(key) else { return nil }
        guard path.hasPrefix("/") else { return wrong(key, "a path that begins with a slash") }
        return path
    }

    mutating func integer(_ key: String, in range: ClosedRange<Int>) -> Int? {
        known.insert(key)
        guard let setting = table.settings[key] else { return nil }
        guard case .integer(let number) = setting.value, range.contains(number) else {
            return wrong(
                key, "a whole number from \(range.lowerBound) to \(range.upperBound)")
        }
        return number
    }

    mutating func flag(_ key: String) -> Bool? {
        known.insert(key)
        guard let setting = table.settings[key] else { return nil }
        guard case .boolean(let flag) = setting.value else { return wrong(key, "true or false") }
        return flag
    }

    mutating func texts(_ key: String) -> [String]? {
        known.insert(key)
        guard let setting = table.settings[key] else { return nil }
        guard case .list(let values) = setting.value else {
            return wrong(key, "an array of strings")
        }
        var texts: [String] = []
        for value in values {
            guard case .text(let text) = value else { return wrong(key, "an array of strings") }
            texts.append(text)
        }
        return texts
    }

    mutating func choice<Choice: RawRepresentable & CaseIterable>(
        _ key: String, _ type: Choice.Type
    ) -> Choice? where Choice.RawValue == String {
        guard let text = text(key) else { return nil }
        guard let choice = Choice(rawValue: text) else {
            let choices = Choice.allCases.map { "\"\($0.rawValue)\"" }.joined(separator: ", ")
            return wrong(key, "one of \(choices), not \"\(text)\"")
        }
        return choice
    }

    /// A table `[key]`, empty when there is none.
    mutating func section(_ key: String) -> SettingReader {
        known.insert(key)
        guard let setting = table.settings[key] else {
            return SettingReader(SettingTable(place: table.place), findings, name: key)
        }
        guard case .table(let inner) = setting.value else {
            let _: Bool? = wrong(key, "a table, written [\(key)]")
            return SettingReader(SettingTable(place: setting.place), findings, name: key)
        }
        return SettingReader(inner, findings, name: key)
    }

    /// Tables `[[key]]`.
    mutating func sections(_ key: String) -> [SettingReader] {
        known.insert(key)
        guard let setting = table.settings[key] else { return [] }
        guard case .tables(let tables) = setting.value else {
            let _: Bool? = wrong(key, "tables, written [[\(key)]]")
            return []
        }
        return tables.map { SettingReader($0, findings, name: key) }
    }

    /// All keys of a table whose names are somebody else's, as text.
    mutating func anything() -> [String: String] {
        var texts: [String: String] = [:]
        for (key, setting) in table.settings {
            known.insert(key)
            switch setting.value {
            case .text(let text): texts[key] = text
            case .integer(let number): texts[key] = String(number)
            case .boolean(let flag): texts[key] = flag ? "1" : "0"
            default: let _: Bool? = wrong(key, "a string, a number, or true or false")
            }
        }
        return texts
    }

    /// Notes that a value is wrong, and gives nil.
    func wrong<Value>(_ key: String, _ wanted: String) -> Value? {
        findings.error(place(key), "`\(key)` must be \(wanted)")
        return nil
    }

    func missing(_ key: String, advice: String? = nil) {
        findings.error(table.place, "`\(key)` is missing", advice: advice)
    }

    /// To be called when every key has been asked for.
    func refuseOthers() {
        findings.asked[name, default: []].formUnion(known)
        findings.set[name, default: []].formUnion(table.settings.keys)
        for key in table.settings.keys.sorted() where !known.contains(key) {
            let near = known.map { ($0, distance($0, key)) }.filter { $0.1 <= 4 }
                .min { ($0.1, $0.0) < ($1.1, $1.0) }
            findings.error(
                place(key), "unknown key `\(key)`",
                advice: near.map { "did you mean `\($0.0)`?" }
                    ?? "known keys here: \(known.sorted().joined(separator: ", "))")
        }
    }

    /// Levenshtein distance.
    private func distance(_ left: String, _ right: String) -> Int {
        let left = Array(left.utf8)
        let right = Array(right.utf8)
        var row = Array(0...right.count)
        for (i, a) in left.enumerated() {
            var diagonal = row[0]
            row[0] = i + 1
            for (j, b) in right.enumerated() {
                let next = min(row[j] + 1, row[j + 1] + 1, diagonal + (a == b ? 0 : 1))
                diagonal = row[j + 1]
                row[j + 1] = next
            }
        }
        return row[right.count]
    }
}
