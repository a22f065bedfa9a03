import CLinux
import DiskLog
import Glibc
import Model

/// Stories with a known end, each in a directory of its own. They throw when the end is another.
struct Scenarios {
    let world: World

    static let all: [(name: String, run: @Sendable (Scenarios) throws -> Void)] = [
        ("fenced-applier", { try $0.fencedApplier() }),
        ("damaged-data", { try $0.damagedData() }),
        ("damaged-record", { try $0.damagedRecord() }),
        ("full-image", { try $0.fullImage() }),
        ("full-log", { try $0.fullLog() }),
        ("many-writers", { try $0.manyWriters() }),
        ("durability", { try $0.durability() }),
        ("waiting-server", { try $0.waitingServer() }),
        ("socket", { try $0.socket() }),
        ("seal-cost", { try $0.sealCost() }),
    ]

    func expect(_ condition: Bool, _ what: String) throws {
        if !condition { throw Trouble("not so: \(what)") }
    }

    func refused(_ code: FtvmError.Code, _ what: String, _ body: () throws -> Void) throws {
        do {
            try body()
        } catch let error as FtvmError {
            try expect(error.code == code, "\(what): \(error)")
            return
        }
        throw Trouble("not refused: \(what)")
    }

    @discardableResult
    func put(
        _ server: DiskServer, _ stamp: UInt64, disk: Int = 0, sector: Int, count: Int = 1,
        flush: Bool = false
    ) -> Int32 {
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: count * sectorBytes, alignment: 8)
        defer { buffer.deallocate() }
        guard let start = buffer.baseAddress else { return -ENOMEM }
        for index in 0..<count {
            Sector.fill(
                start + index * sectorBytes, stamp: stamp, disk: disk, sector: sector + index)
        }
        return server.write(
            disk: disk, UnsafeRawBufferPointer(buffer), at: UInt64(sector * sectorBytes),
            flush: flush)
    }

    func get(_ server: DiskServer, disk: Int = 0, sector: Int) -> UInt64? {
        withUnsafeTemporaryAllocation(byteCount: sectorBytes, alignment: 8) { buffer in
            guard let start = buffer.baseAddress,
                server.read(disk: disk, into: buffer, at: UInt64(sector * sectorBytes)) == 0
            else { return nil }
            return Sector.stamp(start, disk: disk, sector: sector)
        }
    }

    func onImage(_ disk: Int = 0, sector: Int) throws -> UInt64? {
        let image = try VolatileImage(world.directory, disk: disk)
        return withExtendedLifetime(image) {
            Sector.stamp(
                image.stable.address + sector * sectorBytes, disk: disk, sector: sector)
        }
    }

    func commit(_ server: DiskServer) -> DiskSeal {
        let seal = server.log.seal()
        server.log.publishSealed(seal.position)
        return seal
    }

    func activeServer(byItself: Bool = false) throws -> DiskServer {
        try world.make()
        let server = try world.server(appliesByItself: byItself)
        try server.activate(Generation(1))
        return server
    }

    /// A plugin that was only believed dead can change nothing.
    func fencedApplier() throws {
        let old = try activeServer()
        try expect(put(old, 11, sector: 1) == 0, "written")
        let seal = commit(old)
        try expect(put(old, 12, sector: 1) == 0, "written, not committed")
        let log = try world.log()
        try refused(.conflict, "taken over while the old server has the log") {
            try log.recover(position: seal.position, generation: Generation(2), patience: 0)
        }
        try refused(.conflict, "a second server of the old generation") {
            try world.server(appliesByItself: false).activate(Generation(1), patience: 0)
        }
        try refused(.conflict, "a server of the new one, not recovered") {
            try world.server(appliesByItself: false).activate(Generation(2), patience: 0)
        }
        try expect(put(old, 13, sector: 2) == -ESHUTDOWN, "the old server writes no more")
        try expect(old.applyGroup(evenIfYoung: true) == .fenced, "and applies no more")
        try expect(try onImage(sector: 1) == 0, "the image is untouched")
        try expect(old.flush(disk: 0) == -ESHUTDOWN, "ended")
        // It has let go of the log by itself.
        try refused(.conflict, "a generation that was used") {
            try log.recover(position: seal.position, generation: Generation(2))
        }
        try log.recover(position: seal.position, generation: Generation(3), patience: 0)
        let new = try world.server(appliesByItself: false)
        try refused(.conflict, "the generation before") { try new.activate(Generation(2)) }
        try new.activate(Generation(3))
        try expect(get(new, sector: 1) == 11, "what was committed is there")
        try expect(new.applyGroup(evenIfYoung: true) == .applied, "and is applied")
        try expect(try onImage(sector: 1) == 11, "to the image")
        new.close()
        old.close()
    }

    func flip(_ offset: UInt64) throws {
        let log = open(world.logPath, O_RDWR | O_CLOEXEC)
        defer { close(log) }
        var byte: UInt8 = 0
        guard pread(log, &byte, 1, off_t(offset)) == 1 else { throw Trouble("pread") }
        byte ^= 0x10
        guard pwrite(log, &byte, 1, off_t(offset)) == 1 else { throw Trouble("pwrite") }
    }

    func damagedData() throws {
        let server = try activeServer()
        put(server, 21, sector: 5)
        put(server, 22, sector: 9, count: 4)
        _ = commit(server)
        let place = server.log.header.dataOffset + UInt64(sectorBytes + 700)
        try flip(place)
        try expect(
            server.applyGroup(evenIfYoung: true) == .failed(EBADMSG, disk: 0), "damage is found")
        try expect(try onImage(sector: 5) == 0, "nothing was applied")
        try expect(server.log.applied == 0, "nothing was forgotten")
        try expect(server.log.status.failure?.contains("vd0") == true, "the operator is told")
        try flip(place)
        try expect(server.applyGroup(evenIfYoung: true) == .applied, "whole again")
        try expect(server.log.status.failure == nil, "and said so")
        try expect(try onImage(sector: 10) == 22, "applied")
        server.close()
    }

    func damagedRecord() throws {
        let server = try activeServer()
        for sector in 0..<4 { put(server, 31, sector: sector) }
        let seal = commit(server)
        server.close()
        let log = try world.log()
        // The second record's offset.
        let place: UInt64 = 8192 + 64 + 17
        try flip(place)
        try expect(log.record(0) != nil && log.record(1) == nil, "the CRC tells")
        try refused(.dataCorrupted, "activated") {
            try world.server(appliesByItself: false).activate(Generation(1))
        }
        try refused(.dataCorrupted, "recovered") {
            try log.recover(position: seal.position, generation: Generation(2))
        }
        try flip(place)
        try refused(.dataCorrupted, "a position that the log never had") {
            try log.recover(position: 99, generation: Generation(3))
        }
        try log.recover(position: seal.position, generation: Generation(4))
        // A header that is not what it was is no header.
        try flip(100)
        try refused(.dataCorrupted, "a damaged header") { _ = try world.log() }
        try flip(100)
        try flip(0)
        try refused(.dataCorrupted, "no log at all") { _ = try world.log() }
    }

    /// ENOSPC of the image: nothing is lost, the guest is told when the log is full, and all goes on
    /// when there is room again.
    func fullImage() throws {
        try world.make()
        let images = try world.images()
        var settings = DiskServer.Settings()
        settings.appliesByItself = false
        let server = DiskServer(log: try world.log(), images: images, settings: settings)
        try server.activate(Generation(1))
        images[0].failure = ENOSPC
        var written = 0
        var result: Int32 = 0
        while written < 700 {
            result = put(server, 41, sector: written)
            if result != 0 { break }
            written += 1
            _ = commit(server)
            if written % 10 == 0 {
                try expect(
                    server.applyGroup(evenIfYoung: true) == .failed(ENOSPC, disk: 0), "full")
            }
        }
        try expect(result == -ENOSPC, "the guest is told: \(result)")
        try expect(written > 50, "but not before the log is full")
        try expect(server.log.status.failure?.hasPrefix("vd0: ") == true, "and the operator")
        try expect(server.log.status.failures > 3, "with the number of attempts")
        images[0].failure = EIO
        _ = server.applyGroup(evenIfYoung: true)
        try expect(put(server, 41, sector: 0) == -EIO, "the image's own error")
        try expect(put(server, 41, disk: 1, sector: 0) == -ENOSPC, "a sound disk waits for room")
        for sector in 0..<written { try expect(get(server, sector: sector) == 41, "kept") }
        images[0].failure = 0
        while server.applyGroup(evenIfYoung: true) == .applied {}
        try expect(server.log.applied == server.log.head, "all is applied")
        for sector in 0..<written { try expect(try onImage(sector: sector) == 41, "there") }
        try expect(put(server, 42, sector: written) == 0, "and the guest goes on")
        server.close()
    }

    /// Back-pressure: held until a commit; let through while the guest is being stopped; refused,
    /// and not lost, when even that room is gone.
    func fullLog() throws {
        let server = try activeServer(byItself: true)
        let log = server.log
        let wanted = Counter()
        server.notify = { if $0 == .commitWanted { wanted.add(1) } }
        let written = Counter()
        let writer = try TestThread {
            for sector in 0..<400 {
                if self.put(server, 51, sector: sector) != 0 { return }
                written.add(1)
            }
        }
        try expect(eventually { log.status.heldNow == 1 }, "a writer is held")
        let held = written.value
        try expect(wanted.value == 1 && log.wantsCommit, "one commit is asked for")
        try expect(held < 400 && held > 32, "at three quarters")
        usleep(120_000)
        try expect(written.value == held, "and stays held")
        try expect(log.applied == 0, "nothing that no commit covers is applied")
        log.isStopping = true
        server.ring()
        // Nobody is held any more; the writer has an error in the end, as its last quarter is full.
        writer.join()
        try expect(written.value > held && written.value < 400, "the last quarter")
        try expect(put(server, 52, sector: 500) == -ENOSPC, "full")
        _ = commit(server)
        log.isStopping = false
        server.ring()
        try expect(eventually { log.applied == log.head }, "applied after the commit")
        try expect(put(server, 52, sector: 500) == 0, "the repeated request")
        for sector in 0..<written.value {
            try expect(get(server, sector: sector) == 51, "sector \(sector)")
        }
        try expect(log.status.heldMilliseconds >= 100, "the time is shown")
        try expect(log.status.heldNow == 0, "nobody is held")
        server.close()
    }
}
