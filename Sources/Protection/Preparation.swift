import CLinux
import Glibc
import Hypervisor
import Injection
import MemoryPool
import Model

/// What a primary's QEMU has in it of ours: tracker's userfaultfd, device-state file and pipe, and the primary lock. QEMU holds
/// the lock as long as it lives; our copy is for giving it back when QEMU does not run any more but has not ended yet.
struct Preparation {
    let uffd: Int32
    let channel: DeviceStateChannel
    let lock: Int32

    /// Puts everything into the QEMU in one session, together with the mapping that makes the segment its
    /// memory, where it is given.
    /// - Parameter savesInPassing: commits are to be made so, and the QEMU needs the pipe for it.
    static func install(
        in process: QEMUProcess, lock: Int32, injector: InjectorProcess, savesInPassing: Bool,
        mapping: [InjectionOperation] = []
    ) throws -> Preparation {
        let device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC)
        guard device >= 0 else {
            throw FtvmError(
                .unsupported, "cannot open /dev/userfaultfd",
                cause: String(cString: strerror(errno)),
                advice: "ftvm needs Linux 6.4 or newer with CONFIG_USERFAULTFD, and root")
        }
        defer { Glibc.close(device) }
        let pipe = savesInPassing ? try StatePipe.make() : nil
        defer { if let pipe { Glibc.close(pipe.writer) } }
        let file: Int32
        do {
            file = try DeviceStateChannel.makeMemoryFile(pipe: pipe?.writer)
        } catch {
            if let pipe { Glibc.close(pipe.reader) }
            throw error
        }
        let operations: [InjectionOperation] =
            mapping + [
                .userfaultfd(device: device), .install(descriptor: file),
                .install(descriptor: lock),
            ] + (pipe.map { [.install(descriptor: $0.writer)] } ?? [])
        do {
            let results = try injector.run(in: process, operations)
            let first = mapping.count
            let uffd = try process.duplicate(descriptor: Int32(results[first]))
            let handshake = ftvm_uffd_api(uffd, ftvm_uffd_features())
            guard handshake == 0 else {
                Glibc.close(uffd)
                throw FtvmError(
                    .unsupported, "this kernel's userfaultfd lacks what the page tracker needs",
                    cause: "write protection of shared memory and of unpopulated pages",
                    advice: "ftvm needs Linux 6.4 or newer")
            }
            let copy = fcntl(lock, F_DUPFD_CLOEXEC, 0)
            guard copy >= 0 else {
                Glibc.close(uffd)
                throw FtvmError(
                    .resourceExhausted, "cannot keep the primary lock",
                    cause: String(cString: strerror(errno)))
            }
            return Preparation(
                uffd: uffd,
                channel: DeviceStateChannel(
                    descriptor: file, remote: Int32(results[first + 1]),
                    pipe: pipe.map {
                        StatePipe(reader: $0.reader, remote: Int32(results[first + 3]))
                    }),
                lock: copy)
        } catch {
            Glibc.close(file)
            if let pipe { Glibc.close(pipe.reader) }
            throw error
        }
    }

    /// What a former ftvmd has put into the QEMU; nil when it is not all there.
    static func found(in process: QEMUProcess, lockFile: Int32) throws -> Preparation? {
        guard let remote = process.descriptors(linkedTo: uffdLink).first,
            let remoteLock = process.descriptors(ofSameFileAs: lockFile).first,
            let channel = try DeviceStateChannel.found(in: process)
        else { return nil }
        do {
            let uffd = try process.duplicate(descriptor: remote)
            do {
                let lock = try process.duplicate(descriptor: remoteLock)
                return Preparation(uffd: uffd, channel: channel, lock: lock)
            } catch {
                Glibc.close(uffd)
                throw error
            }
        } catch {
            channel.close()
            throw error
        }
    }

    /// Takes everything of ours out of a QEMU that goes on unprotected. Its vCPUs do not wait for a tracker
    /// any more, its memory stays mapped as it is, and the primary lock becomes free.
    /// - Parameters:
    ///   - lockFile: the segment's lock, by device and inode, wherever QEMU has it; nil: leave it.
    ///   - moving: what gives a stopped guest other memory, done first.
    static func remove(
        from process: QEMUProcess, lockFile: Int32?,
        injector: InjectorProcess, moving: [InjectionOperation] = []
    ) throws {
        // Before anything is injected: the thread that we stop may be waiting for a tracker. Not before memory is moved:
        // a guest that somebody has resumed would write to what has been copied already. It waits until QEMU's and
        // our descriptor of the userfaultfd are closed.
        if moving.isEmpty { try process.releaseFaults() }
        var remotes = process.descriptors(linkedTo: uffdLink)
        remotes += DeviceStateChannel.descriptors(in: process)
        if let lockFile { remotes += process.descriptors(ofSameFileAs: lockFile) }
        let operations = moving + remotes.map { InjectionOperation.close(remote: $0) }
        if !operations.isEmpty { _ = try injector.run(in: process, operations) }
    }

    func closeAll() {
        Glibc.close(uffd)
        channel.close()
        Glibc.close(lock)
    }

    static let uffdLink = "anon_inode:[userfaultfd]"
}
