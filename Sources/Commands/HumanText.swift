import ArgumentParser
import Glibc

/// Numbers as people read them.
package enum HumanText {
    /// `places` digits after the point, rounded half away from zero.
    package static func decimal(_ value: Double, places: Int = 1) -> String {
        guard value.isFinite, abs(value) < 1e15 else { return "\(value)" }
        var scale: Int64 = 1
        for _ in 0..<places { scale *= 10 }
        let scaled = Int64((abs(value) * Double(scale)).rounded())
        let sign = value < 0 && scaled > 0 ? "-" : ""
        guard places > 0 else { return sign + String(scaled) }
        let fraction = String(scaled % scale)
        let zeros = String(repeating: "0", count: places - fraction.count)
        return "\(sign)\(scaled / scale).\(zeros)\(fraction)"
    }

    /// Whole where it is whole, else one digit after the point.
    private static func short(_ value: Double) -> String {
        value == value.rounded() ? decimal(value, places: 0) : decimal(value, places: 1)
    }

    /// `256 MiB`, `1.5 GiB`, `512 B`.
    package static func bytes(_ count: UInt64) -> String {
        let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
        var unit = 0
        var size = count
        while size >= 1024, unit < units.count - 1 {
            size /= 1024
            unit += 1
        }
        let value = Double(count) / Double(UInt64(1) << UInt64(10 * unit))
        return "\(short(value)) \(units[unit])"
    }

    /// `850 us`, `1.7 ms`, `4.2 s`, `2 min 5 s`, `3 h 20 min`, `2 d 4 h`.
    package static func duration(microseconds: Double) -> String {
        let value = max(0, microseconds)
        if value < 999.5 { return "\(decimal(value, places: 0)) us" }
        if value < 9_950 { return "\(decimal(value / 1e3)) ms" }
        if value < 999_500 { return "\(decimal(value / 1e3, places: 0)) ms" }
        if value < 59_950_000 { return "\(decimal(value / 1e6)) s" }
        guard value < 1e17 else { return "ages" }
        let seconds = Int64((value / 1e6).rounded())
        if seconds < 3600 { return "\(seconds / 60) min \(seconds % 60) s" }
        if seconds < 86_400 { return "\(seconds / 3600) h \(seconds / 60 % 60) min" }
        return "\(seconds / 86_400) d \(seconds / 3600 % 24) h"
    }

    package static func duration(milliseconds: Double) -> String {
        duration(microseconds: milliseconds * 1e3)
    }

    package static func duration(_ duration: Duration) -> String {
        self.duration(microseconds: duration.inSeconds * 1e6)
    }

    /// `1 pair`, `2 pairs`.
    package static func count(_ number: Int, _ word: String) -> String {
        "\(number) \(word)\(number == 1 ? "" : "s")"
    }
}

extension Duration {
    package var inSeconds: Double {
        Double(components.seconds) + Double(components.attoseconds) / 1e18
    }
}

/// Dates of events: for people only.
package enum DateText {
    /// `2025-03-09 14:26:17` in the local time zone; seconds since 1970 as text if they are no date.
    package static func local(_ seconds: Double) -> String {
        guard seconds.isFinite, abs(seconds) < 1e11 else { return "\(seconds)" }
        var time = time_t(seconds.rounded(.down))
        var parts = tm()
        guard localtime_r(&time, &parts) != nil else { return "\(seconds)" }
        var buffer = [UInt8](repeating: 0, count: 32)
        let length = buffer.withUnsafeMutableBytes { bytes in
            bytes.withMemoryRebound(to: CChar.self) {
                strftime($0.baseAddress, $0.count, "%Y-%m-%d %H:%M:%S", &parts)
            }
        }
        return String(decoding: buffer[..<length], as: UTF8.self)
    }
}

/// A size on the command line: `64MiB`, `64M`, `65536`. Units are powers of 1024.
package struct ByteCount: Hashable, Sendable, ExpressibleByArgument {
    package var bytes: UInt64

    package init?(argument: String) {
        let digits = argument.prefix { $0.isASCII && $0.isNumber }
        let unit = argument.dropFirst(digits.count).drop { $0 == " " }.lowercased()
        let shifts: [String: UInt64] = [
            "": 0, "b": 0, "k": 10, "kib": 10, "m": 20, "mib": 20, "g": 30, "gib": 30, "t": 40,
            "tib": 40,
        ]
        guard let number = UInt64(digits), let shift = shifts[unit],
            number <= UInt64.max >> shift
        else { return nil }
        self.bytes = number << shift
    }
}
