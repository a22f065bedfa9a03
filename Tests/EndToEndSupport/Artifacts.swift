import Foundation
import Lab
import Model

/// What is kept of a failed test.
package enum Artifacts {
    /// A new directory's name for a test; it is made when something is kept.
    package static func directory(test: String) -> String {
        let name = test.filter { $0.isLetter || $0.isNumber }
        let time = UInt64(Date().timeIntervalSince1970 * 1_000)
        return "\(Settings.artifacts)/\(name)-\(time)"
    }

    /// Copies everything that tells what happened. What cannot be had is left out, with a word why.
    package static func keep(_ lab: TestLab, in directory: String, since began: Date) async {
        do {
            try FileManager.default.createDirectory(
                atPath: directory, withIntermediateDirectories: true)
        } catch {
            print("cannot keep logs in \(directory): \(error)")
            return
        }
        await say(
            ["date", "+%F %T.%N"], in: directory, as: "ended-at")
        try? "\(began)\n".write(
            toFile: directory + "/began-at", atomically: true, encoding: .utf8)
        for host in lab.hosts { copyHost(host, lab, into: "\(directory)/\(host)") }
        for host in lab.livingHosts { await keepCPUs(host, lab, in: "\(directory)/\(host)") }
        copy(
            URL(fileURLWithPath: lab.layout.store).deletingLastPathComponent().path,
            to: directory + "/store")
        await say(
            [Command.ftvm, "lab", "status", "--name", lab.layout.name, "-o", "json"],
            in: directory, as: "lab.json")
        for verb in [["events", "--limit", "1000"], ["status"], ["hosts"], ["pool", "list"]] {
            await ask(lab, verb, in: directory)
        }
        let segments = lab.layout.pool + "/segments"
        for name in (try? FileManager.default.contentsOfDirectory(atPath: segments)) ?? [] {
            await say(
                [Command.ftvm, "pool", "dump", "\(segments)/\(name)"], in: directory,
                as: "segment-\(name)")
        }
        await say(
            ["ps", "-eLo", "pid,tid,ppid,stat,wchan:32,comm,args"], in: directory, as: "processes")
    }

    private static func copyHost(_ host: HostName, _ lab: TestLab, into target: String) {
        let source = lab.layout.directory(of: host)
        try? FileManager.default.createDirectory(
            atPath: target, withIntermediateDirectories: true)
        for file in ["ftvmd.log", "libvirtd.log", "boot.log", "ftvmd.toml", "ftvmd.environment"] {
            copy("\(source)/\(file)", to: "\(target)/\(file)")
        }
        // QEMU's own logs and the guest's console.
        copy("\(source)/var/log/qemu", to: "\(target)/qemu")
    }

    /// Where the guests' CPUs are, a moment apart: what hangs stays there.
    private static func keepCPUs(_ host: HostName, _ lab: TestLab, in directory: String) async {
        let uri = lab.layout.libvirtURI(of: host)
        for name in (try? await lab.domains(host, onlyActive: true)) ?? [] {
            for moment in 1...3 {
                await say(
                    [
                        "virsh", "-q", "-c", uri, "qemu-monitor-command", name, "--hmp",
                        "info registers -a",
                    ], in: directory, as: "registers-\(name)-\(moment)")
            }
        }
    }

    private static func copy(_ source: String, to target: String) {
        guard FileManager.default.fileExists(atPath: source) else { return }
        do {
            try FileManager.default.copyItem(atPath: source, toPath: target)
        } catch {
            try? "\(error)".write(toFile: target + ".missing", atomically: true, encoding: .utf8)
        }
    }

    /// The answer of the first host that gives one.
    private static func ask(_ lab: TestLab, _ verb: [String], in directory: String) async {
        for host in lab.livingHosts {
            guard let outcome = try? await lab.attempt(verb, on: host, seconds: 10),
                outcome.status == 0
            else { continue }
            let name = verb.prefix { !$0.hasPrefix("-") }.joined(separator: "-")
            try? outcome.output.write(
                toFile: "\(directory)/\(name).json", atomically: true, encoding: .utf8)
            return
        }
    }

    private static func say(_ command: [String], in directory: String, as name: String) async {
        guard let outcome = try? await Command.attempt(command, seconds: 20) else { return }
        try? (outcome.output + outcome.errorOutput).write(
            toFile: "\(directory)/\(name)", atomically: true, encoding: .utf8)
    }
}
