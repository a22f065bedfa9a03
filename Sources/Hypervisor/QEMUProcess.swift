import Foundation
import Model

/// The QEMU process of a domain. libvirt has no call for its number.
package struct QEMUProcess: Hashable, Sendable {
    package let processID: Int32
    /// When it started, in clock ticks since boot: with it a number that was used again is told
    /// from the same process (proc(5), `starttime`).
    package let startTicks: UInt64

    /// Finds the process through libvirt's own files, and makes sure that it is the domain's.
    /// - Parameters:
    ///   - stateDirectory: `/run/libvirt/qemu` of the libvirt daemon.
    /// - Throws: `FtvmError(.notFound)` when no QEMU of that domain runs here.
    package static func find(
        domain: String, uuid: String, stateDirectory: String = "/run/libvirt/qemu"
    ) throws -> QEMUProcess {
        var causes: [String] = []
        for source in [numberInPIDFile, numberInStatusFile] {
            guard let number = source("\(stateDirectory)/\(domain)") else { continue }
            guard let process = QEMUProcess(processID: number) else {
                causes.append("process \(number) is gone")
                continue
            }
            // Between reading the start time and the command line the process could change only
            // by ending, and then the command line cannot be read.
            guard isQEMU(number, uuid: uuid) else {
                causes.append("process \(number) is not its QEMU")
                continue
            }
            return process
        }
        throw FtvmError(
            .notFound, "QEMU process of domain \(domain) is not found",
            cause: causes.isEmpty
                ? "libvirt has no file of it in \(stateDirectory)"
                : causes.joined(separator: "; "),
            advice: "see whether the domain runs on this host")
    }

    /// The process of this number as it is now; nil when there is none.
    package init?(processID: Int32) {
        guard let stat = Self.read("/proc/\(processID)/stat"), let first = ThreadState(stat),
            !first.hasEnded, let ticks = first.startTicks
        else { return nil }
        self.processID = processID
        self.startTicks = ticks
    }

    /// Whether this very process still runs.
    package var isRunning: Bool { QEMUProcess(processID: processID) == self }

    private static func numberInPIDFile(_ base: String) -> Int32? {
        read("\(base).pid").flatMap { Int32(XMLText.trim($0)) }
    }

    /// libvirt's status file of a running domain: `<domstatus … pid='123'>`.
    private static func numberInStatusFile(_ base: String) -> Int32? {
        guard let text = read("\(base).xml"), let tree = try? XMLTree(parsing: text) else {
            return nil
        }
        return tree.root["pid"].flatMap { Int32($0) }
    }

    /// Whether the process was started by libvirt for this domain: `-uuid UUID` is among its
    /// arguments.
    private static func isQEMU(_ processID: Int32, uuid: String) -> Bool {
        guard let text = read("/proc/\(processID)/cmdline") else { return false }
        let arguments = text.split(separator: "\0", omittingEmptySubsequences: false)
        return zip(arguments, arguments.dropFirst()).contains { option, value in
            option == "-uuid" && value.lowercased() == uuid.lowercased()
        }
    }

    /// The text of a file whose size is not known beforehand, as in /proc.
    private static func read(_ path: String) -> String? {
        guard let handle = FileHandle(forReadingAtPath: path) else { return nil }
        defer { try? handle.close() }
        guard let data = try? handle.readToEnd() else { return nil }
        return String(decoding: data, as: UTF8.self)
    }
}
