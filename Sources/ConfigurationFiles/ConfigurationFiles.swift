import Foundation
import Glibc
import Model

/// Reads a host's configuration: one file and, in the order of their names, the files `*.toml` in
/// the directory `conf.d` beside it. Tables are merged, arrays of tables are appended, and of two
/// equal keys the later one counts.
package enum ConfigurationFiles {
    package static let defaultPath = "/etc/ftvm/ftvmd.toml"

    /// - Throws: the first error of `check`.
    package static func load(path: String = defaultPath) throws(FtvmError) -> ClusterConfiguration {
        let findings = Findings()
        let configuration = try read(path: path, findings)
        if let first = findings.all.first(where: { $0.severity == .error }) { throw first.error }
        guard let configuration else {
            throw FtvmError(.internalError, "the configuration \(path) is neither right nor wrong")
        }
        return configuration
    }

    /// Everything that is wrong with a configuration, errors first; empty: it is right.
    package static func check(path: String = defaultPath) -> [ConfigurationFinding] {
        let findings = Findings()
        do throws(FtvmError) {
            _ = try read(path: path, findings)
        } catch {
            findings.all.append(ConfigurationFinding(.error, error))
        }
        return findings.all.filter { $0.severity == .error }
            + findings.all.filter { $0.severity == .warning }
    }

    /// What a text says, for tests and for files that come from elsewhere.
    package static func parse(_ text: String, file: String) throws(FtvmError)
        -> ClusterConfiguration
    {
        let findings = Findings()
        let configuration = ConfigurationReader.read(
            try SettingTable(text: text, file: file), findings)
        if let first = findings.all.first(where: { $0.severity == .error }) { throw first.error }
        guard let configuration else {
            throw FtvmError(.internalError, "the configuration \(file) is neither right nor wrong")
        }
        return configuration
    }

    /// The keys that could be set and are not, each as `table.key`: an example that shows
    /// everything has none.
    package static func unset(in text: String, file: String) throws(FtvmError) -> [String] {
        let findings = Findings()
        _ = ConfigurationReader.read(try SettingTable(text: text, file: file), findings)
        return findings.asked.flatMap { name, keys in
            keys.subtracting(findings.set[name] ?? []).map { name.isEmpty ? $0 : "\(name).\($0)" }
        }.sorted()
    }

    /// The files that are read, in order.
    /// - Throws: `unavailable` when the directory is there and cannot be read: what is in it must
    /// not
    ///   be left out in silence.
    package static func files(path: String) throws(FtvmError) -> [String] {
        let directory = URL(fileURLWithPath: path).deletingLastPathComponent()
            .appendingPathComponent("conf.d").path
        guard FileManager.default.fileExists(atPath: directory) else { return [path] }
        do {
            return [path]
                + (try FileManager.default.contentsOfDirectory(atPath: directory))
                .filter { $0.hasSuffix(".toml") && !$0.hasPrefix(".") }
                .sorted { $0.utf8.lexicographicallyPrecedes($1.utf8) }
                .map { directory + "/" + $0 }
        } catch {
            throw FtvmError(
                .unavailable, "cannot read the configuration's directory \(directory)",
                cause: "\(error)")
        }
    }

    private static func read(
        path: String, _ findings: Findings
    ) throws(FtvmError) -> ClusterConfiguration? {
        let files = try files(path: path)
        var table = SettingTable(place: Place(file: path, line: nil))
        for file in files { table.merge(try SettingTable(file: file)) }
        let configuration = ConfigurationReader.read(table, findings)
        if let configuration, configuration.hasSecrets {
            for file in files {
                var information = stat()
                guard stat(file, &information) == 0, information.st_mode & 0o004 != 0 else {
                    continue
                }
                findings.warning(
                    Place(file: file, line: nil),
                    "everybody can read it, and passwords are configured",
                    advice: "chmod 600 \(file)")
            }
        }
        return configuration
    }
}

extension ClusterConfiguration {
    fileprivate var hasSecrets: Bool {
        fences.contains {
            guard case .agent(_, let parameters) = $0.method else { return false }
            return parameters.keys.contains { $0.lowercased().contains("pass") }
        }
    }
}
