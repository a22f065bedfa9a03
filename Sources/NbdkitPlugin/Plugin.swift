import CNbdkit
import DiskLog
import Glibc
import Model

// The nbdkit plugin (nbdkit-plugin(3), interface version 2): nbdkit speaks NBD, DiskServer does the
// rest. Parameters:
//
//   log=PATH          the log; or log-fd=N, a descriptor that nbdkit inherited
//   disk=NAME:PATH    an image, once for every disk of the log, in any order
//   journal=PATH      a file on the images' storage (DiskJournal); optional
//   control=PATH      the socket to listen on for ftvmd; optional
//   generation=N      become the writer at once; without it the server waits to be told
//
// Every disk is an export of its name. Errors of a request go to QEMU as an errno.

/// What the parameters say, and what is made of them. Set before nbdkit starts its threads.
private enum Plugin {
    nonisolated(unsafe) static var log: DiskLogFile?
    nonisolated(unsafe) static var paths: [(name: String, path: String)] = []
    nonisolated(unsafe) static var control: String?
    nonisolated(unsafe) static var journal: DiskJournal?
    nonisolated(unsafe) static var generation: Generation?
    nonisolated(unsafe) static var images: [FileImage] = []
    nonisolated(unsafe) static var server: DiskServer?
    nonisolated(unsafe) static var socket: ServerSocket?

    /// Runs a step of the start; its error is nbdkit's.
    static func attempt(_ body: () throws -> Void) -> Int32 {
        do {
            try body()
            return 0
        } catch {
            ftvm_nbdkit_error("\(error)")
            return -1
        }
    }

    static func wrong(_ key: String, _ value: String, _ advice: String) -> FtvmError {
        FtvmError(
            .invalidArgument, "the parameter \(key)=\(value) is wrong", advice: advice)
    }

    static func configure(_ key: String, _ value: String) throws {
        switch key {
        case "log":
            log = try DiskLogFile(path: value)
        case "log-fd":
            guard let number = Int32(value), number > 2, fcntl(number, F_GETFD) >= 0 else {
                throw wrong(key, value, "give the number of an open descriptor")
            }
            _ = fcntl(number, F_SETFD, FD_CLOEXEC)
            log = try DiskLogFile(descriptor: number)
        case "disk":
            guard let colon = value.firstIndex(of: ":") else {
                throw wrong(key, value, "give NAME:PATH")
            }
            paths.append((String(value[..<colon]), String(value[value.index(after: colon)...])))
        case "control":
            control = value
        case "journal":
            journal = try DiskJournal.open(value)
        case "generation":
            guard let number = UInt64(value), number <= Generation.maximum else {
                throw wrong(key, value, "give a number")
            }
            generation = Generation(number)
        default:
            throw wrong(key, value, "known are log, log-fd, disk, journal, control and generation")
        }
    }

    static func complete() throws {
        guard let log else {
            throw FtvmError(.invalidArgument, "no log was given", advice: "give log=PATH")
        }
        guard paths.count == log.disks.count else {
            throw FtvmError(
                .invalidArgument, "the log has \(log.disks.count) disks",
                cause: "\(paths.count) were given", advice: "give disk=NAME:PATH for each")
        }
        images = try log.disks.map { disk in
            guard let path = paths.first(where: { $0.name == disk.name })?.path else {
                throw FtvmError(
                    .invalidArgument, "there is no image for disk '\(disk.name)' of the log",
                    advice: "give disk=\(disk.name):PATH")
            }
            return try FileImage(path: path)
        }
    }

    /// Threads live only now: nbdkit may have forked before.
    static func start() throws {
        guard let log else { return }
        try log.populate()
        let server = DiskServer(log: log, images: images, journal: journal)
        self.server = server
        // Of no more use; the image locks go with the process.
        server.onFenced = { _exit(0) }
        if let control { socket = try ServerSocket(server, path: control) }
        if let generation { try server.activate(generation) }
    }

    /// The disk of a connection's handle: its number and 1, since a handle is never null.
    @inline(__always)
    static func disk(_ handle: UnsafeMutableRawPointer?) -> Int { Int(bitPattern: handle) - 1 }

    @inline(__always)
    static func answer(_ result: Int32) -> Int32 {
        if result == 0 { return 0 }
        // NBD has no word for most errors; what it has none for becomes EINVAL, which QEMU would
        // take for a mistake of its own.
        nbdkit_set_error(-result == EBADMSG ? EIO : -result)
        return -1
    }

    static func open() -> UnsafeMutableRawPointer? {
        guard let log, let wanted = nbdkit_export_name().map({ String(cString: $0) }) else {
            return nil
        }
        guard let index = wanted.isEmpty ? 0 : log.disks.firstIndex(where: { $0.name == wanted })
        else {
            ftvm_nbdkit_error("there is no disk '\(wanted)'")
            return nil
        }
        return UnsafeMutableRawPointer(bitPattern: index + 1)
    }

    static func list(_ exports: OpaquePointer?) -> Int32 {
        for disk in log?.disks ?? [] where nbdkit_add_export(exports, disk.name, nil) != 0 {
            return -1
        }
        return 0
    }

