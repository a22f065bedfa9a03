import CLinux
import Model

/// Numbers of the log's format; `Documentation/Disks.md` is its description.
enum LogFormat {
    /// "FTVMDISK" as a little-endian word.
    static let magic: UInt64 = 0x4B53_4944_4D56_5446
    static let majorVersion: UInt32 = 1
    static let minorVersion: UInt32 = 0
    static let headerBytes = 4096
    static let liveOffset = 4096
    static let recordsOffset: UInt64 = 8192
    static let recordBytes = 64
    /// Data of a record begin at a multiple of this.
    static let dataAlignment: UInt64 = 512
    /// So that records run out before data only when most writes are smaller than 1 KiB.
    static let dataBytesPerRecord: UInt64 = 1024
    static let largestChunkBytes: UInt64 = 1 << 20
    static let smallestDataBytes: UInt64 = 64 << 10
    static let largestBytes: UInt64 = 1 << 44
    static let nameBytes = 32
}

/// A disk as the log knows it.
package struct LoggedDisk: Hashable, Sendable, Codable {
    /// What packets wait for when the guest has flushed this disk.
    package enum Durability: String, Sendable, Codable {
        /// Stable storage.
        case commit
        /// Nothing but the commit: after the loss of the pool acknowledged writes may be missing.
        case pool
    }
    /// The guest's name for it, such as `vda`: 1 to 31 characters of `A-Z a-z 0-9 . _ -`. Also the
    /// name of the NBD export.
    package var name: String
    /// Size of the export in bytes. For a qcow2 image what the file may grow to.
    package var sizeBytes: UInt64
    package var durability: Durability

    package init(name: String, sizeBytes: UInt64, durability: Durability = .commit) {
        (self.name, self.sizeBytes, self.durability) = (name, sizeBytes, durability)
    }
}

/// What a log is to be made of.
package struct LogSpecification: Sendable {
    /// UUID of the domain: 16 bytes, in the order in which it is written.
    package var uuid: [UInt8]
    package var disks: [LoggedDisk]
    /// Room for written data in bytes.
    package var dataBytes: UInt64
    package var generation: Generation
    /// The file's size is a multiple of this: the pool's page size.
    package var pageSizeBytes: UInt64

    package init(
        uuid: [UInt8], disks: [LoggedDisk], dataBytes: UInt64, generation: Generation,
        pageSizeBytes: UInt64 = 4096
    ) {
        (self.uuid, self.disks, self.dataBytes) = (uuid, disks, dataBytes)
        (self.generation, self.pageSizeBytes) = (generation, pageSizeBytes)
    }

    /// Size of the log's file.
    /// - Throws: `.invalidArgument` when no such log can be made.
    package var fileBytes: UInt64 { get throws { try LogHeader(self).fileBytes } }
}

