import CLinux
import Glibc
import Hypervisor
import Injection
import Model

/// The memory file that QEMU saves its device and CPU state into.
///
/// It is a memfd that was put into QEMU, which opens it anew by `/proc/self/fd/N` for each save: no path that
/// an unprivileged QEMU would need permission for, and no descriptor has to travel with each command.
package struct DeviceStateChannel: Sendable {
    /// How the memfd shows in /proc/PID/fd, where a restarted ftvmd finds it.
    static let linkPrefix = "/memfd:ftvm-device-state"
    private static let memfdName = "ftvm-device-state"

    /// Our own descriptor of the memory file.
    let descriptor: Int32
    /// The path under which QEMU opens it.
    package let pathInQEMU: String

    /// A new memory file; put it into QEMU with `installOperation` and complete it with `installed(as:)`.
    static func makeMemoryFile() throws -> Int32 {
        let descriptor = ftvm_memory_file(memfdName)
        guard descriptor >= 0 else {
            throw FtvmError(
                .resourceExhausted, "cannot make a memory file for the device state",
                cause: String(cString: strerror(-descriptor)))
        }
        // An unprivileged QEMU opens it anew through /proc: that asks for the file's permission bits.
        fchmod(descriptor, 0o666)
        return descriptor
    }

    init(descriptor: Int32, remote: Int32) {
        self.descriptor = descriptor
        pathInQEMU = "/proc/self/fd/\(remote)"
    }

    /// Finds the memory file in a QEMU that a former ftvmd had prepared.
    static func found(in process: QEMUProcess) throws -> DeviceStateChannel? {
        guard let remote = process.descriptors(linkedTo: linkPrefix).first else { return nil }
        return DeviceStateChannel(
            descriptor: try process.duplicate(descriptor: remote), remote: remote)
    }

    func close() { Glibc.close(descriptor) }

    /// Copies what QEMU saved last.
    /// - Returns: its length in bytes.
    /// - Throws: `.resourceExhausted` when it does not fit.
    func copy(into slot: UnsafeMutableRawBufferPointer) throws -> Int {
        var status = stat()
        guard fstat(descriptor, &status) == 0, status.st_size > 0 else {
            throw FtvmError(
                .unavailable, "QEMU saved no device state", cause: "the state file is empty")
        }
        let length = Int(status.st_size)
        guard length <= slot.count, let base = slot.baseAddress else {
            throw FtvmError(
                .resourceExhausted,
                "the device state does not fit: \(length) bytes, the segment's slot has \(slot.count)",
                advice: "disable the pair and enable it again with a larger state slot")
        }
        var done = 0
        while done < length {
            let got = pread(descriptor, base + done, length - done, off_t(done))
            guard got > 0 else {
                throw FtvmError(
                    .unavailable, "cannot read the device state back",
                    cause: String(cString: strerror(errno)))
            }
            done += got
        }
        return length
    }
}

/// The migration stream that a waiting QEMU loads: what `xen-save-devices-state` wrote, with the configuration
/// section that this command leaves out put in after the header (QEMU: migration/savevm.c).
enum DeviceStateStream {
    private static let headerBytes = 8
    private static let configurationSection: UInt8 = 0x07
    private static let magic: [UInt8] = [0x51, 0x45, 0x56, 0x4d]  // "QEVM"

    /// - Parameter machine: the machine type's full name, such as `pc-i440fx-7.2`.
    static func complete(_ saved: UnsafeRawBufferPointer, machine: String) throws -> [UInt8] {
        guard saved.count > headerBytes, saved.prefix(4).elementsEqual(magic) else {
            throw FtvmError(
                .dataCorrupted, "the saved device state is not a QEMU stream",
                cause: "it does not begin with QEVM")
        }
        let name = Array(machine.utf8)
        var stream = Array(saved.prefix(headerBytes))
        if saved[headerBytes] != configurationSection {
            stream.append(configurationSection)
            withUnsafeBytes(of: UInt32(name.count).bigEndian) { stream += $0 }
            stream += name
        }
        stream += saved.dropFirst(headerBytes)
        return stream
    }
}
