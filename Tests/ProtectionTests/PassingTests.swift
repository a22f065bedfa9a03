import CLinux
import Foundation
import Glibc
import GuestSupport
import Hypervisor
import MemoryPool
import Model
import Protection
import Synchronization
import Testing

/// QEMU stops the guest, saves and lets it go on in one command, as through libvirt's monitor.
@Suite(.serialized) struct PassingTests {
    /// Runs something at a point of the commit, while `body` runs.
    private static func at(
        _ point: String, _ run: @escaping @Sendable () -> Void, during body: () throws -> Void
    ) throws {
        FaultPoint.hook = { if $0 == point { run() } }
        defer { FaultPoint.hook = nil }
        try body()
    }

    private func protectedGuest() throws -> ProtectedGuest {
        try ProtectedGuest { WrappedMonitor($0, savesInPassing: true) }
    }

    /// Whether QEMU says that the guest runs cannot be asked while QEMU waits: what it does is seen from its pages.
    @Test func theGuestStandsStillUntilTheEpochHasChanged() throws {
        let protected = try protectedGuest()
        defer { protected.end() }
        let committer = protected.driver.committer
        let touched = Mutex<[UInt64]>([])
        let tracker = committer.tracker
        for _ in 1...10 {
            usleep(20_000)
            let before = protected.segment.position
            try Self.at(
                "commit.passing",
                {
                    let first = tracker.touchedPages
                    usleep(20_000)
                    touched.withLock { $0 += [first, tracker.touchedPages] }
                }
            ) {
                let report = try committer.commit()
                #expect(report.epoch == before.epoch.next)
                #expect(report.stateBytes > 4_096)
                #expect(report.dirtyPages > 0)
            }
            #expect(protected.segment.position.epoch == before.epoch.next)
            #expect(try protected.user.status().running)
        }
        let counts = touched.withLock { $0 }
        #expect(counts.count == 20)
        for index in stride(from: 0, to: counts.count, by: 2) {
            #expect(counts[index] == counts[index + 1])
        }
    }

    @Test func aPausedGuestStaysSo() throws {
        let protected = try protectedGuest()
        defer { protected.end() }
        try protected.user.stop()
        #expect(try protected.driver.committer.commitRunning(.resume) == nil)
        try protected.driver.committer.commit()
        #expect(try !protected.user.status().running)
        try protected.user.cont()
        try protected.driver.committer.commit()
        #expect(try protected.user.status().running)
    }

    /// The page is logged in the epoch that goes on, and QEMU saves again.
    @Test func memoryThatChangesMeanwhileIsNotPublishedWithThatState() throws {
        let protected = try protectedGuest()
        defer { protected.end() }
        let committer = protected.driver.committer
        let process = protected.guest.qemu.processID
        let address = try #require(committer.tracker.memory.blocks.first?.hostAddress)
        let before = protected.segment.position
        let passes = Mutex(0)
        try Self.at(
            "commit.protected",
            {
                let pass = passes.withLock { count in
                    count += 1
                    return count
                }
                guard pass == 1 else { return }
                var byte: UInt8 = 0
                _ = ftvm_process_vm_read(process, &byte, address, 1)
                _ = ftvm_process_vm_write(process, &byte, address, 1)
            }
        ) { () throws in #expect(try committer.commit().epoch == before.epoch.next) }
        // The second time the guest was stopped for it.
        #expect(passes.withLock { $0 } == 2)
        #expect(try protected.user.status().running)
        try Self.at("commit.passing", { passes.withLock { $0 += 1 } }) {
            try committer.commit()
        }
        #expect(passes.withLock { $0 } == 3)
    }

    /// A later generation has begun meanwhile: nothing is written to the segment, and QEMU does not wait for ever.
    @Test func aFencedPrimaryPublishesNothing() throws {
        let protected = try protectedGuest()
        defer { protected.end() }
        try protected.driver.committer.commit()
        let segment = protected.segment
        let epoch = segment.position.epoch
        try Self.at("commit.passed", { _ = try? segment.raiseGeneration(to: Generation(2)) }) {
            () throws in
            let error = #expect(throws: FtvmError.self) {
                try protected.driver.committer.commit()
            }
            #expect(error?.code == .conflict)
        }
        #expect(segment.position.epoch == epoch && segment.position.generation == Generation(2))
        #expect(try protected.user.status().running)
    }
}
