import Foundation
import Model
import TOMLKit

/// Reads `ftvmd`'s configuration file. Every key is known or an error: a misspelt one must not silently
/// leave a default in force.
package enum ConfigurationFile {
    package static let defaultPath = "/etc/ftvm/ftvmd.toml"

    package static func load(path: String) throws -> DaemonConfiguration {
        let text: String
        do {
            text = try String(contentsOfFile: path, encoding: .utf8)
        } catch {
            throw FtvmError(
                .notFound, "cannot read the configuration \(path)", cause: "\(error)",
                advice: "copy Examples/ftvmd.toml there and set `host`")
        }
        return try parse(text, path: path)
    }

    package static func parse(_ text: String, path: String) throws -> DaemonConfiguration {
        let table: TOMLTable
        do {
            table = try TOMLTable(string: text)
        } catch let error as TOMLParseError {
            throw FtvmError(
                .invalidArgument,
                "\(path), line \(error.source.begin.line): not valid TOML",
                cause: error.description)
        }
        var reader = TableReader(table: table, place: path)
        guard let host = try reader.string("host"), isHostName(host) else {
            throw FtvmError(
                .invalidArgument, "\(path): `host` is missing or not a host name",
                advice: "set host = \"NAME\" (letters, digits, dots and dashes, at most 63)")
        }
        var configuration = DaemonConfiguration(host: HostName(host))
        configuration.libvirtURI = try reader.string("libvirt_uri") ?? configuration.libvirtURI
        configuration.socketPath = try reader.string("socket_path") ?? configuration.socketPath
        configuration.runtimeDirectory =
            try reader.string("runtime_directory") ?? configuration.runtimeDirectory
        configuration.storePath = try reader.string("store_path") ?? configuration.storePath
        configuration.injectorPath = try reader.string("injector_path")
        configuration.logLevel = try reader.string("log_level") ?? configuration.logLevel
        configuration.heartbeatPeriodMilliseconds =
            try reader.integer("heartbeat_period_milliseconds", in: 10...10_000)
            ?? configuration.heartbeatPeriodMilliseconds
        configuration.heartbeatMissesUntilDead =
            try reader.integer("heartbeat_misses_until_dead", in: 2...1_000)
            ?? configuration.heartbeatMissesUntilDead
        configuration.epochMaximumMilliseconds =
            try reader.integer("epoch_maximum_milliseconds", in: 1...10_000)
            ?? configuration.epochMaximumMilliseconds
        configuration.hangTimeoutMilliseconds =
            try reader.integer("hang_timeout_milliseconds", in: 200...600_000)
            ?? configuration.hangTimeoutMilliseconds
        configuration.stateDirectory =
            try reader.string("state_directory") ?? configuration.stateDirectory
        try drill(&reader, path: path, &configuration)
        configuration.pools = try pools(&reader, path: path)
        try reader.refuseOthers()
        return configuration
    }

    private static func drill(
        _ reader: inout TableReader, path: String, _ configuration: inout DaemonConfiguration
    ) throws {
        guard let table = try reader.table("drill") else { return }
        var reader = TableReader(table: table, place: "\(path), [drill]")
        if let command = try reader.strings("kill_host_command") {
            guard command.first?.hasPrefix("/") == true,
                command.contains(where: { $0.contains("{host}") })
            else {
                throw FtvmError(
                    .invalidArgument,
                    "\(reader.place): `kill_host_command` is not a command on a host",
                    advice: "begin with the program's whole path, and have {host} in an argument")
            }
            configuration.drillKillHostCommand = command
        }
        configuration.drillKillHostFromClient =
            try reader.boolean("kill_host_from_client") ?? false
        try reader.refuseOthers()
    }

    private static func pools(
        _ reader: inout TableReader, path: String
    ) throws -> [PoolConfiguration] {
        var pools: [PoolConfiguration] = []
        for (index, table) in try reader.tables("pool").enumerated() {
            var reader = TableReader(table: table, place: "\(path), [[pool]] number \(index + 1)")
            let kinds = PoolKind.allCases.map(\.rawValue).joined(separator: ", ")
            guard let name = try reader.string("name"), let directory = try reader.string("path")
            else {
                throw FtvmError(
                    .invalidArgument, "\(reader.place): `name` and `path` are needed")
            }
            let kindText = try reader.string("kind") ?? PoolKind.tmpfs.rawValue
            guard let kind = PoolKind(rawValue: kindText) else {
                throw FtvmError(
                    .invalidArgument, "\(reader.place): kind \"\(kindText)\" is unknown",
                    advice: "one of \(kinds)")
            }
            try reader.refuseOthers()
            guard !pools.contains(where: { $0.name.text == name }) else {
                throw FtvmError(.invalidArgument, "\(reader.place): pool \(name) is there twice")
            }
            pools.append(PoolConfiguration(name: PoolName(name), kind: kind, path: directory))
        }
        guard !pools.isEmpty else {
            throw FtvmError(
                .invalidArgument, "\(path): no [[pool]] is configured",
                advice: "name at least one directory on tmpfs or hugetlbfs")
        }
        return pools
    }

    private static func isHostName(_ text: String) -> Bool {
        !text.isEmpty && text.utf8.count <= 63
            && text.allSatisfy {
                $0.isASCII && ($0.isLetter || $0.isNumber || $0 == "-" || $0 == ".")
            }
    }
}