/// Everything about a log that never changes after its creation.
package struct LogHeader: Hashable, Sendable {
    package static let mostDisks = 16

    package let uuid: [UInt8]
    /// A random number: this log and no other, also of the same VM.
    package let identity: UInt64
    package let fileBytes: UInt64
    package let recordCapacity: UInt64
    package let dataOffset: UInt64
    package let dataBytes: UInt64
    package let creationGeneration: Generation
    package let disks: [LoggedDisk]

    private enum Place {
        static let magic = 0, majorVersion = 8, minorVersion = 12, uuid = 16, fileBytes = 32
        static let recordsOffset = 40, recordCapacity = 48, dataOffset = 56, dataBytes = 64
        static let generation = 72, diskCount = 80, identity = 88, disks = 96, diskBytes = 64
        static let diskSize = 32, diskFlags = 40, crc = 4092
    }

    /// Lays out a new log.
    init(_ specification: LogSpecification) throws {
        func refused(_ cause: String, _ advice: String) -> FtvmError {
            FtvmError(.invalidArgument, "a disk log cannot be made", cause: cause, advice: advice)
        }
        let page = max(specification.pageSizeBytes, 4096)
        guard specification.uuid.count == 16, page.nonzeroBitCount == 1 else {
            throw refused("the UUID or the page size is wrong", "give 16 bytes and a power of two")
        }
        guard !specification.disks.isEmpty, specification.disks.count <= LogHeader.mostDisks,
            Set(specification.disks.map(\.name)).count == specification.disks.count
        else {
            throw refused(
                "\(specification.disks.count) disks",
                "give 1 to \(LogHeader.mostDisks) disks with different names")
        }
        for disk in specification.disks {
            guard LogHeader.isName(disk.name), disk.sizeBytes > 0, disk.sizeBytes < 1 << 62 else {
                throw refused(
                    "disk '\(disk.name)' of \(disk.sizeBytes) bytes",
                    "give a size, and a name of up to 31 letters and digits")
            }
        }
        guard specification.dataBytes >= LogFormat.smallestDataBytes,
            specification.dataBytes <= LogFormat.largestBytes
        else {
            throw refused(
                "\(specification.dataBytes) bytes for data",
                "give at least \(LogFormat.smallestDataBytes)")
        }
        uuid = specification.uuid
        identity = UInt64.random(in: .min ... .max)
        dataBytes = specification.dataBytes / 4096 * 4096
        recordCapacity = dataBytes / LogFormat.dataBytesPerRecord
        let recordsEnd = LogFormat.recordsOffset + recordCapacity * UInt64(LogFormat.recordBytes)
        dataOffset = (recordsEnd + 4095) / 4096 * 4096
        fileBytes = (dataOffset + dataBytes + page - 1) / page * page
        creationGeneration = specification.generation
        disks = specification.disks
    }

    static func isName(_ name: String) -> Bool {
        !name.isEmpty && name.utf8.count < LogFormat.nameBytes && name.first != "."
            && name.utf8.allSatisfy { byte in
                switch byte {
                case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                    UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "."), UInt8(ascii: "_"),
                    UInt8(ascii: "-"):
                    true
                default: false
                }
            }
    }

    func write(to page: UnsafeMutableRawPointer) {
        func put<Number: FixedWidthInteger>(_ value: Number, _ offset: Int) {
            page.storeBytes(of: value.littleEndian, toByteOffset: offset, as: Number.self)
        }
        put(LogFormat.magic, Place.magic)
        put(LogFormat.majorVersion, Place.majorVersion)
        put(LogFormat.minorVersion, Place.minorVersion)
        for (index, byte) in uuid.enumerated() { put(byte, Place.uuid + index) }
        put(fileBytes, Place.fileBytes)
        put(LogFormat.recordsOffset, Place.recordsOffset)
        put(recordCapacity, Place.recordCapacity)
        put(dataOffset, Place.dataOffset)
        put(dataBytes, Place.dataBytes)
        put(creationGeneration.number, Place.generation)
        put(UInt32(disks.count), Place.diskCount)
        put(identity, Place.identity)
        for (index, disk) in disks.enumerated() {
            let base = Place.disks + index * Place.diskBytes
            for (position, byte) in disk.name.utf8.enumerated() { put(byte, base + position) }
            put(disk.sizeBytes, base + Place.diskSize)
            put(UInt32(disk.durability == .pool ? 1 : 0), base + Place.diskFlags)
        }
        put(ftvm_crc32c(0, page, Place.crc), Place.crc)
    }

    /// Reads and checks the header at the beginning of a log.
    ///
    /// Throws `.dataCorrupted` or, for another format, `.unsupported`.
    init(page: UnsafeRawPointer, actualBytes: UInt64) throws {
        func get<Number: FixedWidthInteger>(_ offset: Int, as type: Number.Type = Number.self)
            -> Number
        { Number(littleEndian: page.loadUnaligned(fromByteOffset: offset, as: type)) }
        func damaged(_ cause: String) -> FtvmError {
            FtvmError(
                .dataCorrupted, "this is no usable disk log", cause: cause,
                advice:
                    "without its log the disks are those of the images; see Documentation/Disks.md")
        }
        guard get(Place.magic) == LogFormat.magic else { throw damaged("wrong magic number") }
        guard get(Place.crc) == ftvm_crc32c(0, page, Place.crc) else {
            throw damaged("the header's CRC is wrong")
        }
        let major: UInt32 = get(Place.majorVersion)
        guard major == LogFormat.majorVersion else {
            throw FtvmError(
                .unsupported, "the disk log has format \(major)",
                cause: "this program knows \(LogFormat.majorVersion)",
                advice: "use the version of ftvm that made it")
        }
        uuid = (0..<16).map { get(Place.uuid + $0) }
        identity = get(Place.identity)
        fileBytes = get(Place.fileBytes)
        recordCapacity = get(Place.recordCapacity)
        dataOffset = get(Place.dataOffset)
        dataBytes = get(Place.dataBytes)
        let generation: UInt64 = get(Place.generation)
        let diskCount: UInt32 = get(Place.diskCount)
        let recordsOffset: UInt64 = get(Place.recordsOffset)
        guard generation <= Generation.maximum, (1...LogHeader.mostDisks).contains(Int(diskCount)),
            recordsOffset == LogFormat.recordsOffset, fileBytes == actualBytes,
            dataBytes >= LogFormat.smallestDataBytes, dataBytes <= LogFormat.largestBytes,
            recordCapacity > 0, recordCapacity <= LogFormat.largestBytes,
            dataOffset <= fileBytes, dataOffset % LogFormat.dataAlignment == 0,
            dataBytes % LogFormat.dataAlignment == 0,
            recordsOffset + recordCapacity * UInt64(LogFormat.recordBytes) <= dataOffset,
            dataBytes <= fileBytes - dataOffset
        else { throw damaged("the header contradicts itself or the file's size") }
        creationGeneration = Generation(generation)
        var disks: [LoggedDisk] = []
        for index in 0..<Int(diskCount) {
            let base = Place.disks + index * Place.diskBytes
            let name = (0..<LogFormat.nameBytes).map { get(base + $0, as: UInt8.self) }
                .prefix { $0 != 0 }
            let flags: UInt32 = get(base + Place.diskFlags)
            let disk = LoggedDisk(
                name: String(decoding: name, as: UTF8.self),
                sizeBytes: get(base + Place.diskSize),
                durability: flags & 1 == 0 ? .commit : .pool)
            guard LogHeader.isName(disk.name), disk.sizeBytes > 0, disk.sizeBytes < 1 << 62 else {
                throw damaged("disk \(index) has the name '\(disk.name)'")
            }
            disks.append(disk)
        }
        self.disks = disks
    }
}

