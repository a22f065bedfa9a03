import Glibc

/// A process's memory map (/proc/PID/maps; proc(5)).
package struct ProcessMaps {
    package struct Region: Equatable, Sendable {
        package let start: UInt64
        package let end: UInt64
        package let readable: Bool
        package let writable: Bool
        package let executable: Bool
        package let shared: Bool
        package let offset: UInt64
        /// The file's device, `major:minor` in hexadecimal, and inode; 0 without a file.
        package let device: String
        package let inode: UInt64
        package let path: String
    }

    package let regions: [Region]

    package init(pid: pid_t) throws(InjectionError) {
        guard let file = fopen("/proc/\(pid)/maps", "re") else {
            throw InjectionError("open /proc/\(pid)/maps", errno)
        }
        defer { fclose(file) }
        var regions: [Region] = []
        var line: UnsafeMutablePointer<CChar>?
        var capacity = 0
        defer { free(line) }
        while getline(&line, &capacity, file) > 0 {
            if let line, let region = Region(line: String(cString: line)) { regions.append(region) }
        }
        self.regions = regions
    }

    /// The regions that overlap the range.
    package func regions(in range: Range<UInt64>) -> [Region] {
        regions.filter { $0.start < range.upperBound && $0.end > range.lowerBound }
    }
}

extension ProcessMaps.Region {
    /// One line: `start-end perms offset major:minor inode   path`.
    init?(line: String) {
        let fields = line.split(separator: " ", maxSplits: 5, omittingEmptySubsequences: true)
        guard fields.count >= 5 else { return nil }
        let bounds = fields[0].split(separator: "-")
        guard bounds.count == 2, let start = UInt64(bounds[0], radix: 16),
            let end = UInt64(bounds[1], radix: 16), let offset = UInt64(fields[2], radix: 16)
        else { return nil }
        let permissions = Array(fields[1].utf8)
        guard permissions.count >= 4 else { return nil }
        self.start = start
        self.end = end
        readable = permissions[0] == UInt8(ascii: "r")
        writable = permissions[1] == UInt8(ascii: "w")
        executable = permissions[2] == UInt8(ascii: "x")
        shared = permissions[3] == UInt8(ascii: "s")
        self.offset = offset
        guard let inode = UInt64(fields[4].filter { $0 != "\n" }) else { return nil }
        device = String(fields[3])
        self.inode = inode
        guard fields.count > 5 else {
            path = ""
            return
        }
        var text = fields[5].drop { $0 == " " }
        if text.last == "\n" { text = text.dropLast() }
        path = String(text)
    }
}
