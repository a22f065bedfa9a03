import CLinux
import Glibc

/// Why an injection could not be done; `step` names the system call and whose it was.
package struct InjectionError: Error, CustomStringConvertible {
    package let step: String
    /// errno's number; 0 when the reason is not an errno.
    package let number: Int32

    package init(_ step: String, _ number: Int32 = 0) {
        self.step = step
        self.number = number
    }

    package var description: String {
        number == 0 ? step : "\(step): \(String(cString: strerror(number)))"
    }
}

/// The system calls that are injected, with their numbers on x86-64, the only architecture so far.
package enum SystemCall: UInt64 {
    case close = 3
    case mmap = 9
    case munmap = 11
    case ioctl = 16
    case mremap = 25
    case madvise = 28
    case recvmsg = 47
    case socketpair = 53
    case dup3 = 292
}

/// One thread of another process, stopped, in which system calls can be made to run.
///
/// The thread is seized and interrupted (ptrace(2)), made to execute one `syscall` instruction that its
/// program already has, once for each call, and then put back exactly where it was: registers, signal
/// mask, and, where a call of its own was interrupted, that call begun again as the kernel would have done
/// it (the ERESTART codes; CRIU does the same). Other threads run on throughout.
///
/// The session must outlive its work: a tracer that dies here leaves the thread in the middle of somebody
/// else's registers. That is why `ftvm-inject` is a process of its own, which nobody has reason to kill.
package final class InjectionSession {
    private let pid: pid_t
    private let originalRegisters: user_regs_struct
    private let originalMask: UInt64
    private let syscallInstruction: UInt64
    private var finished = false

    /// How long the thread may take to stop, in milliseconds. A thread of a living QEMU stops at once.
    static let stopTimeoutMilliseconds = 2_000

    /// Stops the main thread of the process.
    package init(pid: pid_t) throws(InjectionError) {
        self.pid = pid
        let instruction = try InjectionSession.findSyscallInstruction(pid: pid)
        try check(ftvm_ptrace_seize(pid), "ptrace(SEIZE, \(pid))")
        var registers = user_regs_struct()
        var mask: UInt64 = 0
        do {
            try check(ftvm_ptrace_interrupt(pid), "ptrace(INTERRUPT, \(pid))")
            try InjectionSession.waitForStop(pid)
            try check(ftvm_ptrace_getregs(pid, &registers), "ptrace(GETREGS)")
            try check(ftvm_ptrace_getsigmask(pid, &mask), "ptrace(GETSIGMASK)")
            // SIGTRAP stays deliverable: a single step reports with it, and a blocked one would be reset.
            let blocked = ~(UInt64(1) << UInt64(SIGTRAP - 1))
            try check(ftvm_ptrace_setsigmask(pid, blocked), "ptrace(SETSIGMASK)")
        } catch {
            _ = ftvm_ptrace_detach(pid)
            throw error
        }
        originalRegisters = InjectionSession.restarting(registers)
        originalMask = mask
        syscallInstruction = instruction
    }

    deinit { finish() }

    /// Lets the thread go on as if nothing had been.
    package func finish() {
        guard !finished else { return }
        finished = true
        var registers = originalRegisters
        _ = ftvm_ptrace_setregs(pid, &registers)
        _ = ftvm_ptrace_setsigmask(pid, originalMask)
        _ = ftvm_ptrace_detach(pid)
    }

    /// Runs one system call in the thread. Gives its result; a negative one (-errno) is thrown.
    @discardableResult
    package func call(
        _ systemCall: SystemCall, _ arguments: UInt64...
    ) throws(InjectionError) -> UInt64 {
        precondition(!finished && arguments.count <= 6, "six arguments at most, in a live session")
        var registers = originalRegisters
        func argument(_ index: Int) -> UInt64 { index < arguments.count ? arguments[index] : 0 }
        registers.rip = syscallInstruction
        registers.rax = systemCall.rawValue
        registers.orig_rax = UInt64.max
        registers.rdi = argument(0)
        registers.rsi = argument(1)
        registers.rdx = argument(2)
        registers.r10 = argument(3)
        registers.r8 = argument(4)
        registers.r9 = argument(5)
        try check(ftvm_ptrace_setregs(pid, &registers), "ptrace(SETREGS)")
        try check(ftvm_ptrace_singlestep(pid), "ptrace(SINGLESTEP)")
        try InjectionSession.waitForStop(pid)
        try check(ftvm_ptrace_getregs(pid, &registers), "ptrace(GETREGS)")
        let result = Int64(bitPattern: registers.rax)
        if result < 0 && result > -4096 {
            throw InjectionError("\(systemCall) in process \(pid)", Int32(-result))
        }
        return registers.rax
    }

    /// Waits until the traced thread has stopped. Polls, since waitpid(2) knows no time-out: first
    /// spinning (a stop takes microseconds), then with short sleeps.
    private static func waitForStop(_ tid: pid_t) throws(InjectionError) {
        let deadline = monotonicNanoseconds() + UInt64(stopTimeoutMilliseconds) * 1_000_000
        var rounds = 0
        while true {
            var status: Int32 = 0
            let result = ftvm_wait_nohang(tid, &status)
            if result < 0 { throw InjectionError("waitpid(\(tid))", -result) }
            if result > 0 {
                guard ftvm_wait_stop(status) != 0 else {
                    throw InjectionError("process \(tid) has ended")
                }
                return
            }
            if monotonicNanoseconds() > deadline {
                throw InjectionError(
                    "thread \(tid) did not stop within \(stopTimeoutMilliseconds) ms")
            }
            rounds += 1
            if rounds < 200 { sched_yield() } else { usleep(100) }
        }
    }

    /// The registers with which the thread goes on: an interrupted system call is begun again.
    private static func restarting(_ registers: user_regs_struct) -> user_regs_struct {
        var registers = registers
        let result = Int64(bitPattern: registers.rax)
        if Int64(bitPattern: registers.orig_rax) >= 0 {
            switch result {
            case -512, -513, -514:  // ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND
                registers.rax = registers.orig_rax
                registers.rip -= 2
            case -516:  // ERESTART_RESTARTBLOCK: what it would go on with is lost; callers know EINTR
                registers.rax = UInt64(bitPattern: Int64(-EINTR))
            default: break
            }
        }
        registers.orig_rax = UInt64.max
        return registers
    }

    /// The address of a `syscall` instruction (0F 05) in the vDSO or, failing that, the C library.
    private static func findSyscallInstruction(pid: pid_t) throws(InjectionError) -> UInt64 {
        for region in try ProcessMaps(pid: pid).regions
        where region.executable && (region.path == "[vdso]" || region.path.contains("libc.so")) {
            var position = region.start
            var chunk = [UInt8](repeating: 0, count: 64 * 1024)
            while position < region.end {
                let wanted = min(UInt64(chunk.count), region.end - position)
                let got = ftvm_process_vm_read(pid, &chunk, position, Int(wanted))
                if got < 2 { break }
                for index in 0..<(got - 1) where chunk[index] == 0x0f && chunk[index + 1] == 0x05 {
                    return position + UInt64(index)
                }
                position += UInt64(got - 1)
            }
        }
        throw InjectionError("no syscall instruction found in process \(pid)")
    }
}

/// Throws when `result` is a negative errno.
@discardableResult
func check(_ result: Int32, _ step: @autoclosure () -> String) throws(InjectionError) -> Int32 {
    if result < 0 { throw InjectionError(step(), -result) }
    return result
}

func monotonicNanoseconds() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}
