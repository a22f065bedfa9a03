import CLinux
import Foundation
import Glibc
import Hypervisor

/// How a QEMU ends. The kernel marks a thread that is ending (PF_EXITING, set first of all in `do_exit`, kernel/exit.c);
/// it never returns to user mode. What comes after that, taking the memory apart, grows with the guest's memory and
/// writes none of it; only then is the process gone for those who wait for it, and its descriptors are closed.
extension QEMUProcess {
    /// After SIGKILL: waits until no thread of the process can run a user instruction again.
    ///
    /// Writes that were under way in the kernel are not of this kind: the guest stands still, and `stop` has waited
    /// for its block I/O; frames that the tap still delivers go to QEMU's own threads, which are ending.
    /// - Returns: false when that is not certain after the time given.
    package func waitUntilHarmless(milliseconds: Int) -> Bool {
        let deadline = MonotonicClock.nowNanoseconds() + UInt64(milliseconds) * 1_000_000
        while true {
            if isEnding { return true }
            guard MonotonicClock.nowNanoseconds() < deadline else { return false }
            usleep(100)
        }
    }

    /// No thread of the process runs a user instruction again. Costs one look into /proc while the process lives.
    package var isEnding: Bool {
        // Not of a later process with the same number.
        guard let stat = readSmallFile("/proc/\(processID)/stat"), let first = ThreadState(stat),
            first.startTicks == startTicks
        else { return true }
        // The first thread may have ended before the others.
        guard first.isEnding else { return false }
        let directory = "/proc/\(processID)/task"
        let threads = (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
        // A thread that has gone meanwhile is no thread.
        return threads.allSatisfy { thread in
            guard let stat = readSmallFile("\(directory)/\(thread)/stat") else { return true }
            return ThreadState(stat)?.isEnding ?? false
        }
    }

    /// Whether the process, which was not asked to stop before it was ended, can have asked a device to write into its
    /// memory past the kernel's caches (O_DIRECT): such a write may come when none of its threads runs any more. True
    /// as well when that is not to be seen any more.
    package var mayHaveDirectIO: Bool {
        let tasks = "/proc/\(processID)/task"
        let threads = (try? FileManager.default.contentsOfDirectory(atPath: tasks)) ?? []
        // Threads share their descriptors, but one that has let go of them shows none.
        for thread in threads {
            let directory = "\(tasks)/\(thread)/fd"
            guard let numbers = try? FileManager.default.contentsOfDirectory(atPath: directory),
                !numbers.isEmpty
            else { continue }
            return numbers.contains { number in
                guard let text = readSmallFile("\(tasks)/\(thread)/fdinfo/\(number)") else {
                    return true
                }
                return Self.isDirect(fdinfo: text) && isFile("\(directory)/\(number)")
            }
        }
        return true
    }

    /// proc(5), /proc/PID/fdinfo: `flags:` and the octal flags of the open file.
    package static func isDirect(fdinfo: String) -> Bool {
        let line = fdinfo.split(whereSeparator: \.isNewline).first { $0.hasPrefix("flags:") }
        guard let word = line?.split(whereSeparator: \.isWhitespace).last,
            let flags = UInt32(word, radix: 8)
        else { return true }
        return flags & ftvm_direct_flag() != 0
    }

    /// A regular file or a block device; pipes have the same flag for something else.
    private func isFile(_ path: String) -> Bool {
        var found = stat()
        guard stat(path, &found) == 0 else { return true }
        let kind = found.st_mode & S_IFMT
        return kind == S_IFREG || kind == S_IFBLK
    }
}
