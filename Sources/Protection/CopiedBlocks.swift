import CLinux
import Hypervisor
import MemoryPool
import Model

/// RAM blocks that stay QEMU's own memory, since they are no whole number of the segment's pages: with huge pages ROMs
/// and UEFI variables, which are hardly ever written. What was written since the last commit is copied into the segment
/// by the next one, where the old content goes to the undo log first. Under the tracker's lock.
struct CopiedBlocks {
    static let pageBytes: UInt64 = 4096
    let blocks: [GuestMemory.Block]
    private let process: QEMUProcess
    private let firstOffset: UInt64
    private var touched: [Bool]
    private var touchedCount = 0

    /// What was written before is not known: the next commit compares everything.
    init?(_ blocks: [GuestMemory.Block], of process: QEMUProcess) {
        guard let first = blocks.first, let last = blocks.last else { return nil }
        self.blocks = blocks
        self.process = process
        firstOffset = first.offset
        let pages = Int((last.end - first.offset + Self.pageBytes - 1) / Self.pageBytes)
        touched = [Bool](repeating: true, count: pages)
        touchedCount = pages
    }

    /// They are what the segment says.
    mutating func areCommitted() {
        touchedCount = 0
        for index in touched.indices { touched[index] = false }
    }

    var isTouched: Bool { touchedCount > 0 }

    mutating func note(address: UInt64) {
        for block in blocks where address >= block.hostAddress && address < block.hostEnd {
            let offset = block.offset + (address - block.hostAddress) - firstOffset
            let page = Int(offset / Self.pageBytes)
            if !touched[page] {
                touched[page] = true
                touchedCount += 1
            }
        }
    }

    /// Copies what was written into the segment. The guest stands still.
    /// - Parameters:
    ///   - protect: called for each stretch before it is read.
    ///   - log: puts a page of the segment into the undo log; says whether it may be changed.
    mutating func commit(
        into segment: Segment, protect: (_ address: UInt64, _ length: UInt64) throws -> Void,
        log: (_ page: UInt64) -> Bool
    ) throws {
        guard isTouched else { return }
        var logged = UInt64.max
        var page = [UInt8](repeating: 0, count: Int(Self.pageBytes))
        for block in blocks {
            var done: UInt64 = 0
            while done < block.lengthBytes {
                defer { done += Self.pageBytes }
                let offset = block.offset + done
                let index = Int((offset - firstOffset) / Self.pageBytes)
                guard touched[index] else { continue }
                try protect(block.hostAddress + done, Self.pageBytes)
                touched[index] = false
                touchedCount -= 1
                let got = ftvm_process_vm_read(
                    process.processID, &page, block.hostAddress + done, page.count)
                guard got == page.count else { throw Self.cannotCopy(process) }
                let target = UnsafeMutableRawBufferPointer(
                    start: segment.ram + Int(offset), count: page.count)
                if target.elementsEqual(page) { continue }
                let segmentPage = offset / UInt64(segment.pageSizeBytes)
                if logged != segmentPage {
                    guard log(segmentPage) else { return }
                    logged = segmentPage
                }
                target.copyBytes(from: page)
            }
        }
        // What lies behind the last block belongs to none.
        areCommitted()
    }

    /// Writes the segment's copies into a QEMU that has not run yet.
    static func restore(
        _ blocks: [GuestMemory.Block], of process: QEMUProcess, from segment: Segment
    ) throws {
        for block in blocks {
            let written = ftvm_process_vm_write(
                process.processID, segment.ram + Int(block.offset), block.hostAddress,
                Int(block.lengthBytes))
            guard written == Int(block.lengthBytes) else { throw cannotCopy(process) }
        }
    }

    private static func cannotCopy(_ process: QEMUProcess) -> FtvmError {
        FtvmError(
            .unavailable, "cannot copy RAM blocks of QEMU (process \(process.processID))",
            cause: "it has ended, or one of its devices was removed")
    }
}

extension PageTracker {
    /// The first commit of this tracker compares all copied blocks, wherever they are: what was written before is not known.
    func adopt(copied blocks: [GuestMemory.Block]) throws {
        try withLock {
            copied = CopiedBlocks(blocks, of: process)
            try protectCopiedLocked()
        }
    }

    func protectCopiedLocked() throws {
        for block in copied?.blocks ?? [] {
            try expect(
                ftvm_uffd_register_wp(uffd, block.hostAddress, block.lengthBytes),
                "register RAM blocks with userfaultfd")
            try expect(
                ftvm_uffd_protect(uffd, block.hostAddress, block.lengthBytes),
                "write-protect RAM blocks")
        }
    }

    /// A fault outside of the mapped blocks. The page may be written until the next commit.
    func handleCopied(address: UInt64) {
        let page = address & ~(CopiedBlocks.pageBytes - 1)
        copied?.note(address: page)
        _ = ftvm_uffd_unprotect(uffd, page, CopiedBlocks.pageBytes)
    }

    /// Brings the copies up to date, at the change of epochs. The caller holds the lock.
    /// - Returns: whether anything was written to the undo log.
    func commitCopiedLocked() throws -> Bool {
        guard let segment, var blocks = copied, blocks.isTouched else { return false }
        let before = segment.undoHead
        defer { copied = blocks }
        try blocks.commit(into: segment) { address, length in
            try expect(ftvm_uffd_protect(uffd, address, length), "write-protect RAM blocks again")
        } log: { page in
            log(segment, page, 1)
        }
        return segment.undoHead != before
    }
}
