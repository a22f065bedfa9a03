import CLinux
import Glibc
import Model

/// What an opener of a segment may do with it.
package enum SegmentAccess: String, Sendable {
    case read, write
}

/// Places in a segment's file `lock`, each one byte long, for locks of the open file description
/// (fcntl F_OFD_SETLK). The kernel drops such a lock when the last process that has the description
/// is gone, so a free lock is a proof, for hosts that share a kernel, that its holder is dead.
package enum SegmentLockByte: UInt64, Sendable {
    /// Held by the primary's QEMU.
    case primary = 0
    /// Held by the `ftvmd` that writes the undo log and the commits.
    case manager = 1
    /// Held by whoever is creating the segment.
    case creation = 2
    /// Held by the `ftvmd` of a dead primary that still reads what the network sends to it.
    case input = 3
    /// The byte's offset, as fcntl wants it.
    package var offset: Int64 {
        self == .creation ? Int64(rawValue) : Int64(rawValue) + 8 * FaultPoint.foreignKernel
    }
    var range: Range<Int64> { offset..<offset + 1 }
    /// Of those who use the segment; who reads the last input only adds to a log.
    static let all: Range<Int64> = 0..<3
}

/// One VM's place in a pool, mapped into this process.
///
/// May be used from any thread at any time: everything immutable, `position`, `undoHead`, `flags`,
/// `overflowEpoch`, `insertFlags`, `removeFlags`, `compareAndSetPosition`, `latestCommit`, `dump`,
/// `openLock`, `openRAMReadOnly`. **Needs the caller's lock** (the page tracker's): `appendUndo`,
/// `markOverflow`, `publish`, `rollBack`, `adopt`, `raiseGeneration`, `uncommittedPages` and the
/// `undo...` figures other than `undoHead`.
///
/// The crash contract: the process may be killed between any two instructions, and the segment then
/// still has exactly one commit that `rollBack` leads to. What keeps that so is the order of stores
/// in `appendUndo` and `publish`. What the segment cannot see is a *second writer* that was
/// believed dead: promotion must therefore prove that both the old QEMU and the old manager are
/// gone (`takeManagerLock`), before it rolls back.
package final class Segment: @unchecked Sendable {
    package let pool: PoolName
    package let name: String
    package let header: SegmentHeader
    package let access: SegmentAccess

    /// Guest RAM, `memoryBytes` long; only readable with access `.read`.
    package let ram: UnsafeMutableRawPointer
    /// Descriptor of the RAM file, close-on-exec and owned by the segment; O_RDWR with access
    /// `.write`, O_RDONLY with `.read`.
    package var ramDescriptor: Int32 { ramFile.number }
    /// The same of the memory object that the first `objectBytes` of RAM are in; nil: all of it is in the RAM file.
    package var objectDescriptor: Int32? { objectFile?.number }
    package var objectBytes: UInt64 { header.objectBytes }
    package var memoryBytes: UInt64 { header.memoryBytes }
    package let pageSizeBytes: Int
    package let pageCount: UInt64
    package let undoCapacity: UInt64

    let control: UnsafeMutableRawPointer
    let positionWord: UnsafeMutablePointer<UInt64>
    let undoHeadWord: UnsafeMutablePointer<UInt64>
    let flagsWord: UnsafeMutablePointer<UInt64>
    let overflowWord: UnsafeMutablePointer<UInt64>
    private let releaseAddressWord: UnsafeMutablePointer<UInt64>
    private let releasedWord: UnsafeMutablePointer<UInt64>
    /// Frames that the guest sent; nil in a segment of version 1.0.
    package let outputLog: FrameLog?
    /// Frames that reached the guest; nil in a segment of version 1.0.
    package let inputLog: FrameLog?
    let undoIndex: UnsafeMutableRawPointer
    let undoImages: UnsafeMutableRawPointer

    /// Sequence number of the first undo entry that a rollback would use, as of the last `adopt`,
    /// `raiseGeneration` or `publish` through this object.
    @exclusivity(unchecked) package internal(set) var currentUndoStart: UInt64 = 0
    /// The generation that this object writes for; `noGeneration` before `adopt` or
    /// `raiseGeneration`.
    @exclusivity(unchecked) var writerGeneration: UInt64 = Segment.noGeneration
    static let noGeneration = UInt64.max

    let storage: any SegmentStorage
    private let ramFile: OwnedDescriptor
    private let objectFile: OwnedDescriptor?
    private let ramMapping: Mapping
    private let controlMapping: Mapping
    private var managerLock: OwnedLock?

    init(
        pool: PoolName, name: String, access: SegmentAccess, storage: any SegmentStorage,
        ramFile: OwnedDescriptor, controlFile: OwnedDescriptor
    ) throws {
        let writable = access == .write
        let what = "segment '\(name)' of pool '\(pool)'"
        let fileBytes = try controlFile.fileBytes("the control file of \(what)")
        guard fileBytes >= SegmentFormat.recordsOffset else {
            throw FtvmError(
                .dataCorrupted, "\(what) has no header",
                cause: "its control file is \(fileBytes) bytes long")
        }
        controlMapping = try Mapping(
            controlFile, bytes: fileBytes, writable: writable, "the control file of \(what)")
        do {
            header = try SegmentHeader(
                controlFile: UnsafeRawBufferPointer(
                    start: controlMapping.address, count: controlMapping.bytes))
        } catch {
            throw FtvmError(wrapping: error, "\(what) cannot be used")
        }
        let ownBytes = try ramFile.fileBytes("the RAM of \(what)")
        let object =
            header.objectBytes > 0 ? try storage.open(.object, of: name, writable: writable) : nil
        let ramBytes = try ownBytes + (object?.fileBytes("the RAM of \(what)") ?? 0)
        guard fileBytes == header.controlFileBytes, ramBytes == header.ramFileBytes,
            ramBytes - ownBytes == header.objectBytes
        else {
            throw FtvmError(
                .dataCorrupted, "\(what) cannot be used",
                cause: "its files are \(ramBytes) and \(fileBytes) bytes long, "
                    + "the header says \(header.ramFileBytes) and \(header.controlFileBytes)")
        }
        objectFile = object
        let (objectBytes, alignment) = (header.objectBytes, header.pageSizeBytes)
        ramMapping =
            try object.map {
                try Mapping(
                    $0, bytes: objectBytes, then: ramFile, bytes: ownBytes,
                    alignment: alignment, writable: writable, "the RAM of \(what)")
            }
            ?? Mapping(ramFile, bytes: ramBytes, writable: writable, "the RAM of \(what)")
        self.pool = pool
        self.name = name
        self.access = access
        self.storage = storage
        self.ramFile = ramFile
        ram = ramMapping.address
        pageSizeBytes = Int(header.pageSizeBytes)
        pageCount = header.pageCount
        undoCapacity = header.undoCapacity
        control = controlMapping.address
        let live = control + Int(header.live.offset)
        func word(_ offset: Int) -> UnsafeMutablePointer<UInt64> {
            (live + offset).assumingMemoryBound(to: UInt64.self)
        }
        positionWord = word(SegmentFormat.livePosition)
        undoHeadWord = word(SegmentFormat.liveUndoHead)
        flagsWord = word(SegmentFormat.liveFlags)
        overflowWord = word(SegmentFormat.liveOverflowEpoch)
        releaseAddressWord = word(SegmentFormat.liveReleaseAddress)
        releasedWord = word(SegmentFormat.liveReleased)
        let controlStart = control
        func log(_ area: SegmentArea, _ head: Int) -> FrameLog? {
            guard area.bytes > 0 else { return nil }
            return FrameLog(
                base: controlStart + Int(area.offset), capacityBytes: area.bytes,
                headWord: word(head), writable: writable)
        }
        outputLog = log(header.outputLog, SegmentFormat.liveOutputHead)
        inputLog = log(header.inputLog, SegmentFormat.liveInputHead)
        undoIndex = control + Int(header.undoIndex.offset)
        undoImages = control + Int(header.undoImages.offset)
    }

    /// `segment 'demo' of pool 'main'`, for messages.
    var title: String { "segment '\(name)' of pool '\(pool)'" }

    func requireWriteAccess() {
        precondition(access == .write, "the segment was opened for reading only")
    }
}

