import CLinux
import Foundation
import Glibc
import Model
import Testing

/// A network namespace of a test's own, without IPv6, so that nobody but the test and the guests speaks in it.
final class GateNetwork {
    let path: String
    private let descriptor: Int32

    init(in directory: URL) throws {
        path = directory.appendingPathComponent("net").path
        _ = FileManager.default.createFile(atPath: path, contents: nil)
        let kept = ftvm_namespace_keep_network(path)
        guard kept == 0 else {
            throw FtvmError(
                .unsupported, "cannot make a network namespace",
                cause: String(cString: strerror(-kept)), advice: "run the tests as root")
        }
        descriptor = open(path, O_RDONLY | O_CLOEXEC)
        for name in ["all", "default"] {
            _ = try run(["sysctl", "-q", "-w", "net.ipv6.conf.\(name).disable_ipv6=1"])
        }
    }

    func remove() {
        close(descriptor)
        umount2(path, Int32(MNT_DETACH))
        unlink(path)
    }

    @discardableResult
    func run(_ words: [String]) throws -> String {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/nsenter")
        process.arguments = ["--net=" + path] + words
        let output = Pipe()
        process.standardOutput = output
        process.standardError = output
        try process.run()
        let text = String(
            decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        guard process.terminationStatus == 0 else {
            throw FtvmError(.internalError, "\(words) failed", cause: text)
        }
        return text
    }

    /// Somebody at the other end of a tap.
    func wire(_ tap: String) throws -> GateWire {
        try run(["ip", "link", "set", tap, "up"])
        let text = try run(["ip", "-o", "link", "show", "dev", tap])
        guard let index = text.split(separator: ":").first.flatMap({ Int32($0) }) else {
            throw FtvmError(.internalError, "no number of \(tap)", cause: text)
        }
        let all = UInt16(0x0003).bigEndian  // ETH_P_ALL
        let socket = ftvm_namespace_socket(
            descriptor, AF_PACKET, Int32(SOCK_RAW.rawValue), Int32(all))
        guard socket >= 0 else {
            throw FtvmError(
                .unsupported, "cannot make a packet socket",
                cause: String(cString: strerror(-socket)))
        }
        // struct sockaddr_ll: family, protocol, interface, and what only a received frame has.
        var address = [UInt8](repeating: 0, count: 20)
        withUnsafeBytes(of: UInt16(AF_PACKET)) { address.replaceSubrange(0..<2, with: $0) }
        withUnsafeBytes(of: all) { address.replaceSubrange(2..<4, with: $0) }
        withUnsafeBytes(of: index) { address.replaceSubrange(4..<8, with: $0) }
        let bound = address.withUnsafeBytes { bytes in
            bytes.withMemoryRebound(to: sockaddr.self) {
                bind(socket, $0.baseAddress, socklen_t(bytes.count))
            }
        }
        guard bound == 0 else {
            throw FtvmError(
                .unsupported, "cannot listen at \(tap)", cause: String(cString: strerror(errno)))
        }
        // A station that looks away for a while misses nothing.
        var bytes: Int32 = 32 << 20
        setsockopt(
            socket, SOL_SOCKET, Int32(33), &bytes, socklen_t(MemoryLayout<Int32>.size))  // SO_RCVBUFFORCE
        return GateWire(socket: socket)
    }
}

/// A station at the other end of a guest's tap: sends frames, sees frames, answers ARP.
final class GateWire {
    private let socket: Int32
    let mac: [UInt8] = [0x02, 0xfe, 0, 0, 0, 0x01]
    /// Everything that has come from the guest, ARP requests aside.
    private(set) var received: [[UInt8]] = []

    init(socket: Int32) { self.socket = socket }
    deinit { close(socket) }

    func send(_ frame: [UInt8]) {
        precondition(Glibc.send(socket, frame, frame.count, 0) == frame.count)
    }

