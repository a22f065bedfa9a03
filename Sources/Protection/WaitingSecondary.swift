import CLinux
import Glibc
import Hypervisor
import Injection
import MemoryPool
import Model

/// A waiting QEMU on this host with the segment mapped read-only, ready to go on.
package final class WaitingSecondary: @unchecked Sendable {
    package let process: QEMUProcess
    package let memory: GuestMemory
    package let monitor: any Monitor
    /// Its gate, switched off; nil for a guest without NICs.
    let attachment: GateAttachment?
    /// nil for a guest without disks to protect.
    package let disks: PairDisks?
    private let ram: FileIdentity

    private init(
        process: QEMUProcess, memory: GuestMemory, monitor: any Monitor, ram: FileIdentity,
        attachment: GateAttachment?, disks: PairDisks?
    ) {
        self.process = process
        self.memory = memory
        self.monitor = monitor
        self.ram = ram
        self.attachment = attachment
        self.disks = disks
    }

    /// Makes a QEMU that was started with `-incoming defer` a secondary: maps the segment's RAM over its own,
    /// with a descriptor that was opened read-only, so that the kernel itself refuses write access until the
    /// promotion. May be repeated: a restarted ftvmd finds the mapping in place and leaves it.
    /// - Parameters:
    ///   - layout: which RAM blocks are in the segment; nil: the main memory and nothing else.
    ///   - nics: all NICs of the guest, as they are on this host.
    package static func prepare(
        process: QEMUProcess, monitor: any Monitor, segment: Segment, layout: RAMLayout? = nil,
        injector: InjectorProcess, nics: [GuestNIC] = [], disks: PairDisks? = nil
    ) throws -> WaitingSecondary {
        if let disks {
            // It reads from the images; the log, and the right to write, come with the promotion.
            try disks.serve(nil)
            try disks.attach(monitor)
        }
        let memory =
            try layout.map {
                try GuestMemory(process.ramBlocks(monitor: monitor), layout: $0)
            } ?? GuestMemory.locate(monitor: monitor, expectedBytes: segment.memoryBytes)
        if try !process.isMapped(memory, from: segment, writable: false) {
            _ = try RAMFiles.withReadOnly(segment) {
                try injector.run(in: process, memory.mapping(of: $0, writable: false))
            }
        }
        guard try process.isMapped(memory, from: segment, writable: false) else {
            throw FtvmError(
                .internalError, "the secondary's memory is not the segment, read-only",
                cause: "/proc/\(process.processID)/maps shows another mapping after the injection")
        }
        return WaitingSecondary(
            process: process, memory: memory, monitor: monitor,
            ram: try FileIdentity(descriptor: segment.ramDescriptor),
            attachment: try attachment(
                in: process, monitor: monitor, nics: nics, injector: injector), disks: disks)
    }

    /// Whether it was made for this segment, and not for one that was in its place before: each time that a guest is enabled
    /// anew, with the devices that it has then, its segment is made anew.
    package func isMade(for segment: Segment) -> Bool {
        (try? FileIdentity(descriptor: segment.ramDescriptor)) == ram
    }

    /// The gate of the primary that it becomes; nil without NICs, or on a segment of format 1.0.
    func gate(_ segment: Segment, _ generation: Generation) throws -> NetworkGate? {
        guard let attachment, segment.outputLog != nil else { return nil }
        return try NetworkGate(attachment, segment: segment, generation: generation)
    }

    private static func attachment(
        in process: QEMUProcess, monitor: any Monitor, nics: [GuestNIC], injector: InjectorProcess
    ) throws -> GateAttachment? {
        guard !nics.isEmpty else { return nil }
        if let found = try GateAttachment.found(in: process),
            try found.isComplete(for: nics, monitor: monitor)
        {
            return found
        }
        return try GateAttachment.install(
            in: process, monitor: monitor, nics: nics, injector: injector)
    }
}