// MARK: - Files

extension Segment {
    /// A new O_RDONLY descriptor of the RAM file, close-on-exec, which the caller closes. The
    /// kernel itself then refuses a writable shared mapping.
    package func openRAMReadOnly() throws -> Int32 { try openReadOnly(ramFile) }

    /// The same of the memory object; nil: there is none.
    package func openObjectReadOnly() throws -> Int32? { try objectFile.map(openReadOnly) }

    private func openReadOnly(_ file: OwnedDescriptor) throws -> Int32 {
        let what = "the RAM of \(title)"
        let opened = try file.reopened(writable: false, what)
        let copied = fcntl(opened.number, F_DUPFD_CLOEXEC, 0)
        guard copied >= 0 else { throw systemError(lastErrno(), "cannot hand over \(what)") }
        return copied
    }

    /// A new O_RDWR descriptor of the lock file with an open file description of its own (so its
    /// locks conflict with all others), close-on-exec, which the caller closes.
    package func openLock() throws -> Int32 {
        let opened = try storage.open(.lock, of: name, writable: true)
        let copied = fcntl(opened.number, F_DUPFD_CLOEXEC, 0)
        guard copied >= 0 else {
            throw systemError(lastErrno(), "cannot hand over the lock of \(title)")
        }
        return copied
    }

