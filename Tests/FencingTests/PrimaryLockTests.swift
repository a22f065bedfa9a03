import Fencing
import Glibc
import Model
import Testing

/// A `lock` file of its own for each test, on tmpfs as in a pool.
private final class LockFile {
    let path: String

    init() throws {
        var template = Array("/dev/shm/ftvm-lock-XXXXXX".utf8CString)
        let descriptor = mkstemp(&template)
        try #require(descriptor >= 0)
        close(descriptor)
        path = String(decoding: template.dropLast().map(UInt8.init(bitPattern:)), as: UTF8.self)
    }

    deinit { unlink(path) }

    func open() throws -> CInt {
        let descriptor = Glibc.open(path, O_RDWR | O_CLOEXEC)
        try #require(descriptor >= 0)
        return descriptor
    }

    var state: PrimaryLock.HolderState? { try? PrimaryLock.holderState(path: path) }
}

@Suite struct PrimaryLockTests {
    @Test func oneHolderAtATime() throws {
        let file = try LockFile()
        let first = try file.open()
        let second = try file.open()
        defer { close(second) }
        #expect(file.state == .free)

        try PrimaryLock.acquire(first)
        try PrimaryLock.acquire(first)  // our own again: no conflict
        #expect(file.state == .held)
        // Its own open file description does not see it; that is why one asks through another.
        #expect(try PrimaryLock.holderState(first) == .free)
        #expect(try PrimaryLock.holderState(second) == .held)
        do throws(FtvmError) {
            try PrimaryLock.acquire(second)
            Issue.record("two holders")
        } catch {
            #expect(error.code == .conflict)
        }

        try PrimaryLock.release(first)
        #expect(file.state == .free)
        try PrimaryLock.acquire(second)
        close(first)
        #expect(file.state == .held)
    }

    @Test func aDescriptorForReadingIsEnoughToAskButNotToTake() throws {
        let file = try LockFile()
        let holder = try file.open()
        defer { close(holder) }
        try PrimaryLock.acquire(holder)
        let reader = open(file.path, O_RDONLY | O_CLOEXEC)
        defer { close(reader) }
        #expect(try PrimaryLock.holderState(reader) == .held)
        try PrimaryLock.release(holder)
        #expect(try PrimaryLock.holderState(reader) == .free)
        #expect(throws: FtvmError.self) { try PrimaryLock.acquire(reader) }
    }

    @Test func noFileIsNoProof() {
        do throws(FtvmError) {
            let state = try PrimaryLock.holderState(path: "/dev/shm/ftvm-no-such-lock")
            Issue.record("\(state)")
        } catch {
            #expect(error.code == .notFound)
        }
        #expect(throws: FtvmError.self) { try PrimaryLock.holderState(-1) }
        #expect(throws: FtvmError.self) { try PrimaryLock.release(-1) }
    }

    @Test func theLockGoesWithItsProcess() throws {
        let file = try LockFile()
        let child = try Child(["hold-lock", file.path])
        #expect(child.line() == "holds")
        #expect(file.state == .held)
        let descriptor = try file.open()
        defer { close(descriptor) }
        #expect(throws: FtvmError.self) { try PrimaryLock.acquire(descriptor) }
        child.end()
        #expect(file.state == .free)
        try PrimaryLock.acquire(descriptor)
    }

    @Test func anInheritedDescriptorHoldsTheLockForItsHeir() throws {
        let file = try LockFile()
        let descriptor = try file.open()
        try PrimaryLock.acquire(descriptor)
        let child = try Child(path: "/bin/sleep", ["1000"], descriptors: [(descriptor, 9)])
        close(descriptor)
        #expect(file.state == .held)
        child.end()
        // A child that another test is just making has a copy of every descriptor until it has
        // called exec.
        let deadline = ContinuousClock.now + .seconds(5)
        while file.state == .held, ContinuousClock.now < deadline { usleep(1_000) }
        #expect(file.state == .free)
    }

