import DiskLog
import Foundation
import Model
import Testing

@Suite struct LogFileTests {
    private func make(
        _ path: String, disks: [LoggedDisk], dataBytes: UInt64 = 1 << 20, page: UInt64 = 4096
    ) throws -> DiskLogFile {
        let descriptor = open(path, O_RDWR | O_CREAT | O_EXCL, 0o600)
        defer { close(descriptor) }
        try DiskLogFile.create(
            in: descriptor,
            LogSpecification(
                uuid: (0..<16).map { $0 }, disks: disks, dataBytes: dataBytes,
                generation: Generation(3), pageSizeBytes: page))
        return try DiskLogFile(path: path)
    }

    private let two = [
        LoggedDisk(name: "vda", sizeBytes: 10 << 30),
        LoggedDisk(name: "sdb", sizeBytes: 512, durability: .pool),
    ]

    @Test func aLogIsAsItWasMade() throws {
        let home = try Crasher()
        let log = try make(home.directory + "/log", disks: two, page: 2 << 20)
        #expect(log.disks == two)
        #expect(log.header.uuid == (0..<16).map { UInt8($0) })
        #expect(log.header.fileBytes % (2 << 20) == 0)
        #expect(log.header.dataBytes == 1 << 20)
        #expect(log.generation == 3 && log.head == 0 && log.sealed == 0 && log.applied == 0)
        #expect(log.seal().position == 0 && log.seal().durableAt == 0)
        #expect(log.status.failure == nil && log.status.waitingRecords == 0)
        // Reserved whole, so that no write can fail for want of memory.
        var status = stat()
        let result = fstat(log.descriptor, &status)
        #expect(result == 0)
        #expect(UInt64(status.st_blocks) * 512 >= log.header.fileBytes)
    }

    @Test func whatCannotBeIsRefused() throws {
        let home = try Crasher()
        var number = 0
        func refused(_ disks: [LoggedDisk], _ dataBytes: UInt64 = 1 << 20) {
            number += 1
            let error = #expect(throws: FtvmError.self) {
                _ = try make(
                    "\(home.directory)/log\(number)", disks: disks, dataBytes: dataBytes)
            }
            #expect(error?.code == .invalidArgument && error?.advice != nil)
        }
        refused([])
        refused([LoggedDisk(name: "", sizeBytes: 512)])
        refused([LoggedDisk(name: "a/b", sizeBytes: 512)])
        refused([LoggedDisk(name: "a", sizeBytes: 0)])
        refused([LoggedDisk(name: "a", sizeBytes: 512), LoggedDisk(name: "a", sizeBytes: 512)])
        refused((0..<17).map { LoggedDisk(name: "d\($0)", sizeBytes: 512) })
        refused(two, 4096)
        let path = home.directory + "/taken"
        #expect(FileManager.default.createFile(atPath: path, contents: Data([1])))
        let descriptor = open(path, O_RDWR)
        defer { close(descriptor) }
        let error = #expect(throws: FtvmError.self) {
            try DiskLogFile.create(
                in: descriptor,
                LogSpecification(
                    uuid: [UInt8](repeating: 0, count: 16), disks: two, dataBytes: 1 << 20,
                    generation: Generation(1)))
        }
        #expect(error?.code == .alreadyExists)
        #expect(throws: FtvmError.self) { _ = try DiskLogFile(path: path) }
        let missing = #expect(throws: FtvmError.self) {
            _ = try DiskLogFile(path: home.directory + "/missing")
        }
        #expect(missing?.code == .notFound)
    }

    /// A log whose creation was cut short at any byte of its header is none.
    @Test func aTornHeaderIsNone() throws {
        let home = try Crasher()
        let path = home.directory + "/log"
        _ = try make(path, disks: two)
        let whole = try Data(contentsOf: URL(fileURLWithPath: path))
        for length in [0, 8, 100, 300, 4094] {
            var torn = whole
            torn.replaceSubrange(length..<4096, with: Data(count: 4096 - length))
            let copy = home.directory + "/torn\(length)"
            try torn.write(to: URL(fileURLWithPath: copy))
            let error = #expect(throws: FtvmError.self) { _ = try DiskLogFile(path: copy) }
            #expect(error?.code == .dataCorrupted)
        }
    }
}