    static func tellExtents(
        _ disk: Int, _ count: UInt32, _ offset: UInt64, _ one: Bool, _ extents: OpaquePointer?
    ) -> Int32 {
        var result: Int32 = 0
        server?.extents(disk: disk, from: offset, to: offset + UInt64(count)) {
            start, bytes, zero in
            let type = zero ? UInt32(NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO) : 0
            result = nbdkit_add_extent(extents, start, bytes, type)
            return result == 0 && !one
        }
        return result
    }

    static func stop() {
        socket?.close()
        socket = nil
        server?.close()
        server = nil
    }
}

private func isSet(_ flag: Int32, in flags: UInt32) -> Bool { flags & UInt32(flag) != 0 }

/// What nbdkit asks for when it has loaded the library.
@_cdecl("plugin_init")
public func pluginInit() -> UnsafeMutableRawPointer? {
    let table = UnsafeMutablePointer<nbdkit_plugin>.allocate(capacity: 1)
    var plugin = nbdkit_plugin()
    plugin._struct_size = UInt64(MemoryLayout<nbdkit_plugin>.size)
    plugin._api_version = NBDKIT_API_VERSION
    plugin._thread_model = NBDKIT_THREAD_MODEL_PARALLEL
    // nbdkit keeps these pointers.
    plugin.name = UnsafePointer(strdup("ftvm"))
    plugin.longname = UnsafePointer(strdup("ftvm disk log"))
    plugin.version = UnsafePointer(strdup(FtvmVersion.text))
    plugin.description = UnsafePointer(
        strdup("disks of a protected VM, written through a redo log"))
    plugin.config_help = UnsafePointer(
        strdup(
            "log=PATH (or log-fd=N), disk=NAME:PATH for every disk,\n"
                + "journal=PATH, control=PATH, generation=N"))
    plugin.errno_is_preserved = 0
    addLifeCycle(&plugin)
    addFacts(&plugin)
    addRequests(&plugin)
    table.initialize(to: plugin)
    return UnsafeMutableRawPointer(table)
}

private func addLifeCycle(_ plugin: inout nbdkit_plugin) {
    plugin.config = { key, value in
        Plugin.attempt {
            guard let key, let value else { return }
            try Plugin.configure(String(cString: key), String(cString: value))
        }
    }
    plugin.config_complete = { Plugin.attempt(Plugin.complete) }
    plugin.after_fork = { Plugin.attempt(Plugin.start) }
    plugin.cleanup = { Plugin.stop() }
    plugin.open = { _ in Plugin.open() }
    plugin.list_exports = { _, _, exports in Plugin.list(exports) }
}

private func addFacts(_ plugin: inout nbdkit_plugin) {
    plugin.get_size = { Int64(Plugin.log?.disks[Plugin.disk($0)].sizeBytes ?? 0) }
    plugin.can_write = { _ in 1 }
    plugin.can_flush = { _ in 1 }
    plugin.can_trim = { Plugin.images[Plugin.disk($0)].canTrim ? 1 : 0 }
    plugin.can_zero = { _ in 1 }
    plugin.can_fast_zero = { _ in 1 }
    plugin.can_fua = { _ in NBDKIT_FUA_NATIVE }
    plugin.can_multi_conn = { _ in 1 }
    plugin.can_extents = { _ in 1 }
    plugin.is_rotational = { _ in 0 }
    plugin.block_size = { _, least, preferred, largest in
        least?.pointee = 1
        preferred?.pointee = 4096
        largest?.pointee = 32 << 20
        return 0
    }
}

private func addRequests(_ plugin: inout nbdkit_plugin) {
    plugin.pread = { handle, buffer, count, offset, _ in
        let target = UnsafeMutableRawBufferPointer(start: buffer, count: Int(count))
        return Plugin.answer(
            Plugin.server?.read(disk: Plugin.disk(handle), into: target, at: offset) ?? -EIO)
    }
    plugin.pwrite = { handle, buffer, count, offset, flags in
        let bytes = UnsafeRawBufferPointer(start: buffer, count: Int(count))
        let fua = isSet(NBDKIT_FLAG_FUA, in: flags)
        return Plugin.answer(
            Plugin.server?.write(disk: Plugin.disk(handle), bytes, at: offset, flush: fua) ?? -EIO)
    }
    plugin.flush = { handle, _ in
        Plugin.answer(Plugin.server?.flush(disk: Plugin.disk(handle)) ?? -EIO)
    }
    plugin.trim = { handle, count, offset, flags in
        Plugin.answer(
            Plugin.server?.zero(
                disk: Plugin.disk(handle), at: offset, bytes: UInt64(count), mayTrim: true,
                flush: isSet(NBDKIT_FLAG_FUA, in: flags)) ?? -EIO)
    }
    plugin.zero = { handle, count, offset, flags in
        Plugin.answer(
            Plugin.server?.zero(
                disk: Plugin.disk(handle), at: offset, bytes: UInt64(count),
                mayTrim: isSet(NBDKIT_FLAG_MAY_TRIM, in: flags),
                flush: isSet(NBDKIT_FLAG_FUA, in: flags)) ?? -EIO)
    }
    plugin.extents = { handle, count, offset, flags, extents in
        Plugin.tellExtents(
            Plugin.disk(handle), count, offset, isSet(NBDKIT_FLAG_REQ_ONE, in: flags), extents)
    }
}
