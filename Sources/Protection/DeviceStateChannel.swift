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
    /// How the memfd shows in /proc/PID/fd, where a restarted ftvmd finds it. Its name ends with the inode of the pipe, if
    /// there is one, which has no name itself.
    static let linkPrefix = "/memfd:\(memfdName)"
    private static let memfdName = "ftvm-device-state"

    /// Our own descriptor of the memory file.
    let descriptor: Int32
    /// The path under which QEMU opens it.
    package let pathInQEMU: String

    /// For saving in passing; nil in a QEMU whose monitor was not one for that, or that an ftvmd without it has prepared.
    let pipe: StatePipe?

    /// A new memory file, for a QEMU that may get this pipe as well.
    static func makeMemoryFile(pipe: Int32?) throws -> Int32 {
        var name = memfdName
        if let pipe {
            var status = stat()
            fstat(pipe, &status)
            name += "-\(status.st_ino)"
        }
        let descriptor = ftvm_memory_file(name)
        guard descriptor >= 0 else {
            throw FtvmError(
                .resourceExhausted, "cannot make a memory file for the device state",
                cause: String(cString: strerror(-descriptor)))
        }
        // An unprivileged QEMU opens it anew through /proc: that asks for the file's permission bits.
        fchmod(descriptor, 0o666)
        return descriptor
    }

    init(descriptor: Int32, remote: Int32, pipe: StatePipe?) {
        self.descriptor = descriptor
        self.pipe = pipe
        pathInQEMU = "/proc/self/fd/\(remote)"
    }

    /// Finds the memory file and the pipe in a QEMU that a former ftvmd had prepared.
    static func found(in process: QEMUProcess) throws -> DeviceStateChannel? {
        guard let remote = process.descriptors(linkedTo: linkPrefix).first else { return nil }
        return DeviceStateChannel(
            descriptor: try process.duplicate(descriptor: remote), remote: remote,
            pipe: foundPipe(in: process))
    }

    private static func foundPipe(in process: QEMUProcess) -> StatePipe? {
        guard let remote = pipes(in: process).first,
            let writer = try? process.duplicate(descriptor: remote)
        else { return nil }
        defer { Glibc.close(writer) }
        return StatePipe.found(writer: writer, remote: remote)
    }

    /// All that is of such a channel in the process.
    static func descriptors(in process: QEMUProcess) -> [Int32] {
        process.descriptors(linkedTo: linkPrefix) + pipes(in: process)
    }

    private static func pipes(in process: QEMUProcess) -> [Int32] {
        process.descriptors(linkedTo: linkPrefix).flatMap { file -> [Int32] in
            let link = process.descriptorLink(file) ?? ""
            let number = link.dropFirst(linkPrefix.count + 1).prefix { $0.isNumber }
            guard let inode = UInt64(number) else { return [] }
            return process.descriptors(linkedTo: StatePipe.link(inode: inode))
        }
    }

    func close() {
        Glibc.close(descriptor)
        pipe?.giveUp()
    }

    func giveUpPipe() { pipe?.giveUp() }

    static func doesNotFit(_ bytes: Int, _ slotBytes: Int) -> FtvmError {
        FtvmError(
            .resourceExhausted,
            "the device state does not fit: \(bytes) bytes, the segment's slot has \(slotBytes)",
            advice: "disable the pair and enable it again with a larger state slot")
    }

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
            throw Self.doesNotFit(length, slot.count)
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
