import EndToEndSupport
import Foundation
import Glibc
import Lab
import Model
import Testing

/// An ext4 of a few MiB on a loop device, mounted by every host of a lab under one name, that a test fills up.
struct SmallStorage {
    let lab: TestLab
    let directory: String
    private let device: String
    private var filler: String { directory + "/filler" }

    /// - Parameter file: where it is kept; nothing may be there.
    static func make(_ lab: TestLab, at directory: String, file: String, mebibytes: Int)
        async throws
        -> SmallStorage
    {
        try FileManager.default.createDirectory(
            atPath: directory, withIntermediateDirectories: true)
        _ = try await Command.succeed(["truncate", "-s", "\(mebibytes)M", file])
        _ = try await Command.succeed(["mkfs.ext4", "-q", "-F", "-m", "0", file])
        let device = try await Command.succeed(["losetup", "--find", "--show", file])
            .trimmingCharacters(in: .whitespacesAndNewlines)
        let storage = SmallStorage(lab: lab, directory: directory, device: device)
        // The machine's mounts may or may not reach the hosts. A device mounted twice is one file system.
        _ = try await Command.succeed(["sh", "-c", storage.mount])
        for host in lab.hosts { _ = try await lab.exec(host, ["sh", "-c", storage.mount]) }
        chmod(directory, 0o755)
        return storage
    }

    private var mount: String {
        "mountpoint -q '\(directory)' || mount -t ext4 \(device) '\(directory)'"
    }

    /// Leaves so much room.
    func fill(leaving mebibytes: UInt64) async throws {
        var info = statvfs()
        try #require(statvfs(directory, &info) == 0)
        let free = UInt64(info.f_bavail) * UInt64(info.f_frsize)
        let left = mebibytes << 20
        try #require(free > left)
        _ = try await Command.succeed(["fallocate", "-l", "\(free - left)", filler])
    }

    func giveRoom() throws { try FileManager.default.removeItem(atPath: filler) }

    func remove() async throws {
        let unmount = "while mountpoint -q '\(directory)'; do umount '\(directory)' || exit 1; done"
        for host in lab.livingHosts { _ = try await lab.exec(host, ["sh", "-c", unmount]) }
        _ = try await Command.succeed(["sh", "-c", unmount])
        _ = try await Command.succeed(["losetup", "--detach", device])
    }
}
