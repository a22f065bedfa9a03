import CLinux
import Foundation
import Model

/// Several real hosts on one machine: each a network, mount, pid, UTS and IPC namespace with its
/// own libvirt daemon and its own `ftvmd`, on one switch, with pools and a store that they share.
///
/// Everything of a lab is in one directory and one cgroup (see `LabLayout`); a lab is found again
/// by any later process, and removed without trace by `down`. Needs root.
package struct Lab: Sendable {
    package let layout: LabLayout
    package let specification: LabSpecification
    package let hosts: [LabHost]
    /// The whole lab's cgroup; each host has one in it.
    let group: ControlGroup

    /// Is told what is being done, one short sentence at a time.
    package typealias Progress = @Sendable (String) -> Void

    var switchboard: Switch { Switch(layout: layout) }

    init(layout: LabLayout, record: LabRecord) throws {
        self.layout = layout
        self.specification = record.specification
        self.hosts = record.hosts
        self.group = ControlGroup(path: "\(try ControlGroup.root())/\(layout.name)")
    }

    /// The lab of this name that is up.
    /// - Throws: `FtvmError` `notFound` when there is none, `failedPrecondition` when it was left
    ///   half made.
    package static func running(_ layout: LabLayout) throws -> Lab {
        guard Files.exists(layout.record) else {
            throw FtvmError(
                .notFound, "there is no lab '\(layout.name)' on this machine",
                advice: "start one with: ftvm lab up")
        }
        let record = try LabRecord.read(layout)
        guard record.complete else {
            throw FtvmError(
                .failedPrecondition, "the lab '\(layout.name)' is half made",
                cause: "'ftvm lab up' or 'ftvm lab down' is under way, or was ended",
                advice: "wait for it, or remove what is left with: ftvm lab down")
        }
        return try Lab(layout: layout, record: record)
    }

    /// Starts a lab, or finds it running already with the same specification.
    ///
    /// - Throws: `FtvmError` `alreadyExists` when another kind of lab is up, or whatever made
    ///   it fail; then nothing of it is left.
    package static func up(
        _ specification: LabSpecification, layout: LabLayout, progress: Progress
    ) async throws -> Lab {
        try requireRoot()
        try specification.validate()
        try Machine.check(specification)
        let claim = try await Claim.take(layout)
        defer { claim.release() }
        if let record = try? LabRecord.read(layout), record.complete {
            guard record.specification == specification else {
                throw FtvmError(
                    .alreadyExists, "a lab '\(layout.name)' of another kind is up",
                    cause: "it has \(record.specification.summary)",
                    advice: "end it first with: ftvm lab down")
            }
            progress("the lab is up already")
            return try Lab(layout: layout, record: record)
        }
        if try remains(of: layout) {
            progress("removing what is left of an earlier lab")
            try await removeEverything(of: layout)
        }
        do {
            return try await make(specification, layout: layout, progress: progress)
        } catch {
            progress("failed; removing what was made")
            let failure = FtvmError(wrapping: error, "cannot start the lab")
            do {
                try await removeEverything(of: layout)
            } catch let second {
                progress("removing failed too: \(second)")
            }
            throw failure
        }
    }

    /// Ends a lab and removes everything that any `up` has made, also what a half-made lab left.
    /// Nothing there is fine.
    package static func down(_ layout: LabLayout, progress: Progress) async throws {
        try requireRoot()
        let claim = try await Claim.take(layout)
        defer { claim.release() }
        guard try remains(of: layout) else {
            progress("there is no lab '\(layout.name)'")
            return
        }
        progress("removing the lab '\(layout.name)'")
        try await removeEverything(of: layout)
        progress("nothing of the lab is left")
    }

    /// The host of this name.
    /// - Throws: `FtvmError` `notFound` that names the lab's hosts.
    package func host(_ name: HostName) throws -> LabHost {
        guard let host = hosts.first(where: { $0.name == name }) else {
            throw FtvmError(
                .notFound, "the lab has no host '\(name)'",
                advice: "its hosts are: \(hosts.map(\.name.text).joined(separator: ", "))")
        }
        return host
    }

    func group(of host: LabHost) -> ControlGroup {
        ControlGroup(path: "\(group.path)/\(host.name)")
    }

    static func requireRoot() throws {
        guard geteuid() == 0 else {
            throw FtvmError(
                .permissionDenied, "a lab needs root", cause: "it makes namespaces and mounts",
                advice: "run it again with sudo")
        }
    }
}

extension LabSpecification {
    var summary: String {
        var text = "\(hostCount) hosts, a pool of \(poolBytes >> 20) MiB"
        if hugePages > 0 { text += ", \(hugePages) huge pages" }
        text += ", QEMU as \(qemuUser)"
        return text + (daemonPath.map { ", \($0)" } ?? ", no ftvmd")
    }
}

extension LabRecord {
    static func read(_ layout: LabLayout) throws -> LabRecord {
        let text = try Files.read(layout.record)
        do {
            return try JSONDecoder().decode(LabRecord.self, from: Data(text.utf8))
        } catch {
            throw FtvmError(
                .dataCorrupted, "\(layout.record) cannot be read", cause: "\(error)",
                advice: "remove the lab with: ftvm lab down")
        }
    }

    func write(_ layout: LabLayout) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        let data = try encoder.encode(self)
        try Files.write(String(decoding: data, as: UTF8.self) + "\n", to: layout.record)
    }
}

/// One command at a time changes a lab; the claim goes with the process that holds it.
struct Claim {
    private let descriptor: Int32

    static func take(_ layout: LabLayout) async throws -> Claim {
        do {
            return try await waitFor("another 'ftvm lab' command ends", limit: .seconds(60)) {
                let result = ftvm_namespace_claim("ftvm-lab/\(layout.name)")
                if result == -EADDRINUSE { return nil }
                guard result >= 0 else { throw systemFailure("cannot claim the lab", -result) }
                return Claim(descriptor: result)
            }
        } catch let error as FtvmError where error.code == .timedOut {
            throw FtvmError(
                .conflict, "another 'ftvm lab' command is at work on '\(layout.name)'",
                advice: "wait until it is through and try again")
        }
    }

    func release() { close(descriptor) }
}