/// A record of the log.
package struct LogRecord: Hashable, Sendable {
    package enum Kind: UInt8, Sendable {
        case write = 1
        case zero, trim, flush
    }

    package var sequence: UInt64
    package var generation: UInt64
    /// Range of the disk in bytes.
    package var offset: UInt64
    package var length: UInt64
    /// Data bytes ever logged before this record's; they stand at `dataPosition % dataBytes`.
    package var dataPosition: UInt64
    package var dataCRC: UInt32
    package var kind: Kind
    package var disk: Int

    private enum Place {
        static let sequence = 0, generation = 8, offset = 16, length = 24, dataPosition = 32
        static let dataCRC = 40, kind = 44, disk = 46, unused = 48, crc = 60
    }

    /// Room that the data take.
    var dataBytes: UInt64 { kind == .write ? LogRecord.room(for: length) : 0 }

    static func room(for length: UInt64) -> UInt64 {
        (length + LogFormat.dataAlignment - 1) / LogFormat.dataAlignment * LogFormat.dataAlignment
    }

    @inline(__always)
    func write(to slot: UnsafeMutableRawPointer) {
        slot.storeBytes(of: sequence.littleEndian, toByteOffset: Place.sequence, as: UInt64.self)
        slot.storeBytes(
            of: generation.littleEndian, toByteOffset: Place.generation, as: UInt64.self)
        slot.storeBytes(of: offset.littleEndian, toByteOffset: Place.offset, as: UInt64.self)
        slot.storeBytes(of: length.littleEndian, toByteOffset: Place.length, as: UInt64.self)
        slot.storeBytes(
            of: dataPosition.littleEndian, toByteOffset: Place.dataPosition, as: UInt64.self)
        slot.storeBytes(of: dataCRC.littleEndian, toByteOffset: Place.dataCRC, as: UInt32.self)
        slot.storeBytes(of: UInt16(kind.rawValue), toByteOffset: Place.kind, as: UInt16.self)
        slot.storeBytes(
            of: UInt16(disk).littleEndian, toByteOffset: Place.disk, as: UInt16.self)
        slot.storeBytes(of: 0, toByteOffset: Place.unused, as: UInt64.self)
        slot.storeBytes(of: 0, toByteOffset: Place.unused + 8, as: UInt32.self)
        slot.storeBytes(
            of: ftvm_crc32c(0, slot, Place.crc).littleEndian, toByteOffset: Place.crc,
            as: UInt32.self)
    }

    /// Reads a record; nil if it is damaged.
    @inline(__always)
    init?(from slot: UnsafeRawPointer) {
        let crc = UInt32(littleEndian: slot.load(fromByteOffset: Place.crc, as: UInt32.self))
        guard crc == ftvm_crc32c(0, slot, Place.crc),
            let kind = Kind(rawValue: slot.load(fromByteOffset: Place.kind, as: UInt8.self))
        else { return nil }
        self.kind = kind
        sequence = UInt64(littleEndian: slot.load(fromByteOffset: Place.sequence, as: UInt64.self))
        generation = UInt64(
            littleEndian: slot.load(fromByteOffset: Place.generation, as: UInt64.self))
        offset = UInt64(littleEndian: slot.load(fromByteOffset: Place.offset, as: UInt64.self))
        length = UInt64(littleEndian: slot.load(fromByteOffset: Place.length, as: UInt64.self))
        dataPosition = UInt64(
            littleEndian: slot.load(fromByteOffset: Place.dataPosition, as: UInt64.self))
        dataCRC = UInt32(littleEndian: slot.load(fromByteOffset: Place.dataCRC, as: UInt32.self))
        disk = Int(
            UInt16(littleEndian: slot.load(fromByteOffset: Place.disk, as: UInt16.self)))
    }

    package init(
        sequence: UInt64, generation: UInt64, offset: UInt64, length: UInt64,
        dataPosition: UInt64, dataCRC: UInt32, kind: Kind, disk: Int
    ) {
        (self.sequence, self.generation, self.offset) = (sequence, generation, offset)
        (self.length, self.dataPosition, self.dataCRC) = (length, dataPosition, dataCRC)
        (self.kind, self.disk) = (kind, disk)
    }
}
