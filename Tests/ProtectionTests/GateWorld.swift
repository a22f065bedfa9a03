import CLinux
import Fencing
import Foundation
import Glibc
import GuestSupport
import Hypervisor
import MemoryPool
import Model
import Protection
import Testing

/// Hosts, guests and wires of a test of the network gate.
final class GateWorld {
    /// A QEMU with its taps, and who stands at their other ends.
    struct Guest {
        let qemu: GuestQEMU
        let socket: String
        let nics: [GuestNIC]
        let wires: [GateWire]
    }

    let workspace: Workspace
    let network: GateNetwork
    let segment: Segment
    let nicCount: Int
    /// Without the virtio-net header.
    let isPlain: Bool
    private var number = 0

    init(nics: Int, isPlain: Bool = false, memoryMiB: Int = 128) throws {
        nicCount = nics
        self.isPlain = isPlain
        workspace = try Workspace(pool: .tmpfs)
        network = try GateNetwork(in: workspace.directory)
        segment = try workspace.pool.createSegment(
            SegmentSpecification(
                name: "gate", uuid: "00000000-0000-0000-0000-000000000001",
                memoryBytes: UInt64(memoryMiB) << 20, undoLogBytes: 128 << 20))
    }

    func remove() {
        network.remove()
        workspace.remove()
    }

    private func mac(_ nic: Int) -> [UInt8] { [0x52, 0x54, 0, 0, 0, UInt8(0x10 + nic)] }
    private func guestIP(_ nic: Int) -> [UInt8] { [10, 9, UInt8(nic), 2] }
    private func ownIP(_ nic: Int) -> [UInt8] { [10, 9, UInt8(nic), 1] }

    private func make(waiting: Bool) throws -> Guest {
        var shape = GuestQEMU.Shape()
        shape.memoryMiB = 128
        shape.checkMiB = 8
        shape.dirtyPagesPerSecond = 500
        shape.networkNamespace = network.path
        var nics: [GuestNIC] = []
        for index in 0..<nicCount {
            let tap = "tap\(number)n\(index)"
            let nic = GuestNIC(
                index: index, netdev: "hostnet\(index)", hostDevice: tap, mac: mac(index),
                usesHeader: true)
            nics.append(nic)
            shape.arguments += [
                "-netdev",
                "tap,id=\(nic.netdev),ifname=\(tap),script=no,downscript=no,vhost=off"
                    + (isPlain ? ",vnet_hdr=off" : ""),
                "-device", "virtio-net-pci,netdev=\(nic.netdev),mac=\(nic.macText)",
            ]
            let ip = guestIP(index).map(String.init).joined(separator: ".")
            shape.kernelArguments.append("ftvm.ip\(index == 0 ? "" : "\(index)")=\(ip)/24")
        }
        let qemu = try GuestQEMU(shape, in: workspace.directory, number: number, waiting: waiting)
        let socket = workspace.directory.appendingPathComponent("q\(number).sock").path
        number += 1
        return Guest(
            qemu: qemu, socket: socket, nics: nics,
            wires: try nics.map { try network.wire($0.hostDevice) })
    }

    func start() throws -> Guest {
        let guest = try make(waiting: false)
        _ = try guest.qemu.waitForReport()
        return guest
    }

    func startWaiting() throws -> Guest { try make(waiting: true) }

    /// The guest gets to know who will ask it: it asks for their addresses by itself, but this takes no time.
    func meet(_ guest: Guest) {
        for (index, wire) in guest.wires.enumerated() {
            let ready = (0..<200).contains { _ in
                wire.ping(77_777, to: (mac(index), guestIP(index)), from: ownIP(index))
                return wire.frames(1, seconds: 0.05) { GateWire.answer($0) == 77_777 }.count > 0
            }
            #expect(ready, "NIC \(index) answers")
        }
        usleep(50_000)
        for wire in guest.wires { wire.forget() }
    }

    /// An echo request to each NIC for each number.
    func ping(_ numbers: [Int], _ guest: Guest) {
        for number in numbers {
            for (index, wire) in guest.wires.enumerated() {
                wire.ping(number, to: (mac(index), guestIP(index)), from: ownIP(index))
            }
        }
    }

