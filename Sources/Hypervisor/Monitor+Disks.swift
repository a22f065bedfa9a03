import Foundation
import Model

/// A node of QEMU's block layer (QMP `query-named-block-nodes`).
package struct BlockNode: Hashable, Sendable, Decodable {
    package let name: String
    /// raw, qcow2, file, nbd, ...
    package let driver: String
    /// The file name of the lowest node below it; `json:` with all options where a name cannot say them, as for an overlay
    /// whose backing image was named when it was opened.
    package let file: String

    enum CodingKeys: String, CodingKey {
        case name = "node-name"
        case driver = "drv"
        case file
    }

    /// What is read and written at the end is an NBD server.
    package var isServed: Bool {
        guard file.hasPrefix("json:") else { return file.hasPrefix("nbd") }
        struct Options: Decodable {
            struct File: Decodable { let driver: String }
            let file: File
        }
        let options = try? JSONDecoder().decode(Options.self, from: Data(file.dropFirst(5).utf8))
        return options?.file.driver == "nbd"
    }
}

/// Exchanges what is below the format nodes of a QEMU's disks (QMP `blockdev-reopen`, since QEMU 6.1): the
/// image file for an NBD export of the disk log, and back. libvirt's XML, and what it believes, stay as they are. Works in a
/// running QEMU and in one that waits for a migration. Everything may be repeated.
extension Monitor {
    package func blockNodes() throws -> [BlockNode] {
        try execute("query-named-block-nodes", arguments: "{\"flat\":true}")
            .decode([BlockNode].self)
    }

    /// Refuses disks whose format node QEMU does not have.
    /// - Throws: `.unsupported` that names them.
    package func requireFormatNodes(_ disks: [GuestDisk]) throws {
        let names = Set(try blockNodes().map(\.name))
        let missing = disks.filter { !names.contains($0.formatNode) }
        guard !missing.isEmpty else { return }
        throw FtvmError(
            .unsupported, "disks of domain \(label) cannot be protected while it runs as it is",
            cause: missing.map { "\($0.target): QEMU has no node \($0.formatNode)" }
                .joined(separator: "; "),
            advice:
                "use a qcow2 image; a libvirt of version 10 or newer gives raw images no node of "
                + "their own format")
    }

    /// Which of the disks are served through the log.
    package func servedDisks(_ disks: [GuestDisk]) throws -> [GuestDisk] {
        let nodes = try nodesByName()
        return disks.filter { nodes[$0.formatNode]?.isServed ?? false }
    }

    /// From here on the disks are read and written through the NBD server at `socket`. A guest that runs stands still for
    /// some milliseconds.
    package func serveDisks(_ disks: [GuestDisk], socket: String) throws {
        let nodes = try nodesByName()
        for disk in disks where nodes[disk.serverNode] == nil {
            _ = try execute(
                "blockdev-add",
                arguments: "{\"driver\":\"nbd\",\"node-name\":\(JSONText.quote(disk.serverNode)),"
                    + "\"export\":\(JSONText.quote(disk.target)),\"reconnect-delay\":60,"
                    + "\"server\":{\"type\":\"unix\",\"path\":\(JSONText.quote(socket))}}")
        }
        FaultPoint.reached("disks.node-added")
        let moving = disks.filter { !(nodes[$0.formatNode]?.isServed ?? false) }
        try reopen(moving) { $0.serverNode }
        FaultPoint.reached("disks.served")
        // It is made anew on the way back: QEMU remembers the length of a file that it has open.
        for disk in disks where nodes[disk.storageNode] != nil {
            try deleteNode(disk.storageNode)
        }
        FaultPoint.reached("disks.file-closed")
    }

    /// From here on the disks are their images again. The guest must stand still, and the images must have everything.
    package func openImages(_ disks: [GuestDisk]) throws {
        let nodes = try nodesByName()
        let moving = disks.filter { nodes[$0.formatNode]?.isServed ?? false }
        for disk in moving {
            // One that an ftvmd has left that died here may be of an older length.
            if nodes[disk.storageNode] != nil { try deleteNode(disk.storageNode) }
            _ = try execute("blockdev-add", arguments: disk.storageOptions)
        }
        FaultPoint.reached("disks.file-opened")
        try reopen(moving) { $0.storageNode }
        FaultPoint.reached("disks.given-back")
        for disk in disks where nodes[disk.serverNode] != nil { try deleteNode(disk.serverNode) }
    }

    private func nodesByName() throws -> [String: BlockNode] {
        Dictionary(try blockNodes().map { ($0.name, $0) }, uniquingKeysWith: { first, _ in first })
    }

    private func reopen(_ disks: [GuestDisk], on node: (GuestDisk) -> String) throws {
        guard !disks.isEmpty else { return }
        let options = disks.map { $0.formatOptions(file: node($0)) }.joined(separator: ",")
        _ = try execute("blockdev-reopen", arguments: "{\"options\":[\(options)]}")
    }

    private func deleteNode(_ name: String) throws {
        _ = try execute("blockdev-del", arguments: "{\"node-name\":\(JSONText.quote(name))}")
    }
}

/// QEMU's options of a disk's nodes as libvirt makes them (libvirt: src/qemu/qemu_block.c): `blockdev-reopen` sets what is not
/// said to its default.
extension GuestDisk {
    fileprivate func formatOptions(file: String) -> String {
        var options = [
            "\"driver\":\"\(format.rawValue)\"", "\"node-name\":\(JSONText.quote(formatNode))",
            "\"read-only\":false", "\"file\":\(JSONText.quote(file))",
        ]
        if format == .qcow2 {
            options.append(
                "\"backing\":" + (backingIndex.map { "\"libvirt-\($0)-format\"" } ?? "null"))
        }
        if let discard { options.append("\"discard\":\(JSONText.quote(discard))") }
        if let detectZeroes {
            // Unmapping needs discards that do something.
            let mode = detectZeroes == "unmap" && discard != "unmap" ? "on" : detectZeroes
            options.append("\"detect-zeroes\":\(JSONText.quote(mode))")
        }
        return "{" + (options + cacheOptions).joined(separator: ",") + "}"
    }

    fileprivate var storageOptions: String {
        var options = [
            "\"driver\":\"\(isDevice ? "host_device" : "file")\"",
            "\"node-name\":\(JSONText.quote(storageNode))",
            "\"filename\":\(JSONText.quote(path))", "\"auto-read-only\":true",
            "\"discard\":\"unmap\"",
        ]
        if let io, io != "default" { options.append("\"aio\":\(JSONText.quote(io))") }
        return "{" + (options + cacheOptions).joined(separator: ",") + "}"
    }

    private var cacheOptions: [String] {
        let (direct, noFlush): (Bool, Bool)
        switch cache {
        case "none", "directsync": (direct, noFlush) = (true, false)
        case "writethrough", "writeback": (direct, noFlush) = (false, false)
        case "unsafe": (direct, noFlush) = (false, true)
        default: return []
        }
        return ["\"cache\":{\"direct\":\(direct),\"no-flush\":\(noFlush)}"]
    }
}
