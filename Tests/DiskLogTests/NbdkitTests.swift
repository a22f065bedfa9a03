import DiskLog
import Foundation
import Testing

/// The plugin in a real nbdkit, used by real NBD clients, killed and started again.
@Suite struct NbdkitTests {
    static var plugin: String {
        Crasher.products.appendingPathComponent("libftvm-nbdkit-plugin.so").path
    }

    /// Two images on a real file system, a log, nbdkit, and ftvmd's part.
    final class Stand {
        let home: Crasher
        let images: String
        private var server: Process?
        private var commits: Process?
        private let commitInput = Pipe()
        private let commitOutput = Pipe()
        static let diskBytes = 64 << 20

        init() throws {
            home = try Crasher()
            images = NSTemporaryDirectory() + "ftvm-disk-test-\(UUID().uuidString)"
            try FileManager.default.createDirectory(
                atPath: images, withIntermediateDirectories: false)
            for disk in ["vda", "vdb"] {
                let path = "\(images)/\(disk).raw"
                #expect(FileManager.default.createFile(atPath: path, contents: nil))
                try FileHandle(forWritingTo: URL(fileURLWithPath: path))
                    .truncate(atOffset: UInt64(Stand.diskBytes))
            }
            let made = try Tool.run(
                Crasher.products.appendingPathComponent("disk-crasher").path,
                [
                    "create", log, "16", "vda=\(Stand.diskBytes)", "vdb=\(Stand.diskBytes)",
                ])
            try #require(made.status == 0, "\(made.output)")
            try start()
            let commits = Crasher.process(["commits", log, control, "20"])
            commits.standardInput = commitInput
            commits.standardOutput = commitOutput
            try commits.run()
            self.commits = commits
        }

        deinit {
            kill()
            if let commits, commits.isRunning { commits.terminate() }
            try? FileManager.default.removeItem(atPath: images)
        }

        var log: String { home.directory + "/log" }
        var control: String { home.directory + "/control" }
        var socket: String { home.directory + "/nbd" }
        func uri(_ disk: String) -> String { "nbd+unix:///\(disk)?socket=\(socket)" }

        func start() throws {
            try? FileManager.default.removeItem(atPath: socket)
            let server = Process()
            server.executableURL = URL(fileURLWithPath: "/usr/bin/nbdkit")
            server.arguments = [
                "--foreground", "--exit-with-parent", "--unix", socket, NbdkitTests.plugin,
                "log=\(log)", "disk=vda:\(images)/vda.raw", "disk=vdb:\(images)/vdb.raw",
                "journal=\(images)/journal", "control=\(control)", "generation=1",
            ]
            try server.run()
            self.server = server
            for _ in 0..<2000 where access(socket, F_OK) != 0 { usleep(5000) }
        }

        func kill() {
            guard let server, server.isRunning else { return }
            Foundation.kill(server.processIdentifier, SIGKILL)
            server.waitUntilExit()
        }

        /// Ends the commits with a last one; gives what they saw once all is applied.
        func finish() throws -> String {
            try commitInput.fileHandleForWriting.close()
            let said = commitOutput.fileHandleForReading.readDataToEndOfFile()
            commits?.waitUntilExit()
            return String(decoding: said, as: UTF8.self)
        }