/// A TOML table of which every key is either asked for or refused.
private struct TableReader {
    let table: TOMLTable
    let place: String
    private var known: Set<String> = []

    init(table: TOMLTable, place: String) {
        self.table = table
        self.place = place
    }

    mutating func string(_ key: String) throws -> String? {
        known.insert(key)
        guard let value = table[key] else { return nil }
        guard let text = value.string else { throw wrong(key, "a string") }
        return text
    }

    mutating func integer(_ key: String, in range: ClosedRange<Int>) throws -> Int? {
        known.insert(key)
        guard let value = table[key] else { return nil }
        guard let number = value.int, range.contains(number) else {
            throw wrong(key, "a whole number from \(range.lowerBound) to \(range.upperBound)")
        }
        return number
    }

    mutating func boolean(_ key: String) throws -> Bool? {
        known.insert(key)
        guard let value = table[key] else { return nil }
        guard let flag = value.bool else { throw wrong(key, "true or false") }
        return flag
    }

    mutating func strings(_ key: String) throws -> [String]? {
        known.insert(key)
        guard let value = table[key] else { return nil }
        guard let array = value.array else { throw wrong(key, "an array of strings") }
        return try array.map {
            guard let text = $0.string else { throw wrong(key, "an array of strings") }
            return text
        }
    }

    mutating func table(_ key: String) throws -> TOMLTable? {
        known.insert(key)
        guard let value = table[key] else { return nil }
        guard let found = value.table else { throw wrong(key, "a table, written [\(key)]") }
        return found
    }

    mutating func tables(_ key: String) throws -> [TOMLTable] {
        known.insert(key)
        guard let value = table[key] else { return [] }
        guard let array = value.array else { throw wrong(key, "tables, written [[\(key)]]") }
        return try array.map {
            guard let table = $0.table else { throw wrong(key, "tables, written [[\(key)]]") }
            return table
        }
    }

    func refuseOthers() throws {
        for key in table.keys.sorted() where !known.contains(key) {
            let nearest = known.min { distance($0, key) < distance($1, key) }
            let near = nearest.flatMap { distance($0, key) <= 4 ? $0 : nil }
            throw FtvmError(
                .invalidArgument, "\(place): unknown key `\(key)`",
                advice: near.map { "did you mean `\($0)`?" }
                    ?? "known keys: \(known.sorted().joined(separator: ", "))")
        }
    }

    private func wrong(_ key: String, _ wanted: String) -> FtvmError {
        FtvmError(.invalidArgument, "\(place): `\(key)` must be \(wanted)")
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
