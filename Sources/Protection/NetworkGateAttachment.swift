import CLinux
import Glibc
import Hypervisor
import Injection
import Model

/// What one of our sockets in QEMU is for. Its abstract address says so: whoever looks into QEMU's descriptors knows
/// them again, whatever became of the ftvmd that made them.
package struct GateSocketName: Hashable, Sendable {
    package enum Purpose: String, Sendable, CaseIterable {
        /// Frames that the guest sends.
        case output = "out"
        /// Copies of frames that reach the guest.
        case input = "in"
        /// Frames of a lost epoch, for the guest.
        case replay
    }

    package let purpose: Purpose
    package let nic: GuestNIC
    /// Makes the address unique: no other process can have taken it before.
    package let random: UInt32

    private static let prefix = "ftvm-gate"

    package var text: String {
        let mac = nic.macText.split(separator: ":").joined()
        let parts = [
            Self.prefix, "\(nic.index)", purpose.rawValue, nic.hostDevice, mac,
            nic.usesHeader ? "header" : "plain", String(random, radix: 16), nic.netdev,
        ]
        return parts.joined(separator: "/")
    }

    package init(purpose: Purpose, nic: GuestNIC, random: UInt32) {
        self.purpose = purpose
        self.nic = nic
        self.random = random
    }

    package init?(_ text: String) {
        let parts = text.split(separator: "/", maxSplits: 7, omittingEmptySubsequences: false)
        guard parts.count == 8, parts[0] == Self.prefix, let index = Int(parts[1]),
            let purpose = Purpose(rawValue: "\(parts[2])"), parts[4].utf8.count == 12,
            let mac = UInt64(parts[4], radix: 16), let random = UInt32(parts[6], radix: 16)
        else { return nil }
        self.purpose = purpose
        self.random = random
        nic = GuestNIC(
            index: index, netdev: "\(parts[7])", hostDevice: "\(parts[3])",
            mac: (0..<6).map { UInt8(truncatingIfNeeded: mac >> (40 - 8 * $0)) },
            usesHeader: parts[5] == "header")
    }
}

/// What a QEMU has in it of the network gate, and our descriptors of it (`Documentation/NetworkGate.md`): for each NIC
/// two filters and their sockets, and the tap. Descriptors in QEMU stay there when this process dies.
package final class GateAttachment: @unchecked Sendable {
    package struct Port: Sendable {
        package let nic: GuestNIC
        /// Our ends of the sockets.
        let output: Int32
        let input: Int32
        let replay: Int32
        /// QEMU's own open file of the tap.
        let tap: Int32

        package init(nic: GuestNIC, output: Int32, input: Int32, replay: Int32, tap: Int32) {
            self.nic = nic
            self.output = output
            self.input = input
            self.replay = replay
            self.tap = tap
        }
    }

    let ports: [Port]
    private let open: UnsafeMutablePointer<UInt64>

    /// The descriptors are its own from here on.
    package init(ports: [Port]) {
        self.ports = ports
        open = .allocate(capacity: 1)
        open.initialize(to: 1)
    }

    deinit {
        closeAll()
        open.deallocate()
    }

    /// Closes our descriptors: a tap lives as long as anybody has it open.
    func closeAll() {
        guard ftvm_atomic_compare_exchange_u64(open, 1, 0) else { return }
        for port in ports {
            for descriptor in [port.output, port.input, port.replay, port.tap] {
                Glibc.close(descriptor)
            }
        }
    }

    // MARK: - Names

    /// Of filters and of character devices.
    static func objectName(_ purpose: GateSocketName.Purpose, _ netdev: String) -> String {
        "ftvm-\(purpose.rawValue)-\(netdev)"
    }

    private static func isOurs(_ name: String) -> Bool {
        GateSocketName.Purpose.allCases.contains { name.hasPrefix("ftvm-\($0.rawValue)-") }
    }

    /// The name under which a descriptor goes over; the same for all, so that one which nobody took is known.
    private static let transferName = "ftvm-gate"

    /// Unread data that a socket takes: more than QEMU sends while we wait for it to answer. It does not go on while
    /// a socket is full, and would not answer either.
    private static let socketBytes: Int32 = 32 << 20

    private static func filters(of netdev: String) -> [NetFilter] {
        // The mirror first: what is replayed is not mirrored again.
        [
            NetFilter(
                kind: .mirror, id: objectName(.input, netdev), netdev: netdev, queue: .tx,
                end: "outdev"),
            NetFilter(
                kind: .redirector, id: objectName(.replay, netdev), netdev: netdev, queue: .tx,
                end: "indev"),
            NetFilter(
                kind: .redirector, id: objectName(.output, netdev), netdev: netdev, queue: .rx,
                end: "outdev"),
        ]
    }
}

// MARK: - Putting in, finding, taking out