    /// What ftvmd does: it takes the lock, passes it into QEMU, and may die at any moment after
    /// that.
    @Test func aPassedLockOutlivesWhoPassedIt() throws {
        let file = try LockFile()
        var sockets: [CInt] = [-1, -1]
        let kind = CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)
        let made = socketpair(AF_UNIX, kind, 0, &sockets)
        try #require(made == 0)
        let receiver = try Child(["receive-lock", "9"], descriptors: [(sockets[1], 9)])
        let passer = try Child(["pass-lock", file.path, "9"], descriptors: [(sockets[0], 9)])
        close(sockets[0])
        close(sockets[1])
        #expect(passer.line() == "passed")
        #expect(receiver.line()?.hasPrefix("received") == true)
        #expect(try PrimaryLock.isHeld(by: passer.pid, lockPath: file.path))
        #expect(try PrimaryLock.isHeld(by: receiver.pid, lockPath: file.path))
        passer.end()
        #expect(file.state == .held)
        #expect(try PrimaryLock.isHeld(by: receiver.pid, lockPath: file.path))
        receiver.end()
        #expect(file.state == .free)
    }

    /// A lock that is on its way in a socket when its sender dies is held until the socket is gone
    /// too.
    @Test func aLockInFlightIsHeld() throws {
        let file = try LockFile()
        var sockets: [CInt] = [-1, -1]
        let kind = CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)
        let made = socketpair(AF_UNIX, kind, 0, &sockets)
        try #require(made == 0)
        let passer = try Child(["pass-lock", file.path, "9"], descriptors: [(sockets[0], 9)])
        close(sockets[0])
        #expect(passer.line() == "passed")
        passer.end()
        #expect(file.state == .held)
        close(sockets[1])
        // Another test may be starting a process just now: until its exec the new process has a
        // copy of our end, and the kernel is right to say "held" for that long.
        for _ in 0..<1_000 where file.state == .held { usleep(5_000) }
        #expect(file.state == .free)
    }

    @Test func whoHoldsItIsToldApart() throws {
        let file = try LockFile()
        let child = try Child(["hold-lock", file.path])
        #expect(child.line() == "holds")
        let descriptor = try file.open()
        defer { close(descriptor) }
        // We have the file open too, but hold nothing.
        #expect(try PrimaryLock.isHeld(by: getpid(), lockPath: file.path) == false)
        #expect(try PrimaryLock.isHeld(by: child.pid, lockPath: file.path))
        child.end()
        #expect(throws: FtvmError.self) {
            try PrimaryLock.isHeld(by: child.pid, lockPath: file.path)
        }
        try PrimaryLock.acquire(descriptor)
        #expect(try PrimaryLock.isHeld(by: getpid(), lockPath: file.path))
        let other = try LockFile()
        #expect(try PrimaryLock.isHeld(by: getpid(), lockPath: other.path) == false)
    }
}

@Suite struct LockFencerTests {
    private let request = FenceRequest(
        pair: PairName("demo"), host: HostName("h1"), generation: Generation(3))

    @Test func onlyAFreeLockIsProof() async throws {
        let file = try LockFile()
        let fencer = LockFencer(lockPath: file.path)
        let child = try Child(["hold-lock", file.path])
        #expect(child.line() == "holds")
        #expect(
            await fencer.fence(request)
                == .unproven(reason: "its QEMU still holds the primary lock"))
        child.end()
        guard case .proven(let proof) = await fencer.fence(request) else {
            Issue.record("no proof of a dead process")
            return
        }
        #expect(proof.request == request)
        #expect(proof.method == .primaryLock)
    }

    @Test func aMissingFileIsNoProof() async {
        let outcome = await LockFencer(lockPath: "/dev/shm/ftvm-no-such-lock").fence(request)
        guard case .unproven(let reason) = outcome else {
            Issue.record("\(outcome)")
            return
        }
        #expect(reason.contains("cannot be opened"))
    }
}