        func io(_ disk: String, _ commands: [String]) throws {
            let ending = try Tool.run(
                "/usr/bin/qemu-io",
                ["-f", "raw"] + commands.flatMap { ["-c", $0] } + [uri(disk)])
            #expect(
                ending.status == 0 && !ending.output.contains("failed"), "\(ending.output)")
        }
    }

    @Test func realClientsReadWhatTheyWrote() throws {
        let stand = try Stand()
        let source = stand.images + "/source"
        var bytes = Data(count: Stand.diskBytes)
        bytes.withUnsafeMutableBytes { buffer in
            var generator = SystemRandomNumberGenerator()
            for offset in stride(from: 0, to: buffer.count, by: 4096)
            where offset / 65536 % 3 != 1 {
                buffer.storeBytes(of: generator.next(), toByteOffset: offset, as: UInt64.self)
            }
        }
        try bytes.write(to: URL(fileURLWithPath: source))
        // Four times what the log holds.
        let copied = try Tool.run("/usr/bin/nbdcopy", [source, stand.uri("vdb")])
        try #require(copied.status == 0, "\(copied.output)")
        let back = stand.images + "/back"
        let read = try Tool.run("/usr/bin/nbdcopy", [stand.uri("vdb"), back])
        try #require(read.status == 0, "\(read.output)")
        #expect(try Data(contentsOf: URL(fileURLWithPath: back)) == bytes)
        try stand.io(
            "vda",
            [
                "write -P 1 0 1M", "flush", "write -P 2 4096 512", "read -P 2 4096 512",
                "read -P 1 4608 4096", "discard 64k 64k", "read -P 0 64k 64k", "write -z 256k 64k",
                "read -P 0 256k 64k", "read -P 1 320k 64k", "write -f -P 3 2M 100k",
                "aio_write -P 4 8M 1M", "aio_write -P 5 9M 1M", "aio_flush", "read -P 4 8M 1M",
            ])
        let said = try stand.finish()
        #expect(said.contains("left 0"), "\(said)")
        #expect(try Data(contentsOf: URL(fileURLWithPath: stand.images + "/vdb.raw")) == bytes)
        // No QEMU gets at an image that a plugin writes to.
        let refused = try Tool.run(
            "/usr/bin/qemu-io", ["-f", "raw", "-c", "read 0 512", stand.images + "/vda.raw"])
        #expect(refused.status != 0 && refused.output.contains("lock"), "\(refused.output)")
        stand.kill()
        let image = try Tool.run(
            "/usr/bin/qemu-io",
            ["-f", "raw", "-c", "read -P 3 2M 100k", "-c", "read -P 5 9M 1M", "-c"]
                + ["read -P 0 64k 64k", stand.images + "/vda.raw"])
        #expect(image.status == 0 && !image.output.contains("failed"), "\(image.output)")
    }

    /// The plugin is killed again and again; what was answered is there, in the log or in the image.
    @Test func aKilledPluginLosesNothing() throws {
        let stand = try Stand()
        for round in 1...6 {
            try stand.io(
                "vda",
                [
                    "write -P \(round) 0 3M", "write -P \(round + 100) \(round)M 64k", "flush",
                    "write -P \(round + 50) 16M 1M",
                ])
            stand.kill()
            try stand.start()
            try stand.io(
                "vda",
                [
                    "read -P \(round) 0 1M", "read -P \(round + 100) \(round)M 64k",
                    "read -P \(round + 50) 16M 1M",
                ])
        }
        let said = try stand.finish()
        #expect(said.contains("left 0"), "\(said)")
    }

    /// A qcow2 image keeps its format: QEMU's driver works on the export, its metadata go through the
    /// log.
    @Test func aQcow2ImageThroughTheLog() throws {
        let stand = try Stand()
        let image = stand.images + "/vda.raw"
        // The plugin holds QEMU's locks on it.
        stand.kill()
        let made = try Tool.run(
            "/usr/bin/qemu-img", ["create", "-q", "-f", "qcow2", image, "40M"])
        try #require(made.status == 0, "\(made.output)")
        try stand.start()
        let io = { (arguments: [String]) in
            try Tool.run("/usr/bin/qemu-io", arguments)
        }
        let above =
            "driver=qcow2,file.driver=nbd,file.server.type=unix,"
            + "file.server.path=\(stand.socket),file.export=vda"
        let wrote = try io([
            "-c", "write -P 7 0 5M", "-c", "write -P 8 20M 3M", "-c", "flush", "--image-opts",
            above,
        ])
        #expect(wrote.status == 0 && !wrote.output.contains("failed"), "\(wrote.output)")
        let said = try stand.finish()
        #expect(said.contains("left 0"), "\(said)")
        stand.kill()
        let checked = try Tool.run("/usr/bin/qemu-img", ["check", "-f", "qcow2", image])
        #expect(checked.status == 0, "\(checked.output)")
        let read = try io([
            "-f", "qcow2", "-c", "read -P 7 0 5M", "-c", "read -P 8 20M 3M", "-c",
            "read -P 0 30M 1M", image,
        ])
        #expect(read.status == 0 && !read.output.contains("failed"), "\(read.output)")
    }
}