extension GateAttachment {
    /// Puts a gate for every NIC into the QEMU, switched off. What an earlier try left is taken out first.
    static func install(
        in process: QEMUProcess, monitor: any Monitor, nics: [GuestNIC], injector: InjectorProcess
    ) throws -> GateAttachment {
        try GuestNIC.requireNoVHost(
            nics, descriptorLinks: process.descriptorLinks(), domain: monitor.label)
        try remove(from: process, monitor: monitor, injector: injector)
        FaultPoint.reached("gate.cleared")
        let taps = try Taps(of: process)
        defer { taps.closeRest() }
        var ports: [Port] = []
        var theirs: [[(GateSocketName.Purpose, Int32)]] = []
        func closeTheirs() { for (_, end) in theirs.joined() { Glibc.close(end) } }
        defer { closeTheirs() }
        for nic in nics {
            let tap = try taps.take(nic)
            var ends: [GateSocketName.Purpose: Int32] = [:]
            var other: [(GateSocketName.Purpose, Int32)] = []
            do {
                for purpose in GateSocketName.Purpose.allCases {
                    let pair = try makePair(purpose, nic)
                    ends[purpose] = pair.ours
                    other.append((purpose, pair.theirs))
                }
            } catch {
                for end in ends.values { Glibc.close(end) }
                for (_, end) in other { Glibc.close(end) }
                Glibc.close(tap)
                throw error
            }
            theirs.append(other)
            ports.append(
                Port(
                    nic: nic, output: ends[.output] ?? -1, input: ends[.input] ?? -1,
                    replay: ends[.replay] ?? -1, tap: tap))
        }
        let attachment = GateAttachment(ports: ports)
        _ = try injector.run(
            in: process,
            ports.flatMap { [$0.output, $0.input, $0.replay] }.map { .install(descriptor: $0) })
        FaultPoint.reached("gate.descriptors-installed")
        for (port, ends) in zip(ports, theirs) {
            for (purpose, end) in ends {
                try monitor.addSocketDevice(
                    id: objectName(purpose, port.nic.netdev), descriptor: end,
                    transferName: transferName)
            }
            FaultPoint.reached("gate.devices-added")
            for filter in filters(of: port.nic.netdev) { try monitor.addFilter(filter) }
        }
        FaultPoint.reached("gate.attached")
        return attachment
    }

    private static func makePair(
        _ purpose: GateSocketName.Purpose, _ nic: GuestNIC
    ) throws -> (ours: Int32, theirs: Int32) {
        var ends: [Int32] = [-1, -1]
        // QEMU reads the replay in pieces of its own; what it writes keeps its borders.
        let type = purpose == .replay ? ftvm_gate_stream() : ftvm_gate_seqpacket()
        let made = ftvm_gate_socketpair(type, socketBytes, &ends)
        guard made == 0 else {
            throw FtvmError(
                .resourceExhausted, "cannot make a socket pair for the network gate",
                cause: String(cString: strerror(-made)))
        }
        let name = GateSocketName(
            purpose: purpose, nic: nic, random: UInt32.random(in: .min ... .max))
        let named = ftvm_gate_set_name(ends[0], name.text)
        guard named == 0 else {
            for end in ends { Glibc.close(end) }
            throw FtvmError(
                .unsupported, "cannot name a socket of interface \(nic.macText)",
                cause: "\(name.text): \(String(cString: strerror(-named)))",
                advice: "give the interface a shorter alias")
        }
        return (ends[0], ends[1])
    }

    /// Our sockets that the QEMU has open.
    private static func sockets(
        in process: QEMUProcess
    ) throws -> [(name: GateSocketName, remote: Int32, descriptor: Int32)] {
        var found: [(GateSocketName, Int32, Int32)] = []
        var buffer = [CChar](repeating: 0, count: 128)
        for remote in process.descriptors(linkedTo: "socket:") {
            // One that has been closed since is none of ours.
            guard let descriptor = try? process.duplicate(descriptor: remote) else { continue }
            let length = ftvm_gate_get_name(descriptor, &buffer, buffer.count)
            let text = String(
                decoding: buffer.prefix(Int(max(0, length))).map { UInt8(bitPattern: $0) },
                as: UTF8.self)
            guard length > 0, let name = GateSocketName(text) else {
                Glibc.close(descriptor)
                continue
            }
            found.append((name, remote, descriptor))
        }
        return found
    }

