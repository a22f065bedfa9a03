import CLinux
import Foundation
import Glibc
import GuestSupport
import Hypervisor
import MemoryPool
import Model
import Protection
import Testing

/// Something in QEMU writes to the memory of a guest that stands still for a commit, after its devices were saved.
@Suite(.serialized) struct LateWriteTests {
    /// Changes a byte after each of so many saves, as QEMU would: through its own mapping. An even number of changes is none.
    private final class Writer {
        var writes = 0
        /// To a page that is not protected, in place of one that is.
        var wantsKeptPage = false
        private var protected: ProtectedGuest?
        private var address: UInt64?

        /// With a guest that it writes to.
        static func run(_ body: (Writer, ProtectedGuest) throws -> Void) throws {
            let writer = Writer()
            let protected = try ProtectedGuest { monitor in
                WrappedMonitor(monitor, afterSave: { writer.saved() })
            }
            writer.protected = protected
            defer {
                writer.protected = nil
                protected.end()
            }
            try body(writer, protected)
        }

        private func saved() {
            guard writes > 0, let protected else { return }
            writes -= 1
            let process = protected.guest.qemu.processID
            let tracker = protected.driver.committer.tracker
            guard let memory = tracker.memory.blocks.first else { return }
            let kept = tracker.keptPages.first { $0 * tracker.pageSizeBytes < memory.lengthBytes }
            if wantsKeptPage, address == nil {
                #expect(kept != nil, "pages are kept")
                address = kept.map { memory.hostAddress + $0 * tracker.pageSizeBytes }
            }
            let address = address ?? memory.hostAddress
            var byte: UInt8 = 0
            #expect(ftvm_process_vm_read(process, &byte, address, 1) == 1)
            byte ^= 1
            #expect(ftvm_process_vm_write(process, &byte, address, 1) == 1)
        }
    }

    @Test func theDevicesAreSavedAgain() throws {
        try Writer.run { (writer, protected) throws in
            let committer = protected.driver.committer
            #expect(try committer.commit().saves == 1)
            writer.writes = 2
            #expect(try committer.commit().saves == 3)
            #expect(try committer.commit().saves == 1)
        }
    }

    /// Pages that are touched all the time are not protected over a commit.
    @Test func aWriteToAKeptPageIsSeen() throws {
        try Writer.run { (writer, protected) throws in
            let committer = protected.driver.committer
            for _ in 1...30 {
                usleep(20_000)
                #expect(try committer.commit().saves == 1)
            }
            writer.wantsKeptPage = true
            writer.writes = 2
            #expect(try committer.commit().saves == 3)
            #expect(try committer.commit().saves == 1)
        }
    }

    @Test func whereTheyCannotBeSavedNothingIsCommitted() throws {
        try Writer.run { (writer, protected) throws in
            let committer = protected.driver.committer
            writer.writes = 1_000
            let before = protected.segment.position
            let error = #expect(throws: FtvmError.self) { try committer.commit() }
            #expect(error?.code == .unsupported, "\(error.debugDescription)")
            #expect(protected.segment.position == before)
            #expect(try protected.user.status().running)
            writer.writes = 0
            #expect(try committer.commit().epoch == before.epoch.next)
        }
    }
}
