import DiskLog
import Foundation
import Glibc
import Hypervisor
import Model
import Protection
import Testing

/// The processes that serve a pair's disks: who starts them, who ends them. With a real nbdkit.
@Suite(.serialized) struct DiskServerTests {
    /// One disk, its log, and a place for sockets.
    private final class Stand {
        let directory: String
        let plugin: DiskPlugin
        private let guestDisks: [GuestDisk]

        init() throws {
            directory = NSTemporaryDirectory() + "ftvm-servers-\(UUID().uuidString.prefix(8))"
            try FileManager.default.createDirectory(
                atPath: directory, withIntermediateDirectories: false)
            let image = directory + "/vda.raw"
            try Data(count: 1 << 20).write(to: URL(fileURLWithPath: image))
            let own = try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
            let products =
                ProcessInfo.processInfo.environment["FTVM_PRODUCTS"]
                ?? URL(fileURLWithPath: own).deletingLastPathComponent().path
            plugin = DiskPlugin(
                program: DiskPlugin.installed().program,
                library: products + "/libftvm-nbdkit-plugin.so", directory: directory,
                name: "pair")
            guestDisks = try DomainXML(
                "<domain type='kvm'><name>pair</name><devices><disk type='file' device='disk'>"
                    + "<driver name='qemu' type='raw'/><source file='\(image)'/>"
                    + "<target dev='vda' bus='virtio'/></disk></devices></domain>"
            ).guestDisks
            let descriptor = open(directory + "/log", O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
            defer { close(descriptor) }
            try DiskLogFile.create(
                in: descriptor,
                LogSpecification(
                    uuid: [UInt8](repeating: 1, count: 16),
                    disks: [LoggedDisk(name: "vda", sizeBytes: 1 << 20)], dataBytes: 1 << 20,
                    generation: Generation(1)))
        }

        deinit {
            try? plugin.end()
            try? FileManager.default.removeItem(atPath: directory)
        }

        func disks() throws -> PairDisks {
            PairDisks(
                log: try DiskLogFile(path: directory + "/log"), disks: guestDisks, plugin: plugin)
        }
    }

    private func eventually(_ what: String, _ condition: () throws -> Bool) throws {
        for _ in 0..<2_000 {
            if try condition() { return }
            usleep(5_000)
        }
        Issue.record("not so after 10 s: \(what)")
    }

    /// A server ends, and before its supervisor has another one somebody else takes the disks over, as a promotion
    /// or an adoption does. The one that serves then is not touched by the old supervisor.
    @Test func anOldSupervisorEndsNoNewerServer() throws {
        let stand = try Stand()
        var random = SystemRandomNumberGenerator()
        for round in 1...5 {
            var old: PairDisks? = try stand.disks()
            try old?.serve(Generation(1))
            weak let watched = old
            for pid in stand.plugin.processes() { kill(pid, SIGKILL) }
            usleep(UInt32.random(in: 0...40_000, using: &random))
            old?.close(endingPlugin: false)
            old = nil
            let new = try stand.disks()
            try new.serve(Generation(1))
            // nbdkit's first process ends when the one in the background has begun.
            try eventually("one process serves") { stand.plugin.processes().count == 1 }
            let serving = Set(stand.plugin.processes())
            // Its supervisor has done whatever it was about to.
            try eventually("the old supervisor ends") { watched == nil }
            #expect(Set(stand.plugin.processes()) == serving, "round \(round)")
            #expect(new.connection?.ring() == true && stand.plugin.running() != nil)
            new.close(endingPlugin: true)
            #expect(stand.plugin.processes() == [])
        }
    }

    /// A server that is killed is replaced by one that writes for the same generation; one that nobody wants is not.
    @Test func aLostServerIsReplaced() throws {
        let stand = try Stand()
        let disks = try stand.disks()
        try disks.serve(Generation(1))
        let first = try #require(stand.plugin.processes().first)
        kill(first, SIGKILL)
        try eventually("another one serves") {
            disks.connection?.ring() == true && stand.plugin.processes().allSatisfy { $0 != first }
                && stand.plugin.processes().count == 1
        }
        // Who writes for a generation has the log's lock.
        #expect(throws: FtvmError.self) {
            try disks.log.recover(
                position: disks.log.head, generation: Generation(1), patience: 0)
        }
        disks.close(endingPlugin: false)
        for pid in stand.plugin.processes() { kill(pid, SIGKILL) }
        try eventually("it is gone") { stand.plugin.processes() == [] }
        #expect(stand.plugin.running() == nil)
    }

    /// What a host counts before it says that nothing of it can write any more: servers of all pairs in the directory, also
    /// one that has been killed and is not gone yet, and nobody else's.
    @Test func writersAreCounted() throws {
        let stand = try Stand()
        #expect(DiskPlugin.processes(in: stand.directory) == [])
        let disks = try stand.disks()
        try disks.serve(Generation(1))
        let server = try #require(DiskPlugin.processes(in: stand.directory).first)
        #expect(DiskPlugin.processes(in: stand.directory + "x") == [])
        let handle = Process()
        handle.executableURL = URL(fileURLWithPath: "/bin/sh")
        handle.arguments = ["-c", "sleep 60 # --unix \(stand.directory)/pair.nbd"]
        try handle.run()
        defer { handle.terminate() }
        #expect(DiskPlugin.processes(in: stand.directory) == [server], "who only speaks of it")
        disks.close(endingPlugin: false)
        kill(server, SIGKILL)
        // At every look it is counted, or the log's lock is free: nothing in between.
        try eventually("it ends") {
            let isCounted = DiskPlugin.processes(in: stand.directory).contains(server)
            return !isCounted
        }
        try disks.log.recover(
            position: disks.log.head, generation: Generation(2), patience: 0)
    }
}
