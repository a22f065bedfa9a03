import ArgumentParser
import Foundation
import GuestClients

struct CaptureCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "capture",
        abstract: "Watch what the guest sends from the switch's ports, and judge it.",
        discussion: """
            Frames are taken where they enter a port of the switch. A beacon number seen with two nonces, or bytes of \
            a TCP connection sent twice and not the same, are frames of an epoch that was never committed.
            """)
    @OptionGroup var common: CommonOptions
    @Option(help: "The guest's MAC addresses.") var mac: [String] = ["52:54:00:77:00:10"]

    func run() throws {
        let ending = common.ending()
        let macs = try mac.map { text in
            let bytes = text.split(separator: ":").compactMap { UInt8($0, radix: 16) }
            guard bytes.count == 6 else {
                throw ValidationError("'\(text)' is no MAC address.")
            }
            return bytes
        }
        let socket = try PacketSocket()
        if common.attended { tell(ClientProgress(least: 0, total: 0)) }
        var watch = Watch(macs: macs)
        var told = 0
        while !ending.hasCome {
            // Whatever else is on the switch never falls silent: the end of it must be looked for all the same.
            let pause = ContinuousClock.now + .milliseconds(50)
            while let frame = socket.next(milliseconds: 50) {
                watch.take(frame)
                if watch.frames - told >= 2_000 || ContinuousClock.now >= pause { break }
            }
            if common.attended, watch.frames != told {
                tell(ClientProgress(least: watch.frames, total: watch.frames))
            }
            told = watch.frames
        }
        // What is in the socket by now counts.
        while let frame = socket.next(milliseconds: 0) { watch.take(frame) }
        try common.finish(watch.report(dropped: socket.dropped))
    }
}

/// All the judges over one stream of frames.
private struct Watch {
    let macs: [[UInt8]]
    private(set) var frames = 0
    private var beacons = BeaconJudge()
    private var streams = StreamJudge()
    /// Each of the guest's cards for itself: their queues are separate.
    private var ports: [[UInt8]: PortJudge] = [:]

    init(macs: [[UInt8]]) { self.macs = macs }

    mutating func take(_ frame: PacketSocket.Frame) {
        let bytes = frame.bytes
        guard bytes.count >= 14, macs.contains(Array(bytes[6..<12])) else { return }
        frames += 1
        ports[Array(bytes[6..<12]), default: PortJudge()].judge(port: frame.port, at: frame.time)
        // Ethernet, IPv4 without fragments.
        guard bytes.count >= 34, bytes[12] == 8, bytes[13] == 0, bytes[14] >> 4 == 4 else { return }
        let header = Int(bytes[14] & 15) * 4
        let total = Int(bytes[16]) << 8 | Int(bytes[17])
        let transport = 14 + header
        let end = min(14 + total, bytes.count)
        guard header >= 20, end >= transport + 8 else { return }
        switch bytes[23] {
        case 17:
            if let beacon = Beacon(bytes[(transport + 8)..<end]) { beacons.judge(beacon) }
        case 6 where end >= transport + 20:
            takeTCP(bytes[..<end], at: transport)
        default: break
        }
    }

    private mutating func takeTCP(_ bytes: ArraySlice<UInt8>, at start: Int) {
        func word(_ offset: Int) -> UInt32 {
            bytes[offset..<(offset + 4)].reduce(0) { $0 << 8 | UInt32($1) }
        }
        let flow = StreamJudge.Flow(
            addresses: UInt64(word(26)) << 32 | UInt64(word(30)), ports: word(start))
        let sequence = word(start + 4)
        let flags = bytes[start + 13]
        let payload = start + Int(bytes[start + 12] >> 4) * 4
        if flags & 2 != 0 { streams.begin(flow, at: sequence &+ 1) }
        guard payload <= bytes.endIndex, flags & 2 == 0 else { return }
        streams.judge(flow, at: sequence, bytes[payload...])
    }

    func report(dropped: Int) -> CaptureReport {
        var report = CaptureReport()
        var findings = Findings()
        findings.add(beacons.findings)
        findings.add(streams.findings)
        report.frames = frames
        report.dropped = dropped
        report.beacons = beacons.count
        report.repeatedBeacons = beacons.repeated
        report.missingBeacons = beacons.missing
        report.repeatedBytes = streams.repeatedBytes
        for mac in macs {
            let name = mac.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }
            report.stretches[name.joined(separator: ":")] = ports[mac]?.stretches ?? []
        }
        report.violations = findings.violations
        report.violationCount = findings.count
        return report
    }
}

/// Frames as they enter the ports of the bridge, with the port's name.
private final class PacketSocket {
    struct Frame {
        let port: String
        let time: UInt64
        let bytes: [UInt8]
    }

    private let descriptor: Int32
    private var names: [UInt32: String] = [:]
    private var buffer = [UInt8](repeating: 0, count: 1 << 17)
    // Of linux/if_packet.h and linux/if_ether.h, which Swift's Glibc does not import.
    private static let allProtocols = Int32(UInt16(0x0003).bigEndian)
    private static let outgoing: UInt8 = 4
    private static let packetLevel: Int32 = 263
    private static let packetStatistics: Int32 = 6
    /// Its own interface is where the bridge repeats what the ports have had.
    private static let bridge = "lab0"

    init() throws {
        descriptor = socket(
            AF_PACKET, Int32(SOCK_RAW.rawValue) | Int32(SOCK_CLOEXEC.rawValue), Self.allProtocols)
        guard descriptor >= 0 else {
            throw ConnectionLost(
                description: "no packet socket: \(String(cString: strerror(errno)))")
        }
        var size: Int32 = 64 << 20
        // SO_RCVBUFFORCE: beyond what users may have.
        setsockopt(descriptor, SOL_SOCKET, 33, &size, socklen_t(MemoryLayout<Int32>.size))
    }

    deinit { close(descriptor) }

    /// The next frame that enters a port; nil when none comes for so long.
    func next(milliseconds: Int32) -> Frame? {
        while true {
            var poller = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            guard poll(&poller, 1, milliseconds) > 0 else { return nil }
            // struct sockaddr_ll: the interface's number is at 4, the kind of packet at 10.
            var address = [UInt8](repeating: 0, count: 32)
            var size = socklen_t(address.count)
            let got = address.withUnsafeMutableBytes { address in
                recvfrom(
                    descriptor, &buffer, buffer.count, 0,
                    address.baseAddress?.assumingMemoryBound(to: sockaddr.self), &size)
            }
            guard got > 0 else { continue }
            let number = address.withUnsafeBytes {
                $0.loadUnaligned(fromByteOffset: 4, as: UInt32.self)
            }
            let port = name(number)
            guard address[10] != Self.outgoing, port != Self.bridge, port != "lo" else { continue }
            return Frame(
                port: port, time: monotonicNanoseconds(), bytes: Array(buffer[..<got]))
        }
    }

    /// A port that was made anew for a restarted host has a new number.
    private func name(_ number: UInt32) -> String {
        if let name = names[number] { return name }
        var characters = [CChar](repeating: 0, count: 64)
        let name =
            if_indextoname(number, &characters) == nil
            ? "#\(number)"
            : String(decoding: characters.prefix { $0 != 0 }.map(UInt8.init), as: UTF8.self)
        if !name.hasPrefix("#") { names[number] = name }
        return name
    }

    /// Frames that the kernel had no room for.
    var dropped: Int {
        var counts: [UInt32] = [0, 0]
        var size = socklen_t(8)
        getsockopt(descriptor, Self.packetLevel, Self.packetStatistics, &counts, &size)
        return Int(counts[1])
    }
}