    /// A new O_RDWR descriptor of the disks' redo log, close-on-exec, which the caller closes; nil: the segment has none.
    package func openDiskLog() throws -> Int32? {
        let opened: OwnedDescriptor
        do {
            opened = try storage.open(.disk, of: name, writable: true)
        } catch let error as FtvmError where error.code == .notFound {
            return nil
        }
        let copied = fcntl(opened.number, F_DUPFD_CLOEXEC, 0)
        guard copied >= 0 else {
            throw systemError(lastErrno(), "cannot hand over the disk log of \(title)")
        }
        return copied
    }

    /// Path of the lock file, nil in a memfd pool; prefer `openLock`.
    package var lockPath: String? { storage.path(of: .lock, of: name) }

    /// Fills this process's page tables for the undo log and, if asked, for guest RAM, so that no
    /// append has to take a page fault. Takes 1-2 us for each page of 4 KiB, and three times that
    /// for a new segment, whose pages the kernel clears only now: call it when nobody waits.
    package func populate(ram includingRAM: Bool) throws {
        let writable = access == .write
        try controlMapping.populate(writable: writable, "the control file of \(title)")
        if includingRAM { try ramMapping.populate(writable: false, "the RAM of \(title)") }
    }

    /// Whether anybody, this object included, holds a lock of the segment: with `.primary`, whether
    /// the primary's QEMU may still exist.
    package func isLocked(_ byte: SegmentLockByte) throws -> Bool {
        let file = try storage.open(.lock, of: name, writable: false)
        let result = ftvm_lock_query(file.number, byte.offset, 1)
        guard result >= 0 else { throw systemError(result, "cannot ask for a lock of \(title)") }
        return result == 1
    }

    /// Becomes the segment's manager, until this object goes or `releaseManagerLock`; needs the
    /// caller's lock. Throws `.conflict` while another `ftvmd` is it: that one is then not fenced.
    package func takeManagerLock() throws {
        guard managerLock == nil else { return }
        let file = try storage.open(.lock, of: name, writable: true)
        guard
            let lock = try OwnedLock.attempt(
                file, SegmentLockByte.manager.range, "the manager's place of \(title)")
        else {
            throw FtvmError(
                .conflict, "another ftvmd still manages \(title)",
                advice: "end that ftvmd, or fence its host, before this one goes on")
        }
        managerLock = lock
    }

    package func releaseManagerLock() { managerLock = nil }
}

// MARK: - Live words

extension Segment {
    /// The generation that may commit and the epoch that was committed last.
    package var position: SegmentPosition {
        SegmentPosition(word: ftvm_atomic_load_u64(positionWord))
    }

    /// Replaces the position if it still is `expected`; says whether it did.
    package func compareAndSetPosition(
        _ expected: SegmentPosition, _ desired: SegmentPosition
    ) -> Bool {
        requireWriteAccess()
        return ftvm_atomic_compare_exchange_u64(positionWord, expected.word, desired.word)
    }

    /// Entries ever published in the undo log.
    package var undoHead: UInt64 { ftvm_atomic_load_u64(undoHeadWord) }

