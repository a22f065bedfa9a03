import CLinux
import DiskLog
import Foundation
import Glibc
import Hypervisor
import MemoryPool
import Model

/// A pair's disks on this host: the log in the segment, the plugin that serves it, and QEMU's way to them.
///
/// A supervisor restarts a plugin that ends; QEMU's requests wait meanwhile. All calls block; one at a time, but for those of the
/// epoch thread (`PairDisks+Epochs.swift`).
package final class PairDisks: @unchecked Sendable {
    package let log: DiskLogFile
    /// As the domain of this host has them.
    package let disks: [GuestDisk]
    package let plugin: DiskPlugin
    private let work: DiskPlugin.Work

    private let lock = NSLock()
    // Under the lock:
    private var client: DiskServerClient?
    private var active: Generation?
    /// Raised whenever another supervisor begins, or none is wanted.
    private var supervision = 0
    private var failure: FtvmError?

    // Of whoever makes commits.
    var hold = DiskHold()

    /// The disks of a segment; nil when it has none.
    /// - Parameter disks: of the domain's XML on this host.
    /// - Throws: `.failedPrecondition` when they are not those of the log.
    package static func open(
        _ segment: Segment, disks: [GuestDisk], plugin: DiskPlugin
    ) throws -> PairDisks? {
        guard let descriptor = try segment.openDiskLog() else { return nil }
        let log = try DiskLogFile(descriptor: descriptor)
        let missing = log.disks.filter { logged in
            !disks.contains { $0.target == logged.name }
        }
        guard missing.isEmpty, disks.count == log.disks.count else {
            throw FtvmError(
                .failedPrecondition, "the domain's disks are not those that are protected",
                cause:
                    "protected: \(log.disks.map(\.name).joined(separator: ", ")); of the domain: "
                    + disks.map(\.target).joined(separator: ", "),
                advice: "detach or attach disks only while the domain is not enabled")
        }
        return PairDisks(log: log, disks: disks, plugin: plugin)
    }

    package init(log: DiskLogFile, disks: [GuestDisk], plugin: DiskPlugin) {
        self.log = log
        self.disks = disks
        self.plugin = plugin
        work = DiskPlugin.Work(
            log: log, images: disks.map { ($0.target, $0.path) },
            journal: DiskImages.journalPath(disks))
    }

    // MARK: - The plugin

    /// The plugin runs and is the writer of this generation; nil: one that waits.
    package func serve(_ generation: Generation?) throws {
        lock.withLock {
            active = generation
            supervision += 1
        }
        try plugin.inTurn { try install(obtain(generation)) }
        supervise()
    }

    /// The plugin that runs, or another in its place. In the pair's turn.
    private func obtain(_ generation: Generation?) throws -> DiskServerClient {
        if let found = plugin.running() {
            do {
                if let generation { try found.activate(generation) }
                return found
            } catch let error as FtvmError where error.code != .timedOut {
                // Of an earlier term, or one that has ended itself.
            }
        }
        try plugin.endNow()
        let started = try plugin.start(work)
        if let generation { try started.activate(generation) }
        return started
    }

    private func install(_ found: DiskServerClient) {
        lock.withLock {
            client = found
            failure = nil
        }
    }

    package var connection: DiskServerClient? { lock.withLock { client } }
    /// Why no plugin can be started, while that is so.
    package var serverFailure: FtvmError? { lock.withLock { failure } }

    private func supervise() {
        let mine = lock.withLock { () -> Int in
            supervision += 1
            return supervision
        }
        let thread = Thread { [weak self] in
            while true {
                // Not kept alive by this thread while it sleeps.
                guard let watched = self?.supervised(mine) else { return }
                var polled = pollfd(fd: watched?.descriptor ?? -1, events: 0, revents: 0)
                let changed = poll(&polled, 1, 100)
                if watched != nil, changed <= 0 { continue }
                self?.revive(mine)
            }
        }
        thread.stackSize = 512 << 10
        thread.start()
    }

    /// The connection to watch; nil: no longer by this thread.
    private func supervised(_ mine: Int) -> DiskServerClient?? {
        lock.withLock { supervision == mine ? .some(client) : nil }
    }

    /// The plugin has ended, and nobody has ended it on purpose.
    private func revive(_ mine: Int) {
        let wanted = lock.withLock { () -> Generation?? in
            guard supervision == mine else { return nil }
            client = nil
            return .some(active)
        }
        guard let generation = wanted else { return }
        // A log of another generation is another host's.
        if let generation, log.generation != generation.number { return unsupervise() }
        do {
            FaultPoint.reached("disks.plugin-lost")
            try plugin.inTurn {
                // Whoever came meanwhile has one that serves, or wants none.
                guard isWanted(mine) else { return }
                let obtained = try obtain(generation)
                guard isWanted(mine) else { return try plugin.endNow() }
                install(obtained)
            }
        } catch {
            let error = FtvmError(wrapping: error, "the disk server cannot be started again")
            lock.withLock { failure = error }
            usleep(200_000)
        }
    }

    private func isWanted(_ mine: Int) -> Bool { lock.withLock { supervision == mine } }

    private func unsupervise() {
        lock.withLock {
            supervision += 1
            client = nil
        }
    }

    /// - Parameter endingPlugin: nobody needs it any more; otherwise it serves on without us.
    package func close(endingPlugin: Bool) {
        unsupervise()
        if endingPlugin { try? plugin.end() }
    }

    // MARK: - A primary

    /// Makes the log the one of this generation, with a plugin that writes for it; nothing in QEMU has changed yet. What an
    /// earlier term has left in the log belongs to the images.
    package func takeUp(_ generation: Generation) throws {
        if log.generation < generation.number {
            try plugin.end()
            try log.recover(position: log.head, generation: generation)
        }
        try serve(generation)
        FaultPoint.reached("disks.taken-up")
    }

    /// QEMU reads and writes through the plugin from here on.
    package func attach(_ monitor: any Monitor) throws {
        try monitor.serveDisks(disks, socket: plugin.socket)
        FaultPoint.reached("disks.attached")
    }

    /// A promotion: the old QEMU is proven gone. What its last commit does not cover is dropped, and the plugin of this host
    /// becomes the writer. To be done before the device state is loaded: QEMU reads its images' metadata anew with it.
    func promote(_ record: CommitRecord, _ generation: Generation) throws {
        try log.recover(
            position: record.logs.disk, generation: generation,
            patience: Self.oldServerMilliseconds)
        FaultPoint.reached("disks.recovered")
        try serve(generation)
        FaultPoint.reached("disks.promoted")
    }

    /// An old plugin may be in the middle of a group, and its storage slow.
    private static let oldServerMilliseconds = 5_000

    // MARK: - Giving back

    /// While commits go on: waits until little is left to apply, at most this long.
    package func drain(seconds: UInt64) {
        let deadline = MonotonicClock.nowNanoseconds() + seconds * 1_000_000_000
        while log.usedBytes > Self.littleBytes, MonotonicClock.nowNanoseconds() < deadline,
            log.status.failure == nil
        {
            usleep(10_000)
        }
    }

    private static let littleBytes: UInt64 = 4 << 20
    /// How long the guest may stand still for the rest.
    private static let lastNanoseconds: UInt64 = 20_000_000_000

    /// The guest stands still and no state of it is gone back to any more: everything in the log goes to the images, and QEMU opens
    /// them. May be repeated; does nothing to disks that are images already.
    package func giveBack(_ process: QEMUProcess, _ monitor: any Monitor) throws {
        if try monitor.servedDisks(disks).isEmpty {
            // With what it has left half done.
            try monitor.openImages(disks)
            return
        }
        try serve(Generation(log.generation))
        log.publishSealed(log.head)
        connection?.ring()
        FaultPoint.reached("disks.last-sealed")
        let deadline = MonotonicClock.nowNanoseconds() + Self.lastNanoseconds
        while log.applied < log.head {
            if let failure = log.status.failure ?? serverFailure?.description {
                throw notGivenBack(failure)
            }
            guard MonotonicClock.nowNanoseconds() < deadline else {
                throw notGivenBack("the storage is too slow")
            }
            usleep(1_000)
            connection?.ring()
        }
        FaultPoint.reached("disks.last-applied")
        try connection?.releaseImages()
        for disk in disks where !disk.isDevice { process.own(disk.path) }
        try monitor.openImages(disks)
    }

    /// A take-over has come to nothing: whatever was done of it, QEMU has its images in the end.
    func abandon(_ process: QEMUProcess, _ monitor: any Monitor, _ segment: Segment) throws {
        if try !monitor.servedDisks(disks).isEmpty, try monitor.status().running {
            segment.insertFlags(.pausedByCommit)
            willStop()
            try monitor.stop(timeoutMilliseconds: Committer.stopTimeoutMilliseconds)
        }
        try giveBack(process, monitor)
        log.isStopping = false
        try end()
    }

    private func notGivenBack(_ cause: String) -> FtvmError {
        FtvmError(
            .failedPrecondition,
            "the disks cannot be given back: not everything is in their images",
            cause: cause, advice: "nothing is lost; make room on their storage, or repair it")
    }

    /// QEMU has its images again: nothing of ours is needed any more.
    package func end() throws {
        unsupervise()
        try plugin.end()
        if let journal = work.journal { unlink(journal) }
        FaultPoint.reached("disks.ended")
    }
}

extension QEMUProcess {
    /// Gives a file to this QEMU's user, as libvirt does when it starts a domain: another host's libvirt may have taken it back.
    fileprivate func own(_ path: String) {
        var status = stat()
        guard stat("/proc/\(processID)", &status) == 0 else { return }
        chown(path, status.st_uid, status.st_gid)
    }
}
