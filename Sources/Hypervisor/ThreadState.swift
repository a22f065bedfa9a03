/// What the kernel says of a thread, or of a process's first one, in its `stat`, proc(5). Looked at often: nothing is made of it
/// but these.
package struct ThreadState: Equatable {
    package var letter: UInt8 = 0
    package var flags: UInt64 = 0
    /// When it began, in clock ticks since the machine did.
    package var startTicks: UInt64?

    /// After the name, which is in parentheses and may have some itself, come the state, as the sixth after it the flags, and as
    /// the 19th the start time.
    package init?(_ text: String) {
        guard let end = text.utf8.lastIndex(of: UInt8(ascii: ")")) else { return nil }
        var field = -1
        var number: UInt64 = 0
        for byte in text.utf8[end...].dropFirst() {
            if byte == UInt8(ascii: " ") {
                if field == 6 { flags = number }
                if field == 19 { startTicks = number }
                field += 1
                number = 0
            } else if field == 0 {
                letter = byte
            } else {
                number = number &* 10 &+ UInt64(byte &- UInt8(ascii: "0"))
            }
        }
        guard field > 6 else { return nil }
    }

    /// It has ended, and somebody may not have noticed yet.
    package var hasEnded: Bool { letter == UInt8(ascii: "Z") || letter == UInt8(ascii: "X") }

    /// It runs no user instruction again.
    package var isEnding: Bool {
        let exiting: UInt64 = 0x4
        return hasEnded || flags & exiting != 0
    }
}