    /// What a former ftvmd has put into the QEMU, without a word to QEMU, whose main thread may wait for somebody to
    /// empty a socket. Ports of which not everything is there are left out.
    static func found(in process: QEMUProcess) throws -> GateAttachment? {
        let sockets = try sockets(in: process)
        guard !sockets.isEmpty else { return nil }
        let taps = try Taps(of: process)
        defer { taps.closeRest() }
        var ports: [Port] = []
        var used: Set<Int32> = []
        for nic in Set(sockets.map(\.name.nic)).sorted(by: { $0.index < $1.index }) {
            func end(_ purpose: GateSocketName.Purpose) -> Int32? {
                let ends = sockets.filter { $0.name.nic == nic && $0.name.purpose == purpose }
                return ends.count == 1 ? ends[0].descriptor : nil
            }
            guard let output = end(.output), let input = end(.input), let replay = end(.replay),
                let tap = try? taps.take(nic)
            else { continue }
            used.formUnion([output, input, replay])
            ports.append(
                Port(nic: nic, output: output, input: input, replay: replay, tap: tap))
        }
        for socket in sockets where !used.contains(socket.descriptor) {
            Glibc.close(socket.descriptor)
        }
        return GateAttachment(ports: ports)
    }

    /// Whether QEMU has every filter of these NICs, and sockets that belong to them.
    func isComplete(for nics: [GuestNIC], monitor: any Monitor) throws -> Bool {
        let objects = Set(try monitor.objects())
        return ports.map(\.nic.netdev) == nics.map(\.netdev)
            && nics.allSatisfy { nic in
                Self.filters(of: nic.netdev).allSatisfy { objects.contains($0.id) }
            }
    }

    /// Filters that are there are switched. The guest must stand still for its frames to keep their order.
    func setFilters(on: Bool, monitor: any Monitor) throws {
        let objects = Set(try monitor.objects())
        for port in ports {
            for filter in Self.filters(of: port.nic.netdev) where objects.contains(filter.id) {
                try monitor.setFilter(id: filter.id, on: on)
                FaultPoint.reached("gate.filter-switched")
            }
        }
    }

    /// Takes everything of the gate out of the QEMU: frames go past us at once. What is in the sockets is lost.
    static func remove(
        from process: QEMUProcess, monitor: any Monitor, injector: InjectorProcess
    ) throws {
        for object in try monitor.objects() where isOurs(object) {
            try monitor.removeObject(id: object)
        }
        FaultPoint.reached("gate.filters-removed")
        for device in try monitor.characterDevices() where isOurs(device) {
            try monitor.removeCharacterDevice(id: device)
        }
        // One that went over and was not taken; that there is none is the rule.
        try? monitor.closeDescriptor(name: transferName)
        FaultPoint.reached("gate.devices-removed")
        let sockets = try sockets(in: process)
        defer { for socket in sockets { Glibc.close(socket.descriptor) } }
        guard !sockets.isEmpty else { return }
        _ = try injector.run(in: process, sockets.map { .close(remote: $0.remote) })
        FaultPoint.reached("gate.removed")
    }
}

// MARK: - Taps

/// The taps and macvtaps that a QEMU has open.
private final class Taps {
    private var found: [(name: String, descriptor: Int32)] = []
    private let process: QEMUProcess

    init(of process: QEMUProcess) throws {
        self.process = process
        var name = [CChar](repeating: 0, count: 16)
        for remote in process.tapDescriptors() {
            let descriptor = try process.duplicate(descriptor: remote)
            guard ftvm_tap_interface(descriptor, &name) == 0 else {
                close(descriptor)
                continue
            }
            let length = name.firstIndex(of: 0) ?? name.count
            let text = String(
                decoding: name[..<length].map { UInt8(bitPattern: $0) }, as: UTF8.self)
            found.append((text, descriptor))
        }
    }

    /// The NIC's tap, the caller's from here on.
    func take(_ nic: GuestNIC) throws -> Int32 {
        guard let index = found.firstIndex(where: { $0.name == nic.hostDevice }) else {
            throw FtvmError(
                .unsupported,
                "interface \(nic.macText) cannot be protected: QEMU has no tap \(nic.hostDevice)",
                cause: "process \(process.processID) has open: "
                    + (found.isEmpty ? "none" : found.map(\.name).joined(separator: ", ")),
                advice: "use a bridge or network")
        }
        return found.remove(at: index).descriptor
    }

    func closeRest() {
        for tap in found { close(tap.descriptor) }
        found = []
    }
}

extension QEMUProcess {
    /// Numbers of its open taps and macvtaps.
    func tapDescriptors() -> [Int32] {
        descriptors(linkedTo: "/dev/net/tun") + descriptors(linkedTo: "/dev/tap")
    }

    /// Taps that no NIC of these has: NICs that were added since. Looks into /proc only.
    func taps(besides nics: [GuestNIC]) -> [String] {
        let known = Set(nics.map(\.hostDevice))
        let names = descriptors(linkedTo: "/dev/net/tun").compactMap { number in
            readSmallFile("/proc/\(processID)/fdinfo/\(number)")?.split(whereSeparator: \.isNewline)
                .first { $0.hasPrefix("iff:") }
                .map { $0.dropFirst(4).drop { $0 == " " || $0 == "\t" } }.map(String.init)
        }
        return Set(names).subtracting(known).sorted()
    }
}
