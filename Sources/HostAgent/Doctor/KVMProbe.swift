import Foundation
import Glibc

/// Whether guests run under KVM. /dev/kvm does not tell: in some nested set-ups it is there and nothing comes up in it. So
/// QEMU's firmware is booted, which says on a port of its own how far it gets.
package enum KVMProbe {
    private static let program = "/usr/bin/qemu-system-x86_64"
    private static let secondsAtMost = 8.0
    /// The firmware is through: real, protected and system management mode have worked.
    private static let arrived = "No bootable device"

    static func run() -> HostSurvey.KVM {
        let device = open("/dev/kvm", O_RDWR | O_CLOEXEC)
        guard device >= 0 else { return .absent }
        close(device)
        let log = NSTemporaryDirectory() + "ftvm-kvm-\(UUID().uuidString)"
        defer { unlink(log) }
        let said = start(
            [
                "-accel", "kvm", "-M", "pc", "-m", "32", "-display", "none", "-nodefaults",
                "-no-reboot", "-chardev", "file,path=\(log),id=log",
                "-device", "isa-debugcon,iobase=0x402,chardev=log",
            ],
            until: {
                (try? String(contentsOfFile: log, encoding: .utf8))?.contains(arrived) ?? false
            }
        )
        let text = (try? String(contentsOfFile: log, encoding: .utf8)) ?? ""
        return judge(firmware: text, errors: said)
    }

    /// What the firmware and QEMU have said.
    package static func judge(firmware: String, errors: String) -> HostSurvey.KVM {
        let lines = errors.split(separator: "\n").map(String.init)
        guard firmware.contains(arrived) else {
            let cause = lines.first {
                !$0.contains("terminating on signal") && !$0.contains("warning:")
            }
            return .unusable(
                cause
                    ?? "it got no further than \(firmware.split(separator: "\n").last ?? "its start")"
            )
        }
        if let missing = lines.first(where: { $0.contains("doesn't support requested feature") }) {
            return .poor(missing)
        }
        return .usable
    }

    /// The machine types of this host's QEMU, by their names and aliases.
    static func machineTypes() -> [String] {
        parse(machines: start(["-machine", "help"], until: { false }))
    }

    /// `pc   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)`, a line each.
    package static func parse(machines text: String) -> [String] {
        text.split(separator: "\n").dropFirst().compactMap {
            $0.split(separator: " ").first.map(String.init)
        }
    }

    /// Runs QEMU until it ends, something is so, or its time is up; gives what it said.
    private static func start(_ arguments: [String], until condition: () -> Bool) -> String {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: program)
        process.arguments = arguments
        let path = NSTemporaryDirectory() + "ftvm-qemu-\(UUID().uuidString)"
        defer { unlink(path) }
        guard FileManager.default.createFile(atPath: path, contents: nil),
            let output = FileHandle(forWritingAtPath: path)
        else { return "no temporary file can be made" }
        defer { try? output.close() }
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = output
        process.standardError = output
        do { try process.run() } catch { return "\(program) cannot be started: \(error)" }
        let end = ContinuousClock.now + .seconds(secondsAtMost)
        while process.isRunning, ContinuousClock.now < end, !condition() { usleep(10_000) }
        if process.isRunning { kill(process.processIdentifier, SIGKILL) }
        process.waitUntilExit()
        return (try? String(contentsOfFile: path, encoding: .utf8)) ?? ""
    }
}
