import CLinux
import Glibc
import Hypervisor
import Model

/// The pipe into which QEMU saves its devices when it stops, saves and goes on in one command.
///
/// QEMU resumes the guest when it has written everything, and this pipe takes no more than a page until it is opened: so
/// the guest stands still from the first byte that can be read until `open`. When nobody reads from it any more
/// QEMU's save fails, and QEMU lets the guest go on.
final class StatePipe: @unchecked Sendable {
    private static let heldBytes: Int32 = 4_096
    private static let openBytes: Int32 = 1 << 20
    /// More than any state; more than the usual limit for pipes too, so not everybody may (CAP_SYS_RESOURCE).
    private static let foundBytes: Int32 = 16 << 20

    let reader: Int32
    /// The path under which QEMU opens it.
    let pathInQEMU: String
    private var state: [UInt8]
    /// What has been read since `begin`.
    private(set) var count = 0
    /// What QEMU can write without waiting for us.
    private var capacity = 0
    private(set) var isOpen = false
    private var isGivenUp = false

    init(reader: Int32, remote: Int32) {
        self.reader = reader
        pathInQEMU = "/proc/self/fd/\(remote)"
        state = [UInt8](repeating: 0, count: Int(Self.openBytes))
    }

    deinit { giveUp() }

    /// Nobody reads from it any more.
    func giveUp() {
        guard !isGivenUp else { return }
        isGivenUp = true
        Glibc.close(reader)
    }

    /// A new pipe: our end, which never blocks, and the one for QEMU, which may run as somebody else and opens it anew.
    static func make() throws -> (reader: Int32, writer: Int32) {
        var ends: [Int32] = [0, 0]
        let result = ftvm_pipe(&ends)
        guard result == 0 else { throw failure("make a pipe for the device state", -result) }
        _ = fcntl(ends[0], F_SETFL, O_NONBLOCK)
        fchmod(ends[1], 0o666)
        return (ends[0], ends[1])
    }

    /// The pipe that a former ftvmd has put into a QEMU.
    /// - Parameters:
    ///   - writer: QEMU's end, in our hands.
    ///   - remote: the same in QEMU.
    /// - Returns: nil when it cannot be opened.
    static func found(writer: Int32, remote: Int32) -> StatePipe? {
        let reader = Glibc.open("/proc/self/fd/\(writer)", O_RDONLY | O_NONBLOCK | O_CLOEXEC)
        guard reader >= 0 else { return nil }
        // QEMU may still be at the save that the dead one wanted, and must not wait for us with it: it answers nobody
        // before. When it has answered us that save is all in the pipe, and `begin` throws it away.
        guard
            ftvm_pipe_resize(reader, foundBytes) > 0 || ftvm_pipe_resize(reader, openBytes) > 0
        else {
            Glibc.close(reader)
            return nil
        }
        return StatePipe(reader: reader, remote: remote)
    }

    static func link(inode: UInt64) -> String { "pipe:[\(inode)]" }

    /// Nothing is in it, and QEMU's next save waits for `open`.
    func begin() throws {
        (count, isOpen) = (0, false)
        try take()
        count = 0
        let bytes = ftvm_pipe_resize(reader, Self.heldBytes)
        guard bytes > 0 else {
            throw Self.failure("narrow the pipe for the device state", -bytes)
        }
        capacity = Int(bytes)
    }

    /// QEMU may finish, and the guest goes on.
    func open() {
        isOpen = true
        // Or it is read in small parts.
        _ = ftvm_pipe_resize(reader, Self.openBytes)
    }

    /// Reads what there is.
    func take() throws {
        while true {
            if count == state.count { state += [UInt8](repeating: 0, count: state.count) }
            let got = state.withUnsafeMutableBytes { bytes in
                read(reader, bytes.baseAddress.map { $0 + count }, bytes.count - count)
            }
            if got > 0 {
                count += got
            } else if got == 0 || errno == EAGAIN {
                return
            } else if errno != EINTR {
                throw Self.failure("read the device state", errno)
            }
        }
    }

    /// Copies what QEMU has saved since `begin`.
    /// - Throws: `.unsupported` when it is no state that QEMU has waited with; `.resourceExhausted` when it does not fit.
    func copy(into slot: UnsafeMutableRawBufferPointer) throws -> Int {
        guard count > capacity, state.starts(with: "QEVM".utf8) else {
            throw FtvmError(
                .unsupported, "QEMU did not wait with its device state",
                cause: "it saved \(count) bytes, the pipe holds \(capacity)")
        }
        guard count <= slot.count else { throw DeviceStateChannel.doesNotFit(count, slot.count) }
        state.withUnsafeBytes {
            slot.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[..<count]))
        }
        return count
    }

    private static func failure(_ what: String, _ number: Int32) -> FtvmError {
        FtvmError(
            .resourceExhausted, "cannot \(what)", cause: String(cString: strerror(number)))
    }
}

/// What a commit has to do while QEMU stops, saves and goes on.
final class PassingAttendant: MonitorAttendant {
    private let output: HeldOutput?
    private let pipe: StatePipe
    private(set) var failure: (any Error)?

    init(_ output: HeldOutput?, _ pipe: StatePipe) {
        self.output = output
        self.pipe = pipe
    }

    var descriptors: [Int32] { output?.descriptors ?? [] }

    func attend() {
        output?.attend()
        guard pipe.isOpen else { return }
        do { try pipe.take() } catch { failure = error }
    }
}