    package var flags: SegmentFlags {
        SegmentFlags(rawValue: ftvm_atomic_load_u64(flagsWord))
    }

    package func insertFlags(_ added: SegmentFlags) {
        changeFlags { $0.union(added) }
    }

    package func removeFlags(_ removed: SegmentFlags) {
        changeFlags { $0.subtracting(removed) }
    }

    private func changeFlags(_ change: (SegmentFlags) -> SegmentFlags) {
        requireWriteAccess()
        while true {
            let before = flags
            let after = change(before)
            if before == after { return }
            if ftvm_atomic_compare_exchange_u64(flagsWord, before.rawValue, after.rawValue) {
                return
            }
        }
    }

    /// The epoch whose undo log overflowed; nil if none ever did. Rolling back is impossible until
    /// that epoch, or a later one, is committed.
    package var overflowEpoch: Epoch? {
        let word = ftvm_atomic_load_u64(overflowWord)
        return word == 0 ? nil : Epoch(min(word, Epoch.maximum))
    }

    /// Notes that the running epoch has pages without an undo entry. Call it *before* the first
    /// such page is unprotected. Needs the caller's lock.
    package func markOverflow(epoch: Epoch) {
        requireWriteAccess()
        while true {
            let before = ftvm_atomic_load_u64(overflowWord)
            if before >= epoch.number { return }
            if ftvm_atomic_compare_exchange_u64(overflowWord, before, epoch.number) { break }
        }
        FaultPoint.reached("segment.overflow.marked")
    }
}

extension Segment {
    /// Where the primary's QEMU has private memory that the guest's RAM is being moved into (`disable`), written down
    /// so that a release that was interrupted leaves nothing; 0: nowhere.
    package var releaseAddress: UInt64 {
        get { ftvm_atomic_load_u64(releaseAddressWord) }
        set {
            requireWriteAccess()
            ftvm_atomic_store_u64(releaseAddressWord, newValue)
        }
    }
}

extension Segment {
    /// Position in the output log below which every frame has been written to the network.
    package var releasedOutput: UInt64 {
        get { ftvm_atomic_load_u64(releasedWord) }
        set {
            requireWriteAccess()
            ftvm_atomic_store_u64(releasedWord, newValue)
        }
    }
}

// MARK: - Generations

extension Segment {
    /// Takes up writing for a generation that already is the segment's: a restarted `ftvmd`.
    ///
    /// Throws `.conflict` if the segment has moved on (this primary is fenced), `.dataCorrupted` if
    /// the current commit record cannot be read. Needs the caller's lock.
    package func adopt(_ generation: Generation) throws {
        requireWriteAccess()
        let present = position
        guard present.generation == generation else {
            throw fenced(generation, present)
        }
        writerGeneration = generation.number
        try refreshUndoStart()
    }

    /// Raises the generation, keeping the epoch, and takes up writing for it: from now on no commit
    /// of an older generation can succeed.
    ///
    /// Throws `.conflict` if the present generation is already as high; `.dataCorrupted`, with the
    /// generation raised nevertheless, if the current commit record cannot be read. Needs the
    /// caller's lock.
    @discardableResult
    package func raiseGeneration(to generation: Generation) throws -> SegmentPosition {
        requireWriteAccess()
        while true {
            let present = position
            guard present.generation < generation else {
                throw FtvmError(
                    .conflict,
                    "the generation of \(title) cannot be raised to \(generation)",
                    cause: "it already is \(present.generation)",
                    advice: "read the pair's record again: somebody else may have promoted it")
            }
            FaultPoint.reached("segment.generation.read")
            let raised = SegmentPosition(generation: generation, epoch: present.epoch)
            if compareAndSetPosition(present, raised) {
                FaultPoint.reached("segment.generation.raised")
                writerGeneration = generation.number
                try refreshUndoStart()
                return raised
            }
        }
    }

    func fenced(_ generation: Generation, _ present: SegmentPosition) -> FtvmError {
        FtvmError(
            .conflict, "generation \(generation) of \(title) has been fenced",
            cause: "the segment is at \(present)",
            advice: "this primary must end and release nothing")
    }

    private func refreshUndoStart() throws {
        currentUndoStart = try latestCommit()?.undoStart ?? 0
    }
}
