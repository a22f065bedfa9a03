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
    /// Writes once after each of so many saves, as QEMU would: through its own mapping.
    private final class Writer {
        var writes = 0
        private var process: Int32 = 0
        private var address: UInt64 = 0

        func protect() throws -> ProtectedGuest {
            let protected = try ProtectedGuest { monitor in
                WrappedMonitor(monitor, afterSave: { self.saved() })
            }
            process = protected.guest.qemu.processID
            address = try #require(protected.driver.committer.tracker.memory.blocks.first)
                .hostAddress
            return protected
        }

        private func saved() {
            guard writes > 0 else { return }
            writes -= 1
            var byte: UInt8 = 0
            #expect(ftvm_process_vm_read(process, &byte, address, 1) == 1)
            #expect(ftvm_process_vm_write(process, &byte, address, 1) == 1)
        }
    }

    @Test func theDevicesAreSavedAgain() throws {
        let writer = Writer()
        let protected = try writer.protect()
        defer { protected.end() }
        let committer = protected.driver.committer
        #expect(try committer.commit().saves == 1)
        writer.writes = 2
        #expect(try committer.commit().saves == 3)
        #expect(try committer.commit().saves == 1)
    }

    @Test func whereTheyCannotBeSavedNothingIsCommitted() throws {
        let writer = Writer()
        let protected = try writer.protect()
        defer { protected.end() }
        let committer = protected.driver.committer
        writer.writes = .max
        let before = protected.segment.position
        let error = #expect(throws: FtvmError.self) { try committer.commit() }
        #expect(error?.code == .unsupported, "\(error.debugDescription)")
        #expect(protected.segment.position == before)
        #expect(try protected.user.status().running)
        writer.writes = 0
        #expect(try committer.commit().epoch == before.epoch.next)
    }
}
