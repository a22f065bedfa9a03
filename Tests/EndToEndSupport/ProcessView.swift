import Foundation
import Glibc
import Lab
import Model
import Testing

/// A process as /proc shows it.
package struct ProcessView: Sendable, Hashable {
    package let pid: Int32

    package init(pid: Int32) { self.pid = pid }

    package struct Mapping: Sendable, Hashable {
        /// Such as `rw-s`.
        package let permissions: String
        package let bytes: UInt64
        package let inode: UInt64
        package let path: String
        package var isPrivate: Bool { permissions.hasSuffix("p") }
    }

    /// To its very end: a file in /proc comes in pieces, and the library's own reading stops after the first.
    package func text(_ file: String) -> String {
        let descriptor = open("/proc/\(pid)/\(file)", O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return "" }
        defer { close(descriptor) }
        var bytes: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 65_536)
        while true {
            let count = read(descriptor, &piece, piece.count)
            guard count > 0 else { return String(decoding: bytes, as: UTF8.self) }
            bytes += piece[..<count]
        }
    }

    package var arguments: [String] {
        text("cmdline").split(separator: "\0", omittingEmptySubsequences: false).map(String.init)
    }

    package var mappings: [Mapping] {
        text("maps").split(separator: "\n").compactMap { line in
            let fields = line.split(separator: " ", maxSplits: 5, omittingEmptySubsequences: true)
            guard fields.count >= 5 else { return nil }
            let bounds = fields[0].split(separator: "-").compactMap { UInt64($0, radix: 16) }
            guard bounds.count == 2 else { return nil }
            return Mapping(
                permissions: String(fields[1]), bytes: bounds[1] - bounds[0],
                inode: UInt64(fields[4]) ?? 0,
                path: fields.count > 5 ? fields[5].trimmingCharacters(in: .whitespaces) : "")
        }
    }

    /// The mappings of a segment's file. Where its pool is mounted is another matter in each mount namespace.
    package func mappings(of path: String) throws -> [Mapping] {
        var information = stat()
        try #require(stat(path, &information) == 0, "\(path) is there")
        let end = path.split(separator: "/").suffix(3).joined(separator: "/")
        return mappings.filter { $0.inode == information.st_ino && $0.path.hasSuffix(end) }
    }

    /// What its descriptors are of, as /proc/PID/fd has it.
    package var descriptors: [String] {
        let directory = "/proc/\(pid)/fd"
        let numbers = (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
        return numbers.compactMap {
            try? FileManager.default.destinationOfSymbolicLink(atPath: "\(directory)/\($0)")
        }
    }

    /// A line of /proc/PID/status.
    package func status(_ name: String) -> [String] {
        let line = text("status").split(separator: "\n").first { $0.hasPrefix(name + ":") }
        return line.map { $0.split(whereSeparator: \.isWhitespace).dropFirst().map(String.init) }
            ?? []
    }

    package func kill() throws {
        try #require(Glibc.kill(pid, SIGKILL) == 0, "process \(pid) is there to be killed")
    }

    /// None of its threads will run an instruction of its program again: PF_EXITING in the flags of each, which is set
    /// before anything else when a thread ends. Also when it is gone.
    package var isEnding: Bool {
        let threads =
            (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/task")) ?? []
        return threads.allSatisfy { thread in
            // The name, in parentheses, may contain anything; the flags are the seventh field after it.
            let fields = text("task/\(thread)/stat").split(separator: ")").last?.split(
                separator: " ")
            guard let fields, fields.count > 6, let flags = UInt64(fields[6]) else { return true }
            return flags & 4 != 0
        }
    }

    /// What ftvm leaves in a QEMU while it is protected.
    package var traces: [String] {
        descriptors.filter {
            $0.contains("userfaultfd") || $0.contains("ftvm") || $0.contains("/segments/")
        } + mappings.filter { $0.path.contains("/segments/") }.map(\.path)
    }
}

/// Groups processes of the lab's hosts.
extension TestLab {
    /// The domain's QEMU on a host, running or waiting; nil when there is none.
    package func qemu(_ host: HostName) async throws -> ProcessView? {
        let found = try await qemus(host)
        try #require(found.count <= 1, "one QEMU of demo on \(host)")
        return found.first
    }

    /// The same, which must be there.
    package func presentQEMU(_ host: HostName?) async throws -> ProcessView {
        let host = try #require(host)
        return try #require(try await qemu(host), "demo has a QEMU on \(host)")
    }

    /// All QEMUs of the domain on a host.
    package func qemus(_ host: HostName) async throws -> [ProcessView] {
        try await processes(host, named: "qemu-system").filter { process in
            process.arguments.contains { $0.hasPrefix("guest=\(Self.demo)") }
        }
    }

    package func daemon(_ host: HostName) async throws -> ProcessView? {
        try await processes(host, named: "ftvmd").first
    }

    package func presentProcess(_ host: HostName, named name: String) async throws -> ProcessView {
        try #require(try await processes(host, named: name).first, "\(name) runs on \(host)")
    }

    private func processes(_ host: HostName, named name: String) async throws -> [ProcessView] {
        let status = try await status()
        let view = try #require(status.hosts.first { $0.name == host })
        return view.processes.filter { $0.name.hasPrefix(name) }.map { ProcessView(pid: $0.pid) }
    }

    /// A host's tap devices of guests.
    package func taps(_ host: HostName) async throws -> [String] {
        struct Link: Decodable { let ifname: String }
        let text = try await exec(host, ["ip", "-json", "link", "show"])
        return try JSONDecoder().decode([Link].self, from: Data(text.utf8)).map(\.ifname)
            .filter { $0.hasPrefix("vnet") || $0.hasPrefix("tap") }
    }

    /// The path of the file that is the guest's memory.
    package func ramFile(_ segment: SegmentReference) -> String {
        let pool = segment.pool.text == "huge" ? layout.hugePool : layout.pool
        return "\(pool)/segments/\(segment.name)/ram"
    }
}