    /// Takes in what waits.
    func poll() {
        var buffer = [UInt8](repeating: 0, count: 70_000)
        while true {
            var from = [UInt8](repeating: 0, count: 20)
            var length = socklen_t(from.count)
            let got = from.withUnsafeMutableBytes { bytes in
                bytes.withMemoryRebound(to: sockaddr.self) {
                    recvfrom(
                        socket, &buffer, buffer.count, Int32(MSG_DONTWAIT),
                        $0.baseAddress, &length)
                }
            }
            if got <= 0 { return }
            // sll_pkttype 4: sent by this very station.
            if from[10] == 4 { continue }
            let frame = Array(buffer[..<got])
            // The guest's own IPv6 (0x86dd): nobody here speaks it.
            if frame.count > 13, frame[12] == 0x86, frame[13] == 0xdd { continue }
            if answerARP(frame) { continue }
            received.append(frame)
        }
    }

    /// Waits for a number of frames that fit, or until the time is over; all that fit.
    func frames(
        _ count: Int, seconds: Double, where fits: ([UInt8]) -> Bool = { _ in true }
    ) -> [[UInt8]] {
        let deadline = Date().addingTimeInterval(seconds)
        while true {
            poll()
            let found = received.filter(fits)
            if found.count >= count || Date() > deadline { return found }
            usleep(1_000)
        }
    }

    func forget() {
        poll()
        received = []
    }

    private func answerARP(_ frame: [UInt8]) -> Bool {
        guard frame.count >= 42, frame[12] == 0x08, frame[13] == 0x06 else { return false }
        guard frame[20] == 0, frame[21] == 1 else { return true }
        // The guest's own announcement asks for itself.
        guard frame[28..<32] != frame[38..<42] else { return true }
        send(
            Array(frame[6..<12]) + mac + Array(frame[12..<20]) + [0, 2] + mac + frame[38..<42]
                + frame[22..<32])
        return true
    }

    // MARK: - ICMP echo

    /// An echo request whose answer says which it was.
    func ping(_ number: Int, to guest: (mac: [UInt8], ip: [UInt8]), from ip: [UInt8]) {
        send(guest.mac + mac + [0x08, 0x00] + Self.packet(8, number, from: ip, to: guest.ip))
    }

    /// Whether the frame is the guest's answer, byte for byte, except for the packet's own number and its sum.
    static func isAnswer(_ frame: [UInt8], _ number: Int) -> Bool {
        guard let found = answer(frame), found == number else { return false }
        let expected = Array(
            packet(0, number, from: Array(frame[26..<30]), to: Array(frame[30..<34])))
        return Array(frame[34...]) == Array(expected[20...])
    }

    /// The number of the request that the frame answers.
    static func answer(_ frame: [UInt8]) -> Int? {
        guard frame.count >= 42, frame[12] == 0x08, frame[13] == 0, frame[23] == 1, frame[34] == 0
        else { return nil }
        return Int(frame[38]) << 24 | Int(frame[39]) << 16 | Int(frame[40]) << 8 | Int(frame[41])
    }

    private static func packet(
        _ type: UInt8, _ number: Int, from: [UInt8], to: [UInt8]
    ) -> [UInt8] {
        let bytes = (0..<4).map { UInt8(truncatingIfNeeded: number >> (24 - 8 * $0)) }
        // Any length, also odd ones, all of it telling the number.
        let length = 20 + number * 37 % 1_400
        var echo = [type, 0, 0, 0] + bytes
        echo += (0..<length).map { UInt8(truncatingIfNeeded: number &* 11 &+ $0) }
        let sum = checksum(echo)
        echo[2] = UInt8(sum >> 8)
        echo[3] = UInt8(sum & 255)
        let total = 20 + echo.count
        var header: [UInt8] = [
            0x45, 0, UInt8(total >> 8), UInt8(total & 255), 0, 0, 0x40, 0, 64, 1, 0, 0,
        ]
        header += from + to
        let headerSum = checksum(header)
        header[10] = UInt8(headerSum >> 8)
        header[11] = UInt8(headerSum & 255)
        return header + echo
    }

    private static func checksum(_ bytes: [UInt8]) -> UInt32 {
        var sum: UInt32 = 0
        for index in stride(from: 0, to: bytes.count, by: 2) {
            sum += UInt32(bytes[index]) << 8
            if index + 1 < bytes.count { sum += UInt32(bytes[index + 1]) }
        }
        while sum > 0xffff { sum = sum & 0xffff + sum >> 16 }
        return ~sum & 0xffff
    }
}
