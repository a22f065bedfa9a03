// The processes that the tests of ClusterStore, Heartbeat and Fencing start and kill. It says on
// standard output, line by line, how far it has come, and ends when its standard input ends or it
// is killed.

import ClusterStore
import Fencing
import Foundation
import Glibc
import Heartbeat
import Model
import Synchronization

let words = CommandLine.arguments.dropFirst().map { $0 }

/// Not `print`, whose buffer would keep the line.
func say(_ text: String) {
    let bytes = Array("\(text)\n".utf8)
    _ = write(1, bytes, bytes.count)
}

func number(_ index: Int) -> Int {
    guard words.indices.contains(index), let number = Int(words[index]) else {
        say("bad argument \(index) of \(words)")
        exit(2)
    }
    return number
}

func waitForEnd() {
    while readLine() != nil {}
}

switch words.first {
case "hold-lock":
    // hold-lock PATH: a primary.
    let descriptor = open(words[1], O_RDWR)
    try PrimaryLock.acquire(descriptor)
    say("holds")
    waitForEnd()

case "pass-lock":
    // pass-lock PATH SOCKET: takes the lock and hands the descriptor to another process.
    let descriptor = open(words[1], O_RDWR)
    try PrimaryLock.acquire(descriptor)
    guard send(descriptor, through: CInt(number(2))) else { exit(1) }
    say("passed")
    waitForEnd()

case "receive-lock":
    // receive-lock SOCKET: keeps what it is handed.
    guard let descriptor = receive(from: CInt(number(1))) else { exit(1) }
    say("received \(descriptor)")
    waitForEnd()

case "beat":
    // beat PATH HOST INCARNATION MILLISECONDS
    let heart = try PoolHeartbeat.claimSlot(
        path: words[1], host: HostName(words[2]), incarnation: UInt64(number(3)))
    heart.startBeating(periodNanoseconds: UInt64(number(4)) * 1_000_000)
    say("beats in slot \(heart.slot)")
    waitForEnd()

case "claim-and-die":
    // claim-and-die PATH HOST INCARNATION POINT: dies by SIGKILL at the fault point.
    let point = words[4]
    FaultPoint.hook = { if $0 == point { kill(getpid(), SIGKILL) } }
    let heart = try PoolHeartbeat.claimSlot(
        path: words[1], host: HostName(words[2]), incarnation: UInt64(number(3)))
    say("survived in slot \(heart.slot)")

case "count":
    // count STORE TIMES: raises the number under "counter", by compare-and-swap, so many times.
    let store = try SQLiteStore(path: words[1])
    var lost = 0
    for _ in 0..<number(2) {
        while try await raise("counter", in: store) == false { lost += 1 }
    }
    say("counted, \(lost) lost")

case "write-on":
    // write-on STORE: writes n = 1, 2, ... and says each n after it has been written.
    let store = try SQLiteStore(path: words[1])
    var n = 0
    while true {
        n += 1
        try await store.put("written", Data("\(n)".utf8), expecting: .any)
        say("\(n)")
    }

case "udp-beat":
    // udp-beat HOST INCARNATION ADDRESS:PORT PEER ADDRESS:PORT: says every 20 ms which number it
    // heard last, and which of its own was heard by the peer last.
    let last = LastHeard()
    let beat = try UDPHeartbeat(
        .init(
            cluster: "test", key: ClusterKey(bytes: [UInt8](repeating: 7, count: 32)),
            host: HostName(words[1]), incarnation: UInt64(number(2)), local: UDPEndpoint(words[3]),
            periodNanoseconds: 20_000_000)
    ) { last.take($0) }
    beat.setPeers([HeartbeatPeer(host: HostName(words[4]), endpoint: try UDPEndpoint(words[5]))])
    let speaker = Thread {
        while true {
            say(last.text)
            usleep(20_000)
        }
    }
    speaker.start()
    waitForEnd()

default:
    say("unknown: \(words)")
    exit(2)
}

/// What `udp-beat` says.
final class LastHeard: Sendable {
    private let state = Mutex((heard: UInt64(0), heardUs: UInt64(0)))
    var text: String { state.withLock { "\($0.heard) \($0.heardUs)" } }
    func take(_ arrival: HeartbeatArrival) {
        state.withLock {
            $0.heard = arrival.sequence
            if let us = arrival.heardUs { $0.heardUs = us.sequence }
        }
    }
}

/// False: somebody else was first.
func raise(_ key: String, in store: SQLiteStore) async throws(FtvmError) -> Bool {
    let entry = try await store.get(key)
    let old = entry.flatMap { Int(String(decoding: $0.value, as: UTF8.self)) } ?? 0
    let expectation = entry.map { StoreExpectation.revision($0.revision) } ?? .absent
    do {
        try await store.put(key, Data("\(old + 1)".utf8), expecting: expectation)
        return true
    } catch {
        guard error.code == .conflict else { throw error }
        return false
    }
}

// MARK: Descriptors through sockets (unix(7), SCM_RIGHTS)

func withMessage(_ body: (inout msghdr, UnsafeMutableRawPointer) -> Int) -> Int {
    // Room for one descriptor: cmsghdr (16 bytes), the descriptor, padding.
    let controlBytes = 24
    var byte: UInt8 = 1
    let control = UnsafeMutableRawPointer.allocate(byteCount: controlBytes, alignment: 8)
    defer { control.deallocate() }
    control.initializeMemory(as: UInt8.self, repeating: 0, count: controlBytes)
    return withUnsafeMutableBytes(of: &byte) { bytes in
        var vector = iovec(iov_base: bytes.baseAddress, iov_len: 1)
        return withUnsafeMutablePointer(to: &vector) { vectors in
            var message = msghdr()
            message.msg_iov = vectors
            message.msg_iovlen = 1
            message.msg_control = control
            message.msg_controllen = controlBytes
            return body(&message, control)
        }
    }
}

func send(_ descriptor: CInt, through socket: CInt) -> Bool {
    withMessage { message, control in
        // struct cmsghdr: length with header, SOL_SOCKET, SCM_RIGHTS.
        control.storeBytes(of: 20, as: Int.self)
        control.storeBytes(of: SOL_SOCKET, toByteOffset: 8, as: CInt.self)
        control.storeBytes(of: 1, toByteOffset: 12, as: CInt.self)
        control.storeBytes(of: descriptor, toByteOffset: 16, as: CInt.self)
        return sendmsg(socket, &message, 0)
    } == 1
}

func receive(from socket: CInt) -> CInt? {
    var descriptor: CInt = -1
    let count = withMessage { message, control in
        let count = recvmsg(socket, &message, 0)
        if count == 1, message.msg_controllen >= 20 {
            descriptor = control.load(fromByteOffset: 16, as: CInt.self)
        }
        return count
    }
    return count == 1 && descriptor >= 0 ? descriptor : nil
}