    func wait(_ what: String, seconds: Double = 20, _ condition: () throws -> Bool) throws {
        let deadline = Date().addingTimeInterval(seconds)
        while !(try condition()) {
            guard Date() < deadline else { throw FtvmError(.timedOut, "in vain: \(what)") }
            usleep(2_000)
        }
    }

    // MARK: - Drivers

    private func withLock<Result>(_ body: (Int32) throws -> Result) throws -> Result {
        let lock = try segment.openLock()
        defer { close(lock) }
        try PrimaryLock.acquire(lock)
        return try body(lock)
    }

    func takeOver(_ guest: Guest) throws -> PrimaryDriver {
        let memory = try GuestMemory.locate(
            monitor: guest.qemu.monitor, expectedBytes: segment.memoryBytes)
        return try withLock { lock in
            try PrimaryDriver.takeOver(
                process: guest.qemu.qemu, memory: memory, monitor: guest.qemu.monitor,
                segment: segment, generation: Generation(1), lock: lock,
                injector: GuestQEMU.injector, nics: guest.nics, progress: { _ in })
        }
    }

    /// A world with one guest that has been pinged and is protected.
    static func protecting(
        nics: Int = 1
    ) throws -> (world: GateWorld, guest: Guest, driver: PrimaryDriver) {
        let world = try GateWorld(nics: nics)
        do {
            let guest = try world.start()
            world.meet(guest)
            return (world, guest, try world.takeOver(guest))
        } catch {
            world.remove()
            throw error
        }
    }

    func adopt(_ guest: Guest, reconnecting: Bool = false) throws -> PrimaryDriver {
        try PrimaryDriver.adopt(
            process: guest.qemu.qemu, segment: segment, generation: segment.position.generation,
            injector: GuestQEMU.injector, nics: guest.nics,
            connect: {
                guard reconnecting else { return guest.qemu.monitor }
                guest.qemu.monitor.interrupt()
                return try QMPConnection(path: guest.socket, label: "adopted")
            })
    }

    /// - Parameter beforeCommit: called when the guest is about to run; nil is given back when it ends the guest.
    func promote(
        _ guest: Guest, _ generation: Generation, beforeCommit: ((Guest) -> Void)? = nil
    ) throws -> (driver: PrimaryDriver, report: PromotionReport)? {
        let monitor: any Monitor =
            beforeCommit.map { body in
                WrappedMonitor(guest.qemu.monitor, beforeCont: { body(guest) })
            } ?? guest.qemu.monitor
        let secondary = try WaitingSecondary.prepare(
            process: guest.qemu.qemu, monitor: monitor, segment: segment,
            injector: GuestQEMU.injector, nics: guest.nics)
        // A second look finds what is there.
        _ = try WaitingSecondary.prepare(
            process: guest.qemu.qemu, monitor: monitor, segment: segment,
            injector: GuestQEMU.injector, nics: guest.nics)
        #expect(
            try guest.qemu.monitor.objects().filter { $0.hasPrefix("ftvm-") }.count
                == 3 * nicCount)
        try segment.takeManagerLock()
        try segment.raiseGeneration(to: generation)
        do {
            return try withLock { lock in
                try PrimaryDriver.promote(
                    secondary, segment: segment, generation: generation, lock: lock,
                    machine: "pc-i440fx-7.2", injector: GuestQEMU.injector)
            }
        } catch  where beforeCommit != nil {
            return nil
        }
    }

    /// Little room for frames that nobody collects.
    func shrinkSockets(_ guest: Guest, bytes: Int32) throws {
        var bytes = bytes
        for number in guest.qemu.qemu.descriptors(linkedTo: "socket:") {
            let descriptor = try guest.qemu.qemu.duplicate(descriptor: number)
            defer { close(descriptor) }
            for option in [SO_SNDBUF, SO_RCVBUF] {
                setsockopt(
                    descriptor, SOL_SOCKET, option, &bytes, socklen_t(MemoryLayout<Int32>.size))
            }
        }
    }

    /// What QEMU has: objects, character devices, descriptors.
    func inventory(_ guest: Guest) -> [String] {
        let monitor = guest.qemu.monitor
        return ((try? monitor.objects()) ?? ["?"]).sorted()
            + ((try? monitor.characterDevices()) ?? ["?"]).sorted()
            + guest.qemu.qemu.descriptorLinks().sorted()
    }
}
